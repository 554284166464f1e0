"""Guard: sees a loss or gradient norm that is no number, without making the card wait for the processor."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch


class Guard:
    """`watch` queues a step's verdict; `tripped` reads old ones, alike in every process; `settle` waits for
    all of them.

    Whatever is kept for later (snapshot, checkpoint, sample, export) is made only after `settle` found
    nothing.
    """

    def __init__(self, device: str) -> None:
        self._is_cuda = device == "cuda"
        self._pending: deque[tuple[int, torch.Tensor, Any]] = deque()

    def watch(self, step: int, *values: torch.Tensor) -> None:
        is_bad = ~torch.stack([v.detach().float().reshape(()) for v in values]).isfinite().all()
        if not self._is_cuda:
            self._pending.append((step, is_bad, None))
            return
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(is_bad, non_blocking=True)
        arrival = torch.cuda.Event()
        arrival.record()
        self._pending.append((step, host, arrival))

    def tripped(self, before: int) -> int | None:
        """Return the first bad step among those earlier than step `before`; they are long done, so nothing
        waits.
        """
        while self._pending and (not self._is_cuda or self._pending[0][0] < before):
            step, is_bad, arrival = self._pending.popleft()
            if arrival is not None:
                arrival.synchronize()
            if bool(is_bad):
                return step
        return None

    def settle(self) -> int | None:
        """Wait for every verdict; return the first bad step."""
        return self.tripped(before=2**62)

    def forget(self) -> None:
        self._pending.clear()
