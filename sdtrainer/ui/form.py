"""The form: every setting as one component, generated from its declaration.

Owns the way from a component's value to a setting's and back, the red mark on a wrong field, and which fields
belong to the chosen method. Knows no particular setting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import floor, log10
from types import UnionType
from typing import Any, Literal, get_args, get_origin
from urllib.parse import unquote

import gradio as gr
from gradio.components import Component

from ..config import knobs
from ..methods import METHODS, method_of
from ..section import Knob

Key = tuple[str, str, str]
Updates = dict[Any, Any]
Shape = Literal["choice", "choices", "switch", "whole", "number", "lines", "sizes", "numbers", "text"]
_SHAPES: Mapping[Any, Shape] = {bool: "switch", int: "whole", float: "number"}


@dataclass(frozen=True)
class Field:
    """One setting on the page."""

    knob: Knob
    widget: Component

    def read(self, shown: Any) -> Any:
        """Return the setting's value from what the widget holds."""
        kind = shape(self.knob)
        if kind == "lines":
            return [line.strip() for line in (shown or "").splitlines() if line.strip()]
        if kind == "sizes":
            return _sizes(shown or "")
        if kind == "numbers":
            return _numbers(str(shown or ""))
        if self.knob.is_path and isinstance(shown, str):
            return plain_path(shown)
        return "" if shown is None and kind == "text" else shown

    def show(self, value: Any) -> Any:
        """Return what the widget holds for a value."""
        kind = shape(self.knob)
        if kind == "lines":
            return "\n".join(map(str, value)) if isinstance(value, list) else value
        if kind in ("sizes", "numbers"):
            return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in _listed(value))
        return value


class Form:
    """All settings. Place them while building the page; read and fill them afterwards."""

    def __init__(self) -> None:
        self.fields: dict[Key, Field] = {}
        self.kind: gr.Radio | None = None
        self._groups: dict[str, list[gr.Column]] = {kind: [] for kind in METHODS}
        self._knobs = {k.key: k for k in knobs()}

    def place(self, path: str, **looks: Any) -> Component:
        """Put one setting here."""
        section, name = path.split(".")
        return self._place(self._knobs[(section, "", name)], **looks)

    def place_kind(self) -> gr.Radio:
        """Put the chosen method here, unseen; its settings follow wherever `place_level` is called."""
        choices = [(method_of(kind).title, kind) for kind in METHODS]
        self.kind = gr.Radio(choices, value=METHODS[0], label="Method", visible="hidden", elem_id="kind")
        return self.kind

    def place_level(self, sections: Iterable[str], level: Literal["basic", "advanced"]) -> None:
        """Put the settings of these sections here that have no place yet, each method's in its own group."""
        waiting = [k for k in self._knobs.values() if k.section in sections and k.level == level]
        waiting = [k for k in waiting if k.key not in self.fields]
        for kind in METHODS:
            if found := [k for k in waiting if k.kind == kind]:
                with gr.Column(visible=kind == METHODS[0], min_width=0, elem_classes="kind") as group:
                    self._grid(found)
                self._groups[kind].append(group)
        if found := [k for k in waiting if not k.kind]:
            self._grid(found)

    @property
    def components(self) -> set[Component]:
        assert self.kind is not None and self.fields.keys() == self._knobs.keys(), "a setting has no place"
        return {self.kind, *(f.widget for f in self.fields.values())}

    @property
    def groups(self) -> list[Any]:
        """The groups of settings of one method each."""
        return [group for groups in self._groups.values() for group in groups]

    def edits(self) -> list[Callable[..., Any]]:
        """The events of a person changing a setting. Paths count when they are left, not at each letter."""
        assert self.kind
        events: list[Callable[..., Any]] = [self.kind.input]
        for field in self.fields.values():
            widget = field.widget
            events += [widget.blur, widget.submit] if field.knob.is_path else [widget.input]
        return events

    def read(self, given: Mapping[Any, Any]) -> dict[str, Any]:
        """Return nested values from what the components hold. Settings of other methods are left out."""
        values: dict[str, dict[str, Any]] = {"method": self.read_kind(given, given[self.kind])}
        for field in self.fields.values():
            if not field.knob.kind:
                values.setdefault(field.knob.section, {})[field.knob.name] = field.read(given[field.widget])
        return values

    def read_kind(self, given: Mapping[Any, Any], kind: str) -> dict[str, Any]:
        """Return what the components hold for one method, chosen or not."""
        fields = [f for f in self.fields.values() if f.knob.kind == kind]
        return {"kind": kind} | {f.knob.name: f.read(given[f.widget]) for f in fields}

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return nested values as the form shows them: whole, with defaults for what is left out."""
        kind = values.get("method", {}).get("kind", METHODS[0])
        whole: dict[str, dict[str, Any]] = {"method": {"kind": kind}}
        for field in self.fields.values():
            if field.knob.kind in ("", kind):
                section = values.get(field.knob.section, {})
                value = section.get(field.knob.name, field.knob.default)
                whole.setdefault(field.knob.section, {})[field.knob.name] = value
        return whole

    def fill(self, values: Mapping[str, Any], paths: Collection[str] | None = None) -> Updates:
        """Return the updates that show nested values, right or not: all, or those of `paths`. Other methods'
        fields stay.
        """
        whole = self.complete(values)
        kind = whole["method"]["kind"]
        shown = [
            f
            for f in self.fields.values()
            if f.knob.kind in ("", kind) and (paths is None or f.knob.path in paths)
        ]
        fields = {f.widget: f.show(whole[f.knob.section][f.knob.name]) for f in shown}
        return {self.kind: kind} | self.show_kind(kind) | fields

    def show_kind(self, kind: str) -> Updates:
        return {group: gr.update(visible=k == kind) for k, groups in self._groups.items() for group in groups}

    def explain(self, notes: Mapping[str, str], paths: Iterable[str], kind: str) -> Updates:
        """Put a note behind the help of each of these settings, or take it away again."""
        fields = {path: self.field(path, kind) for path in paths}
        return {
            field.widget: gr.update(info=f"{help_of(field.knob)} {notes.get(path, '')}".strip())
            for path, field in fields.items()
            if field
        }

    def widgets(self, paths: Iterable[str]) -> list[Component]:
        """Return the components of settings that every method has."""
        return [self.fields[(*path.split(".")[:1], "", *path.split(".")[1:])].widget for path in paths]

    def mark(self, path: str, sentence: str, kind: str, marked: str) -> Updates:
        """Turn the field of `path` red with the sentence under it, and the field `marked` before back."""
        updates: Updates = {}
        if before := self.field(marked, kind):
            updates[before.widget] = gr.update(info=help_of(before.knob), elem_classes=_classes(before.knob))
        if wrong := self.field(path, kind):
            updates[wrong.widget] = gr.update(info=sentence, elem_classes=[*_classes(wrong.knob), "wrong"])
        return updates

    def field(self, path: str, kind: str) -> Field | None:
        section, _, name = path.partition(".")
        return self.fields.get((section, "", name)) or self.fields.get((section, kind, name))

    def _grid(self, found: list[Knob]) -> None:
        with gr.Row(elem_classes="grid"):
            for knob in found:
                self._place(knob)

    def _place(self, knob: Knob, **looks: Any) -> Component:
        self.fields[knob.key] = field = field_of(knob, looks)
        return field.widget


def field_of(knob: Knob, looks: Mapping[str, Any]) -> Field:
    """Make the component of a setting here."""
    field = Field(knob, _widget(knob, dict(looks)))
    if shape(knob) in ("lines", "sizes", "numbers"):
        field.widget.value = field.show(knob.default)
    return field


def plain_path(text: str) -> str:
    """Return a pasted path as the disk knows it: file managers copy it in quotes, or as file:///home/a%20b."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    if not text.startswith("file://"):
        return text
    path = unquote(text.removeprefix("file://").partition("\n")[0].strip())
    return path[1:] if path[2:3] == ":" else path  # /C:/Users is C:/Users


