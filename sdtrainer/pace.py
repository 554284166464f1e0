"""Pace: when to speak again, and how long it still takes. The one clock of a run."""

from __future__ import annotations

import time

TALK_EVERY = 0.25


class Pace:
    """`is_due` is true at most four times a second; a rate is the average of about the last 40 units."""

    def __init__(self) -> None:
        self._last_talk = self._began = self._last_tick = time.monotonic()
        self._seconds_per_unit: float | None = None

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_talk < TALK_EVERY:
            return False
        self._last_talk = now
        return True

    def tick(self) -> None:
        """One unit is done."""
        now = time.monotonic()
        seconds, self._last_tick = now - self._last_tick, now
        old = self._seconds_per_unit
        self._seconds_per_unit = seconds if old is None else old + 0.025 * (seconds - old)

    def rest(self) -> None:
        """Time since the last tick went elsewhere: do not count it."""
        self._last_tick = time.monotonic()

    @property
    def seconds_per_unit(self) -> float:
        return self._seconds_per_unit or 0.0

    def seconds_left(self, done: int, total: int) -> float | None:
        """Estimate from the average since the beginning, or None before anything is done."""
        return (time.monotonic() - self._began) / done * (total - done) if done else None
