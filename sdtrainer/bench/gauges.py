"""Gauges: the most bytes held since a moment, as the card's allocator says or as storages are counted."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from .. import hardware
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


def peak_of(work: Callable[[], object], kept: Iterable[torch.Tensor], device: str) -> Peak:
    """Do some work and return the most that is held meanwhile: by the card, or else `kept` tensors that were
    there before and what the work makes.
    """
    known = list(kept)
    with of(device, known) as gauge:
        gauge.begin()
        work()
        made = gauge.peak()
    before = 0 if device == "cuda" else held(known, device)
    return Peak(made.allocated + before, made.reserved + before)


def held(tensors: Iterable[torch.Tensor], device: str) -> int:
    """Bytes of the storages on a device; what several tensors share counts once."""
    own = (t.untyped_storage() for t in tensors if t.device.type == device)
    return sum({storage.data_ptr(): storage.nbytes() for storage in own}.values())


def free_bytes(device: str) -> int:
    """What is free on the card before this process uses it, as the driver says; 0 without a card."""
    card = hardware.quick().card if device == "cuda" else None
    return card.free_bytes if card else 0


def context_bytes(device: str, free_before: int) -> int:
    """What CUDA holds beside torch, by what is no longer free; 0 where that is not known."""
    if device != "cuda" or not free_before:
        return 0
    return max(0, free_before - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved())
