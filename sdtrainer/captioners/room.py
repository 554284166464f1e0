"""Where a captioner's model goes, and in which format: the card if it fits there, else the processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..hardware import GIB, Machine
from ..seams import Precision
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


def room(
    settings: Settings, memory: Callable[[As], int], machine: Machine, title: str, is_wide: bool = False
) -> Room:
    """Choose; `memory` says what the model takes in each format, in bytes. `is_wide` as in `Captioner`.

    Raises:
        UserError: it fits nowhere.
    """
    ways = _ways(settings, machine, is_wide)
    found = next((way for way in ways if memory(way.precision) <= _free(way.device, machine)), None)
    if found is None:
        least = memory("int8" if settings.precision == "auto" else settings.precision)
        raise UserError(
            f"{title} needs about {least / GIB:.1f} GB of memory, and "
            f"{max(_free(device, machine) for device in _BATCHES) / GIB:.1f} GB are free.",
            "End other programs, or choose a smaller captioner.",
            "captioner",
        )
    return found


def quickest(device: Device, machine: Machine, is_wide: bool) -> Precision:
    """Return the format in which a model is fastest there, if that has room for its numbers.

    BLIP large, one core of an EPYC with instructions for bf16: 5 s a picture in bf16, 10 s in fp32.
    """
    if device == "cpu":
        return "bf16" if machine.processor_has_bf16 else "fp32"
    return "bf16" if is_wide or (machine.card and machine.card.has_bf16) else "fp16"


def _ways(settings: Settings, machine: Machine, is_wide: bool) -> list[Room]:
    """Return what could be done, the best first."""
    on_card: tuple[As, ...] = (quickest(machine.device, machine, is_wide), "int8")
    beside: tuple[As, ...] = (quickest("cpu", machine, is_wide), "bf16", "int8")
    if settings.precision != "auto":
        on_card = beside = (settings.precision,)
    ways = [(machine.device, kind) for kind in on_card if machine.card] + [("cpu", kind) for kind in beside]
    return [Room(device, kind, settings.batch_size or _BATCHES[device]) for device, kind in ways]


def _free(device: Device, machine: Machine) -> int:
    if device == "cpu":
        return machine.ram_free_bytes
    return machine.card.free_bytes if machine.card else 0
