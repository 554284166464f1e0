"""Presets: partial configs in presets/*.toml, with what they are for, their source and what they promise.

What only saves memory (8-bit optimizer, checkpointing) is left to "auto": it is chosen for the card at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import config as configs
from .section import UserError, override
from .workspace import PROJECT

FOLDER = PROJECT / "presets"
_FAMILIES = {"sd15": "sd", "sdxl": "sdxl", "sd35": "sd3"}
_WORDS = ("title", "about", "source", "promises")


@dataclass(frozen=True)
class Preset:
    """`promises` are what a run of it costs: {"vram_gib": 8, "minutes": 30, "card": "..."}."""

    name: str
    title: str
    about: str
    source: str
    values: Mapping[str, Any]
    promises: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The family of base models that it is made for, as its name says; '' for the starter."""
        return next((family for start, family in _FAMILIES.items() if self.name.startswith(start)), "")


def presets() -> tuple[Preset, ...]:
    """Return the shipped presets, by file name."""
    return tuple(_read(path) for path in sorted(FOLDER.glob("*.toml")))


def preset(name: str) -> Preset:
    """Return one preset. Raises UserError naming those there are."""
    known = {p.name: p for p in presets()}
    if name not in known:
        raise UserError(f"There is no preset '{name}'.", f"Choose one of {', '.join(known)}.")
    return known[name]


def apply(values: Mapping[str, Any], chosen: Preset) -> dict[str, Any]:
    """Lay a preset over nested values; one that changes a section's kind drops that section's old fields."""
    return override(values, configs.flatten(chosen.values))


def _read(path: Path) -> Preset:
    text = configs.read_text(path)
    values = configs.parse(text, str(path))
    words = {word: values.pop(word, {} if word == "promises" else "") for word in _WORDS}
    configs.build(values, str(path), text)
    return Preset(name=path.stem, values=values, **words)
