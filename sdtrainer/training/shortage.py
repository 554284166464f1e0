"""Shortage: telling that the card's memory ran out, giving back what is free, and trying a leaner way."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

R = TypeVar("R")
_SIGNS = ("out of memory", "alloc_failed")
"""What torch's messages hold where a library of CUDA's, or a Mac's card, has no class of error for it."""


def ran_out(error: BaseException) -> bool:
    """Whether this error says that the card's memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def free() -> None:
    """Give the card what no tensor needs any more. Outside of any `except`: an error holds on to tensors."""
    gc.collect()
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def first_that_fits(*ways: Callable[[], R]) -> R:
    """Return what the first way gives that does not run out of memory; before each other one, memory is
    freed.

    Raises: the OutOfMemoryError of the last.
    """
    for way in ways[:-1]:
        try:
            return way()
        except RuntimeError as error:
            if not ran_out(error):
                raise
        free()
    return ways[-1]()
