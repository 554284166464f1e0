"""The Dataset tab: which pictures, what was found in them, and all that is done to them before training."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..desk import Desk
from ..form import Form
from ..listen import Given
from ..outlook import Outlook
from ..words import tag
from .browse import Browse
from .captioning import Captioning
from .crops import Crops
from .doctor import Doctor
from .exchange import Exchange
from .part import Part
from .source import Source


class Dataset:
    """The folder above; below, one tab for each part; then the settings of how pictures are used."""

    def __init__(self, desk: Desk, form: Form) -> None:
        self.desk, self.form = desk, form
        self.doctor = Doctor(desk)
        self.source = Source(desk, form, self.doctor.newest)
        self.browse = Browse(desk)
        self.captioning = Captioning(desk, self.browse)
        self.crops = Crops(desk)
        self.exchange = Exchange(desk)
        self.tabbed: tuple[Part, ...] = (
            self.browse,
            self.captioning,
            self.crops,
            self.doctor,
            self.exchange,
        )
        self.parts: tuple[Part, ...] = (self.source, *self.tabbed)

    def build(self) -> None:
        self.source.build()
        with gr.Tabs(elem_id="dataset-parts") as self.tabs:
            for part in self.tabbed:
                name = part.title.lower().replace(" ", "-")
                with gr.Tab(part.title, id=name, elem_id=f"part-{name}", render_children=True) as part.tab:
                    part.build()
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
        see = lambda given: {self.tabs: gr.update(selected="pictures")}  # noqa: E731
        self.desk.on(self.captioning.see.click, see, (), [self.tabs])
