"""What the person is working on: the settings as typed, kept in workspace/draft.toml across reloads.

Owns the draft and its preset. The values are raw: they may not yet make a valid Config.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from .. import config as configs
from .. import files, presets
from ..config import Config
from ..families import STARTER
from ..presets import Preset
from ..section import UserError, override
from ..workspace import Workspace

STARTER_PRESET = "starter"
METHOD, BASE = "method.kind", "base.path"
OWN = (
    "run.name",
    "run.note",
    "base.path",
    "data.folder",
    "data.trigger",
    "data.validation_folder",
    "sample.prompts",
    "export.title",
    "export.author",
)
"""Settings that belong to one's own pictures: presets leave them alone, and they do not count as changes."""


@dataclass
class Project:
    """`version` grows with every change, `author` is the page that made the last one."""

    workspace: Workspace
    values: dict[str, Any] = field(default_factory=dict)
    preset: str = STARTER_PRESET
    version: int = 0
    author: str = ""
    known: tuple[Preset, ...] = field(default_factory=presets.presets)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not self._file.exists():
            self.values = from_preset({}, presets.preset(STARTER_PRESET))
            return
        try:
            values = configs.parse(configs.read_text(self._file), str(self._file))
        except UserError:
            self._file.rename(self._file.with_name("draft-unreadable.toml"))
            self.values = from_preset({}, presets.preset(STARTER_PRESET))
            return
        self.preset = values.pop("preset", STARTER_PRESET)
        self.values = configs.migrate(values)

    @property
    def _file(self) -> Any:
        return self.workspace.root / "draft.toml"

    def change(self, values: Mapping[str, Any], author: str, preset: str | None = None) -> bool:
        """Take new values and write them down. Returns whether they are new."""
        with self._lock:
            preset = self.preset if preset is None else preset
            if values == self.values and preset == self.preset:
                return False
            self.values, self.preset, self.author = dict(values), preset, author
            self.version += 1
            self.workspace.root.mkdir(parents=True, exist_ok=True)
            files.write_text(self._file, tomlkit.dumps({"preset": preset} | _without_none(self.values)))
            return True

    def lay(self, changes: Mapping[str, Any], kind: str, author: str) -> bool:
        """Lay a person's changes, {dotted path: value}, over the settings; returns whether they change any.

        `kind` is the method of the form that they were made in: another method's fields are not meant. With
        pictures of one's own, what the starter said of its pictures goes.
        """
        is_other = METHOD not in changes and self.values.get("method", {}).get("kind", kind) != kind
        meant = {p: v for p, v in changes.items() if not (is_other and p.startswith("method."))}
        laid = override(self.values, meant)
        return self.change(override(laid, _outgrown(self.values, laid)), author)

    def chosen(self) -> Preset | None:
        return next((p for p in self.known if p.name == self.preset), None)

    def changes(self, config: Config) -> dict[str, tuple[Any, Any]]:
        """Return {path: (preset's value, own value)} of what was changed since the preset was picked.

        The settings of another method than the preset's are compared with that method's own.
        """
        preset = self.chosen()
        if preset is None:
            return {}
        plain = configs.build(presets.apply({}, preset))
        kinds = (plain.method.kind, config.method.kind)
        if kinds[0] != kinds[1]:
            plain = plain.model_copy(update={"method": type(config.method)()})
        found = {p: pair for p, pair in configs.changed(config, plain).items() if p not in OWN and "." in p}
        return found if kinds[0] == kinds[1] else {METHOD: kinds} | found

    def undo(self, paths: Collection[str], config: Config, author: str) -> None:
        """Give these changed settings back the preset's values; with the method come all of its settings.

        Raises:
            UserError: none of them is changed.
        """
        changes, preset = self.changes(config), self.chosen()
        undone = {path: pair[0] for path, pair in changes.items() if path in paths}
        if not undone or preset is None:
            raise UserError("This setting is as the preset has it already.", "")
        if METHOD in undone:
            undone = {path: value for path, value in undone.items() if not path.startswith("method.")}
            method = configs.build(presets.apply({}, preset)).values()["method"]
            undone |= {f"method.{name}": value for name, value in method.items()}
        self.change(override(self.values, undone), author)


def from_preset(values: Mapping[str, Any], preset: Preset, known: Sequence[Preset] = ()) -> dict[str, Any]:
    """Return the values that a preset gives to a project: its own, plus what is the person's own. That is
    the base model too, if none of the known presets names it; the starter's preset is for the starter alone.
    """
    own = {path: v for path, v in configs.flatten(values).items() if path in OWN}
    made = presets.apply(override(Config().values(), own), preset)
    base, named = own.get(BASE), {p.values.get("base", {}).get("path") for p in known}
    keeps = base and known and base not in named and preset.name != STARTER_PRESET
    return override(made, {BASE: base}) if keeps else made


def _outgrown(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what takes the place of the starter's name, prompts and validation images where its pictures
    were left for others; what a person wrote there stays.
    """
    old, new = (str(values.get("data", {}).get("folder", "")) for values in (before, after))
    if old != STARTER or new in ("", STARTER):
        return {}
    name = re.sub(r"[^\w .-]+", "-", Path(new).name).strip(" .-_")[:80]
    fresh = {"run.name": name or "my-lora", "sample.prompts": [], "data.validation_folder": ""}
    starters, now = configs.flatten(presets.preset(STARTER_PRESET).values), configs.flatten(after)
    return {path: value for path, value in fresh.items() if now.get(path) == starters[path]}


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: an empty number field is simply left out."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
