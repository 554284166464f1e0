"""The Dataset tab: which pictures, what was found in them, and all that is done to them before training."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..desk import Desk
from ..form import Form
from ..listen import Given
from ..outlook import Outlook
from ..sections import Sections
from ..words import tag
from .browse import Browse
from .captioning import Captioning
from .class_images import ClassImages
from .crops import Crops
from .doctor import Doctor
from .exchange import Exchange
from .part import Part
from .source import Source


class Dataset:
    """The folder above; below, its parts, one at a time; then the settings of how pictures are used."""

    def __init__(self, desk: Desk, form: Form) -> None:
        self.desk, self.form = desk, form
        self.sections = Sections("dataset-parts")
        self.doctor = Doctor(desk)
        self.source = Source(desk, form, self.doctor.newest, self.sections)
        self.browse = Browse(desk)
        self.captioning = Captioning(desk, self.browse)
        self.crops = Crops(desk, self.sections)
        self.exchange = Exchange(desk)
        self.class_images = ClassImages(desk)
        self.tabbed: tuple[Part, ...] = (
            self.browse,
            self.captioning,
            self.doctor,
            self.crops,
            self.class_images,
            self.exchange,
        )
        self.parts: tuple[Part, ...] = (self.source, *self.tabbed)

    def build(self) -> None:
        self.source.build()
        self.sections.build({part.title: part.build for part in self.tabbed})
        gr.HTML(tag("h3", "How the pictures are used"))
        self.form.place_level(["data"], "basic")
        with gr.Accordion("More settings: captions, validation, cache, buckets", open=False):
            self.form.place_level(["data"], "advanced")

    @property
    def states(self) -> set[Any]:
        return {state for part in self.parts for state in part.states}

    @property
    def shows(self) -> list[Any]:
        return [shown for part in self.parts for shown in part.shows]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        return {what: new for part in self.parts for what, new in part.show(outlook, given).items()}

    def wire(self, refresh: Any) -> None:
        for part in self.parts:
            part.wire(refresh)
        see = lambda given: self.sections.show(self.browse.title)  # noqa: E731
        self.desk.on(self.captioning.see.click, see, (), [self.sections.chosen])