def merged(first: Updates, then: Updates) -> Updates:
    """Return both; a component in both gets the value of one and the looks of the other."""
    both = {part: {**_update(first[part]), **_update(then[part])} for part in first.keys() & then.keys()}
    return first | then | both


def shape(knob: Knob) -> Shape:
    """Say which kind of widget a setting needs, from its type."""
    kind = knob.annotation
    if get_origin(kind) is Literal:
        return "choice"
    if get_origin(kind) is list:
        if get_args(kind)[0] is float:
            return "numbers"
        return "choices" if get_origin(get_args(kind)[0]) is Literal else "lines"
    if isinstance(kind, UnionType):
        return "sizes"
    return _SHAPES.get(kind, "text")


def label_of(knob: Knob) -> str:
    return f"{knob.title} ({knob.unit})" if knob.unit else knob.title


def help_of(knob: Knob) -> str:
    """Return what a field says of its setting."""
    return f"{knob.help} One per line." if shape(knob) == "lines" else knob.help


def _widget(knob: Knob, looks: dict[str, Any]) -> Component:
    words: dict[str, Any] = {
        "label": label_of(knob),
        "info": help_of(knob),
        "value": knob.default,
        "min_width": 210,
        "elem_id": "-".join(filter(None, ("knob", *knob.key))),
        "elem_classes": _classes(knob),
    } | looks
    match shape(knob):
        case "choice":
            few = len(knob.choices) <= 3 and sum(len(str(c)) for c in knob.choices) <= 24
            return (gr.Radio if few else gr.Dropdown)(list(knob.choices), **words)
        case "choices":
            return gr.CheckboxGroup(list(get_args(get_args(knob.annotation)[0])), **words)
        case "switch":
            return gr.Checkbox(**words)
        case "whole":
            return gr.Number(precision=0, **words)
        case "number":
            return gr.Number(step=_STEPS.get(knob.name) or _step(knob.default), **words)
        case "lines":
            return gr.Textbox(lines=knob.lines, max_lines=12, **(words | {"value": ""}))
        case "sizes" | "numbers":
            return gr.Textbox(**(words | {"value": ""}))
        case _:
            return gr.Textbox(lines=knob.lines, max_lines=max(knob.lines, 1), **words)


def _classes(knob: Knob) -> list[str]:
    """A pasted path is taken at once: the page's script knows such fields by this."""
    return ["path"] if knob.is_path else []


def _update(sent: Any) -> dict[str, Any]:
    return sent if isinstance(sent, dict) and "__type__" in sent else gr.update(value=sent)


_STEPS = {"lr": 1e-5, "text_encoder_lr": 1e-5}
"""Where the default of 0 says nothing of what is usual."""


def _step(default: float) -> float:
    return 10.0 ** floor(log10(default)) if 0 < default < 1 else 0.1


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _numbers(text: str) -> list[Any]:
    """Read "0, 0.5, 1"; what is no number is handed on as it is, for the setting to refuse."""
    parts = text.replace("[", " ").replace("]", " ").replace(",", " ").split()
    return [_number(part) for part in parts]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _sizes(text: str) -> int | list[int] | str:
    """Read "512" or "512, 768"; anything else is handed on as it is, for the setting to refuse."""
    parts = [part for part in text.replace("[", " ").replace("]", " ").replace(",", " ").split()]
    if not parts or not all(part.isdecimal() for part in parts):
        return text
    return int(parts[0]) if len(parts) == 1 else [int(part) for part in parts]
