"""A tool on the page: a chore whose files are chosen from lists, and what it made, with a link."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from ... import files
from ...chores import Answer
from ...section import fields
from ...workspace import RunFolder
from .. import words
from ..chore import ChoreCard, Found
from ..desk import Desk
from ..file_lists import FileField, Role, file_field
from ..listen import Given
from ..words import tag
from . import kept

INTO_TOOLS = "It is in the lists of the other tools, too."


class ToolCard(ChoreCard):
    """`files` are the settings that name files, with what they are for; `about` says what the tool does."""

    def __init__(
        self,
        desk: Desk,
        verb: str,
        title: str,
        start: str,
        about: str,
        files: Mapping[str, Role],
        fixed: tuple[str, ...] = (),
        found: Found | None = None,
    ) -> None:
        super().__init__(desk, verb, start, fixed, found or self.made)
        self.title, self.about, self._roles = title, about, files

    def build(self) -> None:
        gr.HTML(tag("p", words.safe(self.about), "quiet"))
        super().build()

    def place(self, level: str) -> None:
        """Files come first, however rarely one is needed."""
        if level == "basic":
            with gr.Row(elem_classes="grid"):
                for name in self._roles:
                    self.place_one(name)
        super().place(level)

    def values(self, given: Given) -> dict[str, Any]:
        """A base model that is left open is that of the run which made the file."""
        values = super().values(given)
        if values.get("base") == "" and "base" in self._roles:
            values["base"] = self._base_of(values)
        return values

    def _base_of(self, values: Mapping[str, Any]) -> str:
        given = [values[name] for name, role in self._roles.items() if role != "model"]
        paths = [Path(path) for one in given for path in (one if isinstance(one, list) else [one]) if path]
        for run in (RunFolder(path.parents[1]) for path in paths if len(path.parents) > 1):
            if run.path.parent == self.desk.workspace.runs and run.config_file.is_file():
                return self.desk.config_of(run).base.path
        return ""

    def place_one(self, name: str, **looks: Any) -> Any:
        knob = fields(self.chore.settings)[name]
        if name not in self._roles:
            return super().place_one(name, **looks)
        place = {"elem_id": f"{self.chore.verb}-{name.replace('_', '-')}"} | looks
        self.fields[name] = field = file_field(knob, self._roles[name], place)
        return field.widget

    @property
    def lists(self) -> list[FileField]:
        return [field for field in self.fields.values() if isinstance(field, FileField)]

    @property
    def stamp(self) -> object:
        """What its news depend on."""
        errands, verb = self.desk.errands, self.chore.verb
        return (self.doing, errands.ended.get(verb, ""), id(errands.found.get(verb)))

    def wire_all(self, filled: Any) -> None:
        """`filled` shows changed settings after an action."""
        self.wire()

    def show_all(self, given: Given) -> dict[Any, Any]:
        """Bring everything of the card up to date."""
        return self.show()

    def made(self, answer: Answer) -> str:
        """Say what was found, then what was made."""
        *lines, last = self.chore.told(answer)
        told = "".join(tag("p", words.safe(line)) for line in lines)
        drawn = kept.bars(answer["layers"]) if isinstance(answer.get("layers"), list) else ""
        return (
            told + drawn + link(self.desk, Path(last))
            if answer.get("path") == last
            else told + tag("p", words.safe(last))
        )


def link(desk: Desk, path: Path) -> str:
    """Link a file or folder that was made, with its size; outside the workspace its path alone."""
    if not path.exists():
        return tag("p", words.safe(f"{path} is no longer there."), "quiet")
    size = tag("span", f" {words.size(files.size_of(path))}", "quiet")
    where = tag("p", f"{words.safe(path)}. {INTO_TOOLS}", "quiet")
    return tag("p", _anchor(desk, path) + size, "made") + where


def _anchor(desk: Desk, path: Path) -> str:
    root = desk.workspace.root.resolve()
    if not path.resolve().is_relative_to(root):
        return tag("b", words.safe(path.name))
    name = f"{path.name}.zip" if path.is_dir() else path.name
    href = f"made/{quote(path.resolve().relative_to(root).as_posix())}"
    return tag("a", words.safe(f"Download {path.name}"), href=href, download=name)
