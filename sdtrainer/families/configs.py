"""The small files that say what a base model is: index and configs of a diffusers folder or a hub repository.

Reads JSON alone, no weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..formats.diffusers_folder import INDEX, Component
from ..section import UserError
from . import remote

SCHEDULER = "scheduler"
_SCHEDULER_FILE = "scheduler/scheduler_config.json"
_Read = Callable[[str], dict[str, Any] | None]


@dataclass(frozen=True)
class Place:
    """A folder or a repository of the hub, and how its files are read; `index` is its model_index.json, empty
    if there is none.
    """

    path: str
    layout: Literal["folder", "hub"]
    index: Mapping[str, Any]
    read: _Read
    has: Callable[[str], bool]

    @property
    def pipeline(self) -> str:
        """The class of pipeline that the model was made for; '' if it does not say."""
        return str(self.index.get("_class_name", ""))


@dataclass(frozen=True)
class Found:
    """A base model with the configs of its parts and scheduler; `why` ends a sentence for the user. Where it
    is undecided what the model predicts, the scheduler's config says what is likely.
    """

    path: str
    layout: Literal["folder", "hub", "file"]
    configs: Mapping[str, Any]
    why: str
    is_undecided: bool = False


def place_of(path: str) -> Place | None:
    """Return what lies at a path or hub id, or None if it is no folder. Its index may be missing.

    Raises:
        UserError: the hub cannot be reached, or does not give it out.
    """
    layout: Literal["folder", "hub"] = "hub" if remote.is_id(path) else "folder"
    folder = remote.described(path) if layout == "hub" else Path(path).expanduser()
    if folder is None or not folder.is_dir():
        return None
    index = _read_json(folder / INDEX) or {}
    return Place(
        path, layout, index, lambda name: _read_json(folder / name), lambda name: (folder / name).exists()
    )


def read(place: Place, components: Mapping[str, Component]) -> dict[str, Any]:
    """Return the config of each part and of the scheduler.

    Raises:
        UserError: one is missing; it is named.
    """
    names = {part: f"{c.folder}/config.json" for part, c in components.items()} | {SCHEDULER: _SCHEDULER_FILE}
    found = {part: place.read(name) for part, name in names.items()}
    missing = [names[part] for part, values in found.items() if values is None]
    if missing:
        raise UserError(
            f"Base model: '{place.path}' lacks {', '.join(missing)}.",
            "Choose a complete diffusers folder.",
            "base.path",
        )
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"Base model: {path} is not valid JSON.", "Restore this file of the model.", "base.path"
        ) from error
