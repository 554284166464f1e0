"""Which folder, pictures uploaded into one, and what was found there in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ...data.scan import Packed
from ...doctor import report as doctor
from ...doctor.report import Report
from ...section import UserError
from .. import words
from ..desk import Desk
from ..form import Form
from ..listen import Given
from ..outlook import Outlook, Reading
from ..sections import Sections
from ..words import tag
from .exchange import Exchange
from .findings import LIGHTS
from .upload import Upload


class Source:
    """Stands above the other parts, without a tab of its own."""

    title = ""

    def __init__(
        self, desk: Desk, form: Form, newest: Callable[[Outlook], Report | None], sections: Sections
    ) -> None:
        self.desk, self.form, self.newest, self.sections = desk, form, newest, sections
        self.upload = Upload(desk, sections, Exchange.title)

    def build(self) -> None:
        with gr.Row(equal_height=False):
            self.folder = self.form.place("data.folder", scale=4, placeholder="/home/me/pictures/my-dog")
            self.again = gr.Button("Look again", scale=1, min_width=120, elem_classes="beside-field")
        with gr.Accordion("Upload a folder, pictures or a ZIP", open=False, elem_id="upload"):
            self.upload.build()
        self.found = gr.HTML(elem_id="found")
        with gr.Row(elem_classes="controls"):
            self.take = gr.Button(
                "Import these pictures", variant="primary", size="sm", visible=False, elem_id="import-packed"
            )

    @property
    def states(self) -> set[Any]:
        return set()

    @property
    def shows(self) -> list[Any]:
        return [self.found, self.take]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        report = self.newest(outlook)
        return {self.found: _found(outlook, report), self.take: gr.update(visible=bool(_packed(outlook)))}

    def wire(self, refresh: Any) -> None:
        on = self.desk.on
        refresh(on(self.again.click, lambda given: self.desk.look_again(), (), ()))
        refresh(on(self.take.click, self._import, (), [self.sections.chosen], trigger_mode="once"))
        self.upload.wire(refresh)

    def _import(self, given: Given) -> dict[Any, Any]:
        """Import what the folder holds in Parquet files, and show how far that is."""
        packed = _packed(self.desk.look())
        if packed is None:
            raise UserError("There is nothing to import any more.", "Press 'Look again'.")
        self.desk.begin("import", {"source": str(packed.source)}, self.upload.train_on)
        return self.sections.show(Exchange.title)


def _packed(outlook: Outlook) -> Packed | None:
    """Return what is wrong with the image folder, if it is that its images are to be imported."""
    error = outlook.error
    return error if isinstance(error, Packed) and error.path == "data.folder" else None


def _found(outlook: Outlook, report: Report | None) -> str:
    census = outlook.census
    if census is None:
        error = outlook.error
        if isinstance(error, Reading):
            return _light("idle", error.what, "Reading")
        text = f"{error.what} {error.hint}" if error else "Choose the folder with your pictures."
        return _light("bad" if error else "idle", text)
    if report:
        text = f"{census.layout[:1].upper()}{census.layout[1:]}. {doctor.verdict(report)}"
        return _light(LIGHTS[doctor.light(report)], text)
    captioned = sum(bool(s.caption or s.class_word) for s in census.samples)
    text = f"{census.layout[:1].upper()}{census.layout[1:]}."
    notes = []
    if census.skipped:
        notes.append(f"{words.count(len(census.skipped), 'file')} skipped")
    if census.warnings:
        notes.append(f"{words.count(len(census.warnings), 'thing')} to look at")
    level = "warn" if notes or captioned < len(census.samples) else "good"
    return _light(level, f"{text} {', '.join(notes)}{'.' if notes else ''}".strip())


def _light(level: str, text: str, name: str = "") -> str:
    named = {"good": "Good", "warn": "Look", "bad": "Problem", "idle": "Empty"}
    return tag("p", tag("span", name or named[level], f"light {level}") + words.safe(text), "found")
