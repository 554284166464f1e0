"""The methods of fine-tuning, in the order in which the page shows them."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..section import UserError

if TYPE_CHECKING:
    from ..seams import Method

METHODS = ("lora", "loha", "lokr", "full", "textual_inversion", "hypernetwork")


@cache
def method_of(kind: str) -> Method:
    """Return the method of that kind."""
    return importlib.import_module(f".{kind}", __package__).METHOD


def recognise(file: Path) -> Method:
    """Return the method that an exported file or folder is of. Raises UserError if none reads it."""
    for kind in METHODS:
        if method_of(kind).reads(file):
            return method_of(kind)
    raise UserError(
        f"{file.name} is of no method known here.",
        "Choose a file that sdtrainer or another trainer exported.",
    )


def sections() -> tuple[type, ...]:
    """Return the settings classes of all methods, for the union in Config."""
    return tuple(method_of(kind).Section for kind in METHODS)
