"""A learning-rate schedule that follows the clock instead of a step count, so that a stage ends on time."""

from __future__ import annotations

import math
import time

import torch


class Pace:
    """How far a stage of so many seconds has come, and the share of the peak rate that is due now."""

    def __init__(self, seconds: float, already_spent: float, warm_up: float, decay_from: float) -> None:
        self._seconds = seconds
        self._started = time.monotonic() - already_spent
        self._warm_up = warm_up
        self._decay_from = decay_from

    def spent(self) -> float:
        """Seconds used so far, earlier runs of the same stage included."""
        return time.monotonic() - self._started

    def over(self) -> bool:
        """Whether the time is up."""
        return self.spent() >= self._seconds

    def progress(self) -> float:
        """The share of the time that is used, 0..1."""
        return min(1.0, self.spent() / self._seconds)

    def rate(self) -> float:
        """Linear warm-up, a plateau, then a cosine down to a hundredth."""
        progress = self.progress()
        if progress < self._warm_up:
            return max(0.01, progress / self._warm_up)
        if progress < self._decay_from:
            return 1.0
        fall = (progress - self._decay_from) / (1 - self._decay_from)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall))

    def set_rate(self, optimizer: torch.optim.Optimizer, peak: float) -> None:
        """Give the optimizer the learning rate that is due now."""
        for group in optimizer.param_groups:
            group["lr"] = peak * self.rate()
