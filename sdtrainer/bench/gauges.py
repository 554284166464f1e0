"""Gauges: the most bytes held since a moment, as the card's allocator says or as storages are counted."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from ..trace.live import LiveBytes


@dataclass(frozen=True)
class Peak:
    """Bytes. `reserved` is what torch took from the card for it; the same as `allocated` without a card."""

    allocated: int
    reserved: int


class Gauge(Protocol):
    def begin(self) -> None:
        """Forget what was held before; what is held now counts."""

    def peak(self) -> Peak:
        """Return the most that was held since."""


class _Card:
    def begin(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> Peak:
        torch.cuda.synchronize()
        return Peak(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())


class _Counter:
    """Counts the storages made since it is on."""

    def __init__(self, live: LiveBytes) -> None:
        self._live = live

    def begin(self) -> None:
        gc.collect()
        self._live.moments = [("begin", self._live.now)]

    def peak(self) -> Peak:
        most = max(held for _, held in self._live.moments)
        return Peak(most, most)


@contextlib.contextmanager
def of(device: str, known: Iterable[torch.Tensor] = ()) -> Iterator[Gauge]:
    """Give the gauge of a device. Without a card only what is made inside counts, and nothing `known`."""
    if device == "cuda":
        yield _Card()
        return
    with LiveBytes(known) as live:
        yield _Counter(live)
