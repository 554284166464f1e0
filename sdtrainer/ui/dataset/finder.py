"""The fields that say which pictures are shown, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ...data.caption_search import SearchSection
from ...section import checked, fields
from ..desk import Desk
from ..form import Field, field_of
from ..listen import Given
from .views import Moment, Views

ANY = "anywhere"
Show = Callable[[Given], dict[Any, Any]]


class Finder:
    """Search, filters, order."""

    def __init__(self, desk: Desk, views: Views) -> None:
        self.desk, self.views = desk, views
        self.fields: dict[str, Field] = {}

    def build(self) -> None:
        knobs = fields(SearchSection)
        with gr.Row(elem_classes="finder", equal_height=True):
            self._place(knobs["search"], placeholder="Words, a tag")
            self._place(knobs["search_by"])
            self._place(knobs["only"])
            label = knobs["source"].title
            self.source = gr.Dropdown([ANY], value=ANY, label=label, min_width=130, elem_id="find-source")
            self._place(knobs["sort"])

    def _place(self, knob: Any, **looks: Any) -> None:
        plain = {"info": None, "min_width": 130, "elem_id": f"find-{knob.name.replace('_', '-')}"}
        self.fields[knob.name] = field_of(knob, plain | looks)

    @property
    def shows(self) -> list[Any]:
        return [self.source, *(field.widget for field in self.fields.values())]

    def wire(self, show: Show, shows: list[Any]) -> None:
        events = [widget.input for widget in self.shows]
        self.desk.on(
            events, lambda g: self._search(g, show), set(self.shows), shows, trigger_mode="always_last",
            queue=False,
        )  # fmt: skip

    def render(self, moment: Moment) -> dict[Any, Any]:
        sources = {sample.caption_from for sample in moment.shelved.by_path.values()} - {""}
        value = moment.view.search.source or ANY
        choices = [ANY, *sorted(sources | {value} - {ANY})]
        return {self.source: gr.update(choices=choices, value=value)}

    def look_for(self, given: Given, tag: str) -> dict[Any, Any]:
        """Find the pictures with this tag, as if it had been typed."""
        return self._lay(given, search=tag, search_by="tag")

    def look_for_all(self, given: Given) -> dict[Any, Any]:
        """Find all pictures, as if the fields had been emptied."""
        return self._lay(given)

    def _lay(self, given: Given, **values: Any) -> dict[Any, Any]:
        """Put a search into the fields; the order stays."""
        search = SearchSection(sort=self.views[given.session].search.sort, **values)
        self.views.change(given.session, search=search, page=0)
        return {field.widget: getattr(search, name) for name, field in self.fields.items()}

    def _search(self, given: Given, show: Show) -> dict[Any, Any]:
        values = {name: field.read(given[field.widget]) for name, field in self.fields.items()}
        values["source"] = "" if given[self.source] == ANY else given[self.source]
        search = checked(SearchSection, values, "search")
        self.views.change(given.session, search=search, page=0)
        return show(given)
