"""Spill: sees that the driver moved a run's memory into main memory, which is no error but many times slower.

On Windows, and in Linux inside of it, drivers do so instead of saying that the card's memory ran out.
"""

from __future__ import annotations

from collections import deque
from statistics import median

JUMP = 3.0
"""A step that takes so many times the usual time has jumped."""
NEARLY_FULL = 0.9
"""The part of the card's memory from which on a jump is put down to it."""
WARNING = (
    "The card's memory is full, and the driver has moved a part of this run into main memory, which makes it "
    "many times slower. Close other programs that use the card, or start again with a smaller resolution or "
    "batch, or with gradient checkpointing."
)


class Spill:
    """Looks at what a run reports, for a card of `total` bytes, and warns once."""

    def __init__(self, total: int) -> None:
        self._total, self._is_said = total, False
        self._seconds: deque[float] = deque(maxlen=200)

    def look(self, seconds_per_step: float, reserved: int) -> str:
        """Return the warning when it is due, else an empty text."""
        if self._is_said or not (self._exceeds(reserved) or self._jumped(seconds_per_step, reserved)):
            if seconds_per_step:
                self._seconds.append(seconds_per_step)
            return ""
        self._is_said = True
        return WARNING

    def forget(self) -> None:
        """Steps will take another time from now on."""
        self._seconds.clear()

    def _exceeds(self, reserved: int) -> bool:
        return reserved > self._total

    def _jumped(self, seconds: float, reserved: int) -> bool:
        known = len(self._seconds) >= 5 and reserved > NEARLY_FULL * self._total
        return known and seconds > JUMP * median(self._seconds)
