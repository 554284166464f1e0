"""The header: the name, the card, and what the runs are doing."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import keys, words
from .desk import Desk
from .share import ShareBox
from .view import part_done
from .words import tag


class Header:
    """Always visible."""

    def __init__(self, desk: Desk, share: ShareBox) -> None:
        self.desk, self.share = desk, share

    def build(self) -> None:
        with gr.Row(elem_id="header"):
            self.chips = gr.HTML(chips("", "idle"), scale=1, min_width=200)
            gr.HTML(keys.HELP, elem_id="help-box", min_width=0)
            self.share.build_button()
        self.share.build_box()

    @property
    def shows(self) -> list[Any]:
        return [self.chips, self.share.button]

    def show(self) -> dict[Any, Any]:
        return {self.chips: chips(self.desk.glance(), run_words(self.desk))} | self.share.show_button()


def chips(card: str, run: str) -> str:
    name = tag("h1", "sdtrainer")
    return (
        name
        + (tag("span", words.safe(card), "chip", title="Graphics card") if card else "")
        + tag("span", words.safe(run), "chip run", role="status", title="Runs")
    )


def run_words(desk: Desk) -> str:
    """Say "idle", "training 43 %, 3 min left", "starting", "measuring", and how many wait."""
    jobs = desk.jobs.state()
    waiting = f"{len(jobs.waiting)} waiting" if jobs.waiting else ""
    if jobs.current is None:
        return waiting or _errand_words(desk) or "idle"
    run = desk.run(jobs.current)
    view = desk.view(run)
    if desk.status(run) not in ("running", "paused"):
        return waiting or "idle"
    if view.state == "paused":
        doing = f"paused at {100 * part_done(view):.0f} %"
    elif view.phase in ("train", "look"):
        left = f" · {words.duration(view.seconds_left)} left" if view.seconds_left is not None else ""
        doing = f"training {100 * part_done(view):.0f} %{left}"
    else:
        doing = _DOING.get(view.phase, "starting")
    return " · ".join(filter(None, (doing, waiting)))


def _errand_words(desk: Desk) -> str:
    return next((_ERRANDS[kind] for kind in list(desk.errands.doing) if kind in _ERRANDS), "")


_ERRANDS = {
    "measure": "measuring",
    "compare": "comparing settings",
    "caption": "captioning",
    "mask": "masking",
    "import": "importing",
    "export": "exporting",
    "sample": "drawing",
    "merge": "merging",
    "mix": "mixing",
    "resize": "resizing",
    "convert": "converting",
    "extract": "extracting",
}
"""What a person asked for, beside training. The rest is done in passing."""
_DOING = {
    "load": "loading",
    "prior": "drawing class images",
    "cache": "preparing",
    "export": "exporting",
}
