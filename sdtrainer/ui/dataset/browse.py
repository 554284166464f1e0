"""The pictures as a grid, and one of them large with its caption."""

from __future__ import annotations

import hashlib
from math import ceil
from typing import Any

import gradio as gr

from ...data import captions
from ...data.census import Census, Problem, Sample
from ...data.overlay import overlay_for
from ...section import UserError
from .. import pictures, words
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..panel import CLICKS
from ..thumbnails import LARGE, thumbnail
from ..words import picture, tag

PER_PAGE = 24


class Browse:
    """Pictures and captions."""

    title = "Pictures"
    tab: Any = None

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        self.grid = gr.HTML(js_on_load=CLICKS, elem_id="pictures")
        with gr.Row(elem_classes="pager"):
            self.back = gr.Button("Previous page", size="sm", min_width=110, visible=False)
            self.where = gr.HTML()
            self.on_ = gr.Button("Next page", size="sm", min_width=110, visible=False)
        self._build_editor()
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                self.problems = gr.HTML()
            with gr.Column(min_width=280):
                self.buckets = gr.HTML()
        self.page, self.chosen, self.seen = gr.State(0), gr.State(""), gr.State("")

    def _build_editor(self) -> None:
        with gr.Group(visible=False, elem_id="editor") as self.editor, gr.Row():
            self.large = gr.Image(
                interactive=False,
                show_label=False,
                label="Picture",
                height=360,
                buttons=["fullscreen"],
                min_width=240,
            )
            with gr.Column(min_width=240, elem_classes="padded"):
                self.name = gr.HTML()
                self.caption = gr.Textbox(
                    label="Caption",
                    lines=4,
                    max_lines=10,
                    elem_id="caption",
                    info="What the picture shows. Kept in the workspace; your files are not changed.",
                )
                self.trained_as = gr.HTML()
                with gr.Row():
                    self.prev = gr.Button("Previous", elem_id="caption-prev", size="sm", min_width=80)
                    self.save = gr.Button(
                        "Save", elem_id="caption-save", size="sm", min_width=80, variant="primary"
                    )
                    self.next = gr.Button("Next", elem_id="caption-next", size="sm", min_width=80)
                    self.close = gr.Button("Close", elem_id="caption-close", size="sm", min_width=80)
                gr.HTML(
                    tag(
                        "p",
                        "Keys: left and right arrow, Enter to write, Ctrl+Enter to save and go on.",
                        "quiet",
                    )
                )

    @property
    def states(self) -> set[Any]:
        return {self.seen, self.page}

    @property
    def shows(self) -> list[Any]:
        return [
            self.grid,
            self.where,
            self.back,
            self.on_,
            self.problems,
            self.buckets,
            self.seen,
            self.page,
        ]

    @property
    def editor_parts(self) -> list[Any]:
        return [self.editor, self.large, self.name, self.caption, self.trained_as, self.chosen]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        """Show what was found; the grid is sent only if it is new to this page."""
        census, signature = outlook.census, _signature(outlook)
        if given[self.seen] == signature:
            return {}
        updates = {
            self.problems: _problems(census.problems) if census else "",
            self.buckets: _buckets(outlook),
            self.seen: signature,
        }
        return updates | self._page(census, 0 if not given[self.seen] else given[self.page])

    def wire(self, refresh: Any) -> None:
        on = self.desk.on
        state = {self.page, self.chosen, self.caption}
        on(self.back.click, lambda g: self._turn(g, -1), state, self.shows)
        on(self.on_.click, lambda g: self._turn(g, 1), state, self.shows)
        on(self.grid.click, self._open, state, self.editor_parts, clicks=True)
        refresh(on([self.save.click], self._save, state, self.editor_parts))
        refresh(on([self.next.click], lambda g: self._step(g, 1), state, self.editor_parts))
        refresh(on([self.prev.click], lambda g: self._step(g, -1), state, self.editor_parts))
        on(
            self.close.click,
            lambda g: {self.editor: gr.update(visible=False), self.chosen: ""},
            state,
            self.editor_parts,
        )

    def _census(self) -> Census:
        outlook = self.desk.look()
        if outlook.census is None:
            raise outlook.error or UserError("There are no pictures.", "Choose a folder.")
        return outlook.census

    def _page(self, census: Census | None, page: int) -> dict[Any, Any]:
        samples = census.samples if census else ()
        pages = max(1, ceil(len(samples) / PER_PAGE))
        page = min(max(page, 0), pages - 1)
        shown = samples[page * PER_PAGE : (page + 1) * PER_PAGE]
        return {
            self.page: page,
            self.grid: tag("div", "".join(self._cell(s) for s in shown), "pictures"),
            self.where: tag("span", f"Page {page + 1} of {pages}", "quiet") if pages > 1 else "",
            self.back: gr.update(visible=pages > 1, interactive=page > 0),
            self.on_: gr.update(visible=pages > 1, interactive=page < pages - 1),
        }

    def _cell(self, sample: Sample) -> str:
        image = picture(str(thumbnail(self.desk.workspace, sample.file)), sample.path)
        words_ = sample.caption or sample.class_word
        caption = tag("span", words.safe(words_) if words_ else "no caption", "" if words_ else "quiet")
        return tag(
            "button", image + caption, "thumbnail", type="button", data_act="open", data_picture=sample.path
        )

    def _turn(self, given: Given, by: int) -> dict[Any, Any]:
        return self._page(self._census(), given[self.page] + by)

    def _open(self, given: Given) -> dict[Any, Any]:
        return self._edit(self._sample(given.clicked.get("picture", "")))

    def _edit(self, sample: Sample) -> dict[Any, Any]:
        outlook = self.desk.look()
        section = outlook.config.data if outlook.config else None
        trained = (
            captions.compose(sample.caption, section, None, sample.class_word) if section else sample.caption
        )
        facts = f"{sample.width} x {sample.height} px"
        return {
            self.editor: gr.update(visible=True),
            self.large: str(thumbnail(self.desk.workspace, sample.file, LARGE)),
            self.name: tag("h3", words.safe(sample.path)) + tag("p", facts, "quiet"),
            self.caption: sample.caption,
            self.trained_as: tag("p", f"Trained as: {words.safe(trained) or '(nothing)'}", "quiet"),
            self.chosen: sample.path,
        }

    def _save(self, given: Given) -> dict[Any, Any]:
        census = self._census()
        sample = self._sample(given[self.chosen])
        if given[self.caption].strip() != sample.caption:
            overlay_for(self.desk.workspace.root, census.folder).apply(
                f"Caption of {sample.path}", {sample.path: given[self.caption]}
            )
            self.desk.look_again()
        return self._edit(self._sample(sample.path))

    def _step(self, given: Given, by: int) -> dict[Any, Any]:
        """Go to the next picture; what was written is saved first, so nothing is lost."""
        self._save(given)
        samples = self._census().samples
        place = [s.path for s in samples].index(given[self.chosen])
        return self._edit(samples[(place + by) % len(samples)])

    def _sample(self, path: str) -> Sample:
        for sample in self._census().samples:
            if sample.path == path:
                return sample
        raise UserError("This picture is no longer there.", "Press 'Look again'.")


def _signature(outlook: Outlook) -> str:
    buckets = outlook.plan.buckets if outlook.plan else None
    problem = str(outlook.error) if outlook.error and outlook.census is None else ""
    return hashlib.sha256(repr((outlook.census, buckets, problem)).encode()).hexdigest()


def _problems(problems: tuple[Problem, ...]) -> str:
    if not problems:
        return tag("h3", "Problems") + tag("p", "None.", "quiet")
    rows = [
        tag("b", words.safe(p.file or "All"))
        + f" {words.safe(p.sentence)}"
        + (" Skipped." if p.level == "skipped" else "")
        for p in problems[:50]
    ]
    more = tag("p", f"and {len(problems) - 50:,} more", "quiet") if len(problems) > 50 else ""
    return tag("h3", "Problems") + tag("ul", words.items(rows), "problems") + more


def _buckets(outlook: Outlook) -> str:
    if outlook.plan is None:
        return ""
    intro = "Pictures of like shape are trained together; width x height, and pictures per epoch."
    return tag("h3", "Shapes") + tag("p", intro, "quiet") + pictures.bars(outlook.plan.buckets)
