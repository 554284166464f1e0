"""The methods of fine-tuning, in the order in which the page shows them."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..seams import Method

METHODS = ("lora",)


@cache
def method_of(kind: str) -> Method:
    """Return the method of that kind."""
    return importlib.import_module(f".{kind}", __package__).METHOD


def sections() -> tuple[type, ...]:
    """Return the settings classes of all methods, for the union in Config."""
    return tuple(method_of(kind).Section for kind in METHODS)
