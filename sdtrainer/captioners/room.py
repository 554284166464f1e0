"""Where a captioner's model goes, and in which format: the card if it fits there, else the processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..hardware import GIB, Machine
from ..section import UserError
from . import As, Device
from .section import Settings

_BATCHES: dict[Device, int] = {"cuda": 8, "mps": 4, "cpu": 1}


@dataclass(frozen=True)
class Room:
    device: Device
    precision: As
    batch_size: int

    def words(self) -> str:
        return f"{_PLACES[self.device]}, {self.precision}"


_PLACES: dict[Device, str] = {"cuda": "on the card", "mps": "on the card", "cpu": "on the processor"}


def room(settings: Settings, memory: Callable[[As], int], machine: Machine, title: str) -> Room:
    """Choose; `memory` says what the model takes in each format, in bytes.

    Raises:
        UserError: it fits nowhere.
    """
    found = next(
        (r for r in _ways(settings, machine) if memory(r.precision) <= _free(r.device, machine)), None
    )
    if found is None:
        least = memory("int8" if settings.precision == "auto" else settings.precision)
        raise UserError(
            f"{title} needs about {least / GIB:.1f} GB of memory, and "
            f"{max(_free(device, machine) for device in _BATCHES) / GIB:.1f} GB are free.",
            "End other programs, or choose a smaller captioner.",
            "captioner",
        )
    return found


def _ways(settings: Settings, machine: Machine) -> list[Room]:
    """Return what could be done, the best first."""
    half: As = "bf16" if machine.card and machine.card.has_bf16 else "fp16"
    on_card: tuple[As, ...] = (half, "int8") if settings.precision == "auto" else (settings.precision,)
    beside: tuple[As, ...] = (
        ("fp32", "bf16", "int8") if settings.precision == "auto" else (settings.precision,)
    )
    ways = [(machine.device, kind) for kind in on_card if machine.card] + [("cpu", kind) for kind in beside]
    return [Room(device, kind, settings.batch_size or _BATCHES[device]) for device, kind in ways]


def _free(device: Device, machine: Machine) -> int:
    if device == "cpu":
        return machine.ram_free_bytes
    return machine.card.free_bytes if machine.card else 0
