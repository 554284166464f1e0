"""The families of base models, in the order in which they are asked to recognise a path."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..section import UserError
from .section import STARTER, BaseSection

if TYPE_CHECKING:
    from ..seams import Facts, Family

FAMILIES = ("sd", "sdxl")
ASSETS = Path(__file__).parents[2] / "assets"

__all__ = ["ASSETS", "FAMILIES", "STARTER", "BaseSection", "family_of", "recognise"]


@cache
def load_family(name: str) -> Family:
    return importlib.import_module(f".{name}", __package__).FAMILY


def family_of(facts: Facts) -> Family:
    """Return the family that recognised these facts."""
    return load_family(facts.family)


def recognise(section: BaseSection) -> Facts:
    """Say what the base model is, without loading weights.

    Raises:
        UserError: nothing known lies at the path.
    """
    path = str(ASSETS / "starter-model") if section.path == STARTER else section.path
    for name in FAMILIES:
        facts = load_family(name).recognise(path)
        if facts is not None:
            return facts
    raise UserError(
        f"Base model: nothing that can be trained was found at '{section.path}'.",
        "Give a diffusers folder (with model_index.json), a .safetensors file of a whole model, or a hub id "
        "such as owner/name.",
        "base.path",
    )
