"""Inspect: what a file is and holds, drawn; from there its description is changed, or training taken over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ...chores import Answer
from ...config import knobs
from ...section import UserError, override
from ...toolbox.edit import EMPTY
from ...toolbox.inspect import broken, complaint, counted
from .. import words
from ..desk import Desk
from ..listen import Given
from ..remembered import Remembered
from ..words import tag
from . import network
from .card import ToolCard

ABOUT = "Says what a file is and what is written in it, draws every layer of an adapter, names broken ones."
ABOUT_EDIT = (
    "Changes what a file says of itself. Its tensors stay as they are, bit for bit; its hashes stay right."
)
MOST_TAGS = 24
_LEFT_OUT = ("most frequent tags",)


class Inspect(ToolCard):
    """Looks always deep: whoever looks at a file here wants to see it all."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "inspect", "Inspect", "Look", ABOUT, {"file": "any"}, ("deep",), self._shown)
        self.edit = Edit(desk, self)

    def build(self) -> None:
        super().build()
        with gr.Row(elem_classes="controls"):
            self.like = gr.Button("Train like this", size="sm", visible=False, elem_id="train-like-this")
        self.told = gr.HTML(elem_id="told-like-this")
        with gr.Accordion("Change what it says of itself", open=False, elem_id="edit-card"):
            self.edit.build()

    @property
    def shows(self) -> list[Any]:
        return [*super().shows, self.like, *self.edit.shows]

    @property
    def stamp(self) -> object:
        return (super().stamp, self.edit.stamp)

    @property
    def lists(self) -> Any:
        return [*super().lists, *self.edit.lists]

    @property
    def file(self) -> Mapping[str, Any] | None:
        """The first of the files that were looked at."""
        return self.answer["files"][0] if self.answer else None

    def show_all(self, given: Given) -> dict[Any, Any]:
        likeness = self.file.get("like") if self.file else None
        shown = self.show() | {self.like: gr.update(visible=bool(likeness))}
        return shown | self.edit.show() | self.edit.fill(given)

    def wire_all(self, filled: Any) -> None:
        """`filled` shows changed settings after the action."""
        self.wire(lambda given: {"deep": True})
        self.edit.wire()
        filled(self.desk.on(self.like.click, self._take_over, (), [self.told]))

    def _take_over(self, given: Given) -> dict[Any, Any]:
        """Put the file's settings into the form, and list what stayed behind."""
        like = self.file["like"] if self.file else None
        if not like:
            raise UserError("This file tells nothing of its training.", "Look at another.")
        project, values = self.desk.project, dict(like["values"])
        current = {k: v for k, v in project.values.items() if k != "method" or "method.kind" not in values}
        project.change(override(current, values), given.session)
        gr.Info(f"{len(values)} settings are in the form now.", duration=5)
        return {self.told: _told(like)}

    def _shown(self, answer: Answer) -> str:
        return "".join(_file(shown) for shown in answer["files"])


class Edit(ToolCard):
    """Its fields show what the file says that was looked at last."""

    def __init__(self, desk: Desk, looking: Inspect) -> None:
        super().__init__(
            desk,
            "edit",
            "Edit",
            "Save the changed copy",
            ABOUT_EDIT,
            {"preview": "picture"},
            ("file", "to", "overwrite"),
        )
        self.looking = looking
        self._filled = Remembered("")

    @property
    def shows(self) -> list[Any]:
        return [*super().shows, *(field.widget for field in self.fields.values())]

    def fill(self, given: Given) -> dict[Any, Any]:
        """Show what a file says, once it was looked at."""
        shown = self.looking.file
        mark = f"{id(shown)}" if shown else ""
        if not shown or self._filled[given.session] == mark:
            return {}
        self._filled[given.session] = mark
        labels = shown.get("labels", {})
        return {self.fields[name].widget: labels.get(name, "") for name in labels}

    def values(self, given: Given) -> dict[str, Any]:
        """What a person emptied is to be empty; what is unchanged is not sent."""
        shown = self.looking.file
        if not shown:
            raise UserError("No file was looked at yet.", "Choose one above and press Look.")
        labels, values = shown.get("labels", {}), super().values(given)
        for name, before in labels.items():
            if values[name].strip() == before:
                values[name] = ""
            elif not values[name].strip():
                values[name] = EMPTY
        return values | {"file": shown["path"]}


def _file(shown: Mapping[str, Any]) -> str:
    name = Path(shown["path"]).name
    size = f", {words.size(shown['bytes'])}" if shown["bytes"] else ""
    head = tag("h3", words.safe(f"{name}: {shown['title']}{size}"))
    layers = shown.get("layers", [])
    troubles = [complaint(state, names, len(layers)) for state, names in broken(layers).items()]
    alarms = "".join(tag("p", words.safe(trouble), "bad") for trouble in troubles)
    picture = (
        f'<img class="preview" alt="Preview" src="data:image;base64,{shown["preview"]}">'
        if shown.get("preview")
        else ""
    )
    about = tag("p", words.safe(f"{shown['use']} Recognised by {shown['why']}."))
    notes = "".join(tag("p", words.safe(note), "quiet") for note in shown["notes"])
    return tag(
        "div", picture + head + about + alarms + notes + _facts(shown) + _drawn(layers) + _more(shown), "file"
    )


def _facts(shown: Mapping[str, Any]) -> str:
    """What matters first, as a list."""
    rows = []
    if adapter := shown["adapter"]:
        rows.append(("rank", counted(adapter["ranks"]) or "none"))
        rows.append(("alpha", counted(adapter["alphas"]) or "as the rank"))
    if (prediction := shown["prediction"]) and shown["kind"] in ("model", "folder", "denoiser"):
        rows.append(("predicts", f"{prediction['type']}, {prediction['why']}"))
    rows += [(word, text) for word, text in shown["says"].items() if word not in _LEFT_OUT]
    body = "".join(tag("dt", words.safe(k)) + tag("dd", words.safe(v)) for k, v in rows)
    return tag("dl", body) if rows else ""


def _drawn(layers: list[Mapping[str, Any]]) -> str:
    if not layers:
        return ""
    listed = tag(
        "details",
        tag("summary", f"All {len(layers)} layers") + tag("div", network.table(layers), "scrolls tall"),
    )
    return tag("h4", "Where it changes the model") + network.drawn(layers) + listed


def _more(shown: Mapping[str, Any]) -> str:
    tags = "".join(
        tag("span", f"{words.safe(word)} {tag('b', f'{count:,}')}", "chip")
        for word, count in shown.get("tags", [])[:MOST_TAGS]
    )
    chips = tag("h4", "Words of its captions") + tag("p", tags, "chips") if tags else ""
    rows = {**shown.get("hashes", {}), **shown.get("metadata", {})}
    body = "".join(tag("tr", tag("th", words.safe(k)) + tag("td", words.safe(v))) for k, v in rows.items())
    title = f"Hashes and all {len(shown.get('metadata', {}))} entries of its header"
    table = tag("details", tag("summary", title) + tag("div", tag("table", body), "scrolls tall"))
    return chips + (table if rows else "")


def _told(like: Mapping[str, Any]) -> str:
    head = f"{len(like['values'])} settings, written by {like['source']}, are in the form now."
    titles = {knob.path: knob.title for knob in knobs()}
    left = [
        f"{tag('b', words.safe(titles.get(one['name'], one['name'])))} {words.safe(one['value'])}".rstrip()
        + words.safe(f": {one['why']}.")
        for one in like["left"]
    ]
    listed = tag("p", "Not taken over:") + tag("ul", words.items(left), "problems") if left else ""
    return tag("p", words.safe(head), "found") + listed
