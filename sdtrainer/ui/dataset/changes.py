"""Undo and redo in words, and writing the edited captions beside the pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from ...child import Hand, Stopped
from ...data.overlay import Doing, Found, Step
from ...events import Progress
from ...pace import Pace
from .. import words
from ..chore import progress
from ..desk import Desk
from ..errand import STOPPED, Tell
from ..listen import Given
from ..words import tag
from .finder import Show
from .shelf import Shelf
from .views import Moment, Views

WRITE = "write captions"
MANY_FILES = 200
"""Text files beyond which undoing goes on in the background."""
WORDS = 44
KEPT = "It was stopped. No caption is lost: write again to finish, or undo to put the old texts back."


class Changes:
    """What was changed can be taken back, also after a restart."""

    def __init__(self, desk: Desk, shelf: Shelf, views: Views) -> None:
        self.desk, self.shelf, self.views = desk, shelf, views

    def build(self) -> None:
        with gr.Row(elem_classes="controls"):
            self.undo = gr.Button("Undo", size="sm", min_width=80, interactive=False, elem_id="undo")
            self.redo = gr.Button("Redo", size="sm", min_width=80, interactive=False, elem_id="redo")
            self.write = gr.Button(
                "Write into the folder", size="sm", min_width=150, interactive=False, elem_id="write"
            )
            self.stop = gr.Button("Stop", size="sm", min_width=80, visible=False, elem_id="write-stop")
        with gr.Group(visible=False, elem_id="write-box") as self.box:
            self.question = gr.HTML()
            with gr.Row(elem_classes="controls"):
                self.yes = gr.Button("Write", variant="primary", size="sm", elem_id="write-yes")
                self.no = gr.Button("Cancel", size="sm", elem_id="write-no")
        self.news = gr.HTML(elem_id="written")

    @property
    def shows(self) -> list[Any]:
        return [self.undo, self.redo, self.write, self.box, self.question, self.yes, self.news, self.stop]

    def wire(self, show: Show, shows: list[Any]) -> None:
        on = self.desk.on
        each = {"trigger_mode": "multiple"}  # of quick clicks
        on(self.undo.click, lambda g: self._step("undo") or show(g), (), shows, **each)
        on(self.redo.click, lambda g: self._step("redo") or show(g), (), shows, **each)
        on(self.write.click, lambda g: self._ask(g, True) or show(g), (), shows)
        on(self.no.click, lambda g: self._ask(g, False) or show(g), (), shows)
        on(self.yes.click, lambda g: self._write(g) or show(g), (), shows, trigger_mode="once")
        on(self.stop.click, lambda g: self.desk.errands.stop(WRITE) or show(g), (), shows)

    def render(self, moment: Moment) -> dict[Any, Any]:
        overlay, by_path = moment.shelved.overlay, moment.shelved.by_path
        doing = self.desk.errands.doing.get(WRITE)
        num_edited = sum(path in by_path for path in overlay.captions)
        files = words.count(num_edited, "text file")
        question = (
            f"{files} will be written into {moment.shelved.census.folder}, one beside each picture whose"
            " caption was edited here; what stands there now is replaced. The pictures are not touched, and"
            " Undo puts the old texts back."
        )
        asks = moment.view.asks and num_edited > 0 and doing is None
        return {
            self.undo: _button("Undo", overlay.undoable, doing is None),
            self.redo: _button("Redo", overlay.redoable, doing is None),
            self.write: gr.update(interactive=num_edited > 0 and doing is None),
            self.box: gr.update(visible=asks),
            self.question: tag("p", words.safe(question)),
            self.yes: gr.update(value=f"Write {files}"),
            self.news: progress(doing) if doing else self._ended(),
            self.stop: gr.update(visible=doing is not None and not doing.is_stopping),
        }

    def _ended(self) -> str:
        ended, found = self.desk.errands.ended.get(WRITE, ""), self.desk.errands.found.get(WRITE, "")
        text = KEPT if ended == STOPPED else ended or found
        return tag("p", words.safe(text), "quiet") if text else ""

    def _ask(self, given: Given, asks: bool) -> None:
        self.views.change(given.session, asks=asks)

    def _step(self, word: str) -> None:
        """Go back or forth by one change; one with many files goes on in the background."""
        overlay = self.shelf.look().overlay
        if overlay.num_files[word == "redo"] > MANY_FILES:
            doing = overlay.undoing() if word == "undo" else overlay.redoing()
            self._begin(doing, _left)
            return
        for said in (self.desk.errands.ended, self.desk.errands.found):
            said.pop(WRITE, None)
        with self.views.lock:
            step = overlay.undo() if word == "undo" else overlay.redo()
        self.desk.captions_changed()
        if said := _left(step):
            gr.Info(said, duration=8)

    def _write(self, given: Given) -> None:
        self._ask(given, False)
        shelved = self.shelf.look()
        census = replace(shelved.census, samples=tuple(shelved.by_path.values()))
        said = lambda written: f"{words.count(len(written), 'text file')} written into {census.folder}."  # noqa: E731
        self._begin(shelved.overlay.writing(census), said)

    def _begin(self, doing: Doing[Found], told: Callable[[Found], str]) -> None:
        """Have text files written in the background. It can be stopped between two of them."""

        def work(hand: Hand, tell: Tell) -> str:
            pace = Pace()
            try:
                while True:
                    done, of = next(doing)
                    if hand.is_stopped:
                        raise Stopped("was stopped")
                    if pace.is_due():
                        tell(Progress(done, of, "text files", pace.seconds_left(done, of)))
            except StopIteration as end:
                return told(end.value)
            finally:
                doing.close()
                self.desk.captions_changed()

        self.desk.errands.begin(WRITE, work)


def _left(step: Step | None) -> str:
    num_left = len(step.left) if step else 0
    return f"{words.count(num_left, 'file')} changed since, and left as it is." if num_left else ""


def _button(word: str, what: str | None, is_on: bool) -> Any:
    text = f"{word}: {what}" if what else word
    text = text if len(text) <= WORDS else f"{text[: WORDS - 1]}…"
    return gr.update(value=text, interactive=is_on and what is not None)
