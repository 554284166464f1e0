"""The VRAM tab: what the plan holds in memory, as squares of 1 GiB, and what was decided automatically."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .. import hardware
from ..config import knobs
from ..hardware import Machine
from ..plan import PHASES, Plan
from . import pictures, words
from .desk import Desk
from .listen import Given
from .outlook import Outlook
from .words import tag

CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 48, 80)
OWN_CARD = "this"
DEFAULT_CARD = 8
PHASE_WORDS = {"cache": "Preparing", "train": "Training", "sample": "Drawing", "export": "Exporting"}
ORDER = ("weights", "gradients", "optimizer", "average", "activations", "temporary", "overhead")


class Vram:
    """Memory."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        self.card = gr.Dropdown(
            allow_custom_value=True,
            label="Card",
            info="Try another card: the plan is made anew for it.",
            elem_id="card",
        )
        self.picture = gr.HTML(elem_id="vram")
        self.table = gr.HTML()

    @property
    def shows(self) -> list[Any]:
        return [self.card, self.picture, self.table]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        own = self.desk.machine.card
        choices: list[tuple[str, Any]] = [(f"{gib} GB", gib) for gib in CARDS]
        if own:
            choices.insert(0, (f"This machine: {own.name}, {words.size(own.total_bytes)}", OWN_CARD))
        known = [value for _, value in choices]
        chosen = given[self.card] if given[self.card] in known else OWN_CARD if own else DEFAULT_CARD
        machine = self._machine(chosen)
        seen = self.desk.look_on(machine, outlook.values) if chosen != OWN_CARD else outlook
        return {
            self.card: gr.update(choices=choices, value=chosen),
            self.picture: self._picture(seen, machine),
            self.table: _choices(seen.plan),
        }

    def wire(self) -> None:
        self.desk.on(self.card.input, lambda g: self.show(self.desk.look(), g), {self.card}, self.shows)

    def _machine(self, chosen: Any) -> Machine:
        return self.desk.machine if chosen == OWN_CARD else hardware.imagined(float(chosen))

    def _picture(self, seen: Outlook, machine: Machine) -> str:
        if seen.plan is None:
            return tag("p", "There is no plan yet; the panel beside says what is missing.", "quiet")
        ledger = self.desk.ledger(seen.plan)
        if ledger is None:
            return tag("p", "The model is being counted; the squares appear in a moment.", "quiet")
        assert machine.card
        total, phase = machine.card.total_bytes, ledger.peak_phase
        parts = _sums(ledger, phase)
        free = total - sum(parts.values())
        verdict = "fits" if free > 0 else "does not fit"
        held = f"{words.size(sum(parts.values()))} of {words.size(total)}"
        note = (
            "Activations, the working memory of each step, are not counted yet: a step needs room in the "
            "free squares, more of it for larger pictures and batches."
        )
        return (
            tag(
                "p",
                f"One square is 1 GB. {PHASE_WORDS[phase]} needs the most: {held} before activations, "
                f"so this part {verdict}.",
            )
            + tag("div", pictures.squares(parts, total) + pictures.legend(parts, free), "vram")
            + tag("p", note, "quiet")
            + _phases(ledger, total)
        )


def _sums(ledger: Any, phase: str) -> dict[str, float]:
    rows = [row for row in ledger.rows if row.phase == phase]
    return {
        what: sum(r.bytes for r in rows if r.what == what)
        for what in ORDER
        if any(r.what == what for r in rows)
    }


def _phases(ledger: Any, total: int) -> str:
    rows = [
        tag(
            "tr",
            tag("th", PHASE_WORDS[phase], scope="row") + tag("td", words.size(ledger.held(phase)), "number"),
        )
        for phase in PHASES
    ]
    head = tag("tr", tag("th", "Phase", scope="col") + tag("th", "Held on the card", "number", scope="col"))
    return tag("h3", "By phase") + tag("table", head + "".join(rows))


def _choices(plan: Plan | None) -> str:
    if plan is None or not plan.choices:
        return ""
    titles = {k.path: k.title for k in knobs()}
    head = tag("tr", "".join(tag("th", word, scope="col") for word in ("Setting", "Chosen", "Because")))
    rows = [
        tag(
            "tr",
            tag("th", words.safe(titles.get(c.path, c.path)), scope="row")
            + tag("td", words.safe(words.value(c.value)))
            + tag("td", words.safe(c.why)),
        )
        for c in plan.choices
    ]
    return tag("h3", "Decided automatically") + tag("table", head + "".join(rows))
