"""Many captions changed at once: what is done, what it would change, and the button that does it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...data import caption_edits
from ...data.caption_edits import OPERATIONS, EditSection
from ...section import Knob, UserError, checked, fields
from .. import words
from ..desk import Desk
from ..form import Field, field_of
from ..listen import Given
from ..words import tag
from .diffs import diff
from .finder import Show
from .shelf import Shelf
from .views import Moment, Views

SHOWN = 8


class Bulk:
    """Shows what would change while it is being typed; changes only when asked to."""

    def __init__(self, desk: Desk, shelf: Shelf, views: Views) -> None:
        self.desk, self.shelf, self.views = desk, shelf, views
        self.fields: dict[str, Field] = {}
        self._newest: tuple[Any, dict[str, str]] = (None, {})

    def build(self) -> None:
        knobs = fields(EditSection)
        titles = [(kind.title, name) for name, kind in OPERATIONS.items()]
        with gr.Accordion("Change many captions", open=False, elem_id="bulk"):
            with gr.Row(elem_classes="finder"):
                do = knobs["do"]
                looks = {"label": do.title, "min_width": 170, "elem_id": "bulk-do"}
                self.do = gr.Dropdown(titles, value=do.default, info=OPERATIONS[do.default].about, **looks)
                for knob in knobs.values():
                    if knob.name not in ("do", "separator"):
                        self._place(knob)
            self.preview = gr.HTML(elem_id="bulk-preview")
            self.apply = gr.Button(
                "Change captions", variant="primary", size="sm", interactive=False, elem_id="bulk-apply"
            )

    def _place(self, knob: Knob) -> None:
        is_used = knob.name in OPERATIONS[fields(EditSection)["do"].default].uses
        looks = {"elem_id": f"bulk-{knob.name.replace('_', '-')}", "min_width": 150, "visible": is_used}
        self.fields[knob.name] = field_of(knob, looks)

    @property
    def shows(self) -> list[Any]:
        return [self.do, *(field.widget for field in self.fields.values()), self.preview, self.apply]

    def wire(self, show: Show, shows: list[Any]) -> None:
        uses = {self.do, *(field.widget for field in self.fields.values())}
        events = [widget.input for widget in uses]
        take = lambda given: self._take(given) or show(given)  # noqa: E731
        self.desk.on(events, take, uses, shows, trigger_mode="always_last", queue=False)
        self.desk.on(self.apply.click, lambda g: self._apply(g, show), uses, shows, trigger_mode="once")

    def render(self, moment: Moment) -> dict[Any, Any]:
        kind = OPERATIONS[moment.view.edit.do]
        shown = {field.widget: gr.update(visible=name in kind.uses) for name, field in self.fields.items()}
        shown[self.do] = gr.update(info=kind.about)
        try:
            after = self._edited(moment)
        except UserError as error:
            return shown | {
                self.preview: tag("p", words.safe(f"{error.what} {error.hint}"), "quiet"),
                self.apply: gr.update(value="Change captions", interactive=False),
            }
        return shown | {
            self.preview: _preview(moment, after),
            self.apply: gr.update(
                value=f"Change {words.count(len(after), 'caption')}" if after else "Change captions",
                interactive=bool(after),
            ),
        }

    def _take(self, given: Given) -> None:
        do = given[self.do]
        values = {
            name: self.fields[name].read(given[self.fields[name].widget]) for name in OPERATIONS[do].uses
        }
        separator = self.shelf.look().section.tag_separator
        edit = checked(EditSection, {**values, "do": do, "separator": separator}, "change")
        self.views.change(given.session, edit=edit)

    def _apply(self, given: Given, show: Show) -> dict[Any, Any]:
        self._take(given)
        shelved, view = self.shelf.look(), self.views[given.session]
        moment = Moment(view, shelved, self.shelf.find(shelved, view.search))
        number = self.shelf.apply(caption_edits.words_for(view.edit), self._edited(moment))
        gr.Info(f"{words.count(number, 'caption')} changed. Undo is above the pictures.", duration=6)
        return show(given)

    def _edited(self, moment: Moment) -> dict[str, str]:
        """Return the captions that change; kept, as a page asks again for whatever else it shows."""
        view = moment.view
        question = (moment.shelved.stamp, view.search, view.picked, view.edit)
        newest = self._newest
        if newest[0] != question:
            captions = {sample.path: sample.caption for sample in moment.chosen}
            of = [sample.caption for sample in moment.shelved.by_path.values()]
            newest = self._newest = (question, caption_edits.edited(captions, view.edit, of))
        return newest[1]


def _preview(moment: Moment, after: dict[str, str]) -> str:
    """Say how many captions change, and show some of them."""
    by_path, num_picked = moment.shelved.by_path, len(moment.view.picked)
    which = f"the {num_picked:,} selected" if num_picked else f"all {len(moment.found):,} shown above"
    if not after:
        return tag("p", f"Changes nothing in {which}.", "quiet")
    said = tag("p", f"Changes {words.count(len(after), 'caption')} of {which}:")
    rows = [
        tag("b", words.safe(path)) + tag("p", diff(by_path[path].caption, text), "diff")
        for path, text in list(after.items())[:SHOWN]
    ]
    more = tag("p", f"and {len(after) - SHOWN:,} more", "quiet") if len(after) > SHOWN else ""
    return said + tag("ul", words.items(rows), "previews") + more
