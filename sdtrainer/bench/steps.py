"""A run's own steps, without what happens between them, and the bytes of what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ..training.loop import Loop

UPDATES, MOST_STEPS = 4, 20
"""Optimizer steps that are taken; more where loss scaling skips the first."""


class Steps(Loop):
    """Takes steps as training does."""

    def take(self) -> None:
        """Take steps until the optimizer has updated something `UPDATES` times."""
        updates = 0
        for _ in range(MOST_STEPS):
            self._train()
            updates += any(True for _ in self.state())
            if updates == UPDATES:
                return

    def losses(self, count: int) -> list[float]:
        """Take so many steps; return the loss of each, read when all are done."""
        for _ in range(count):
            self._train()
        return self._report().losses

    def state(self) -> Iterator[torch.Tensor]:
        """The optimizer's tensors."""
        for values in self.training.trained.optimizer.state.values():
            yield from (value for value in values.values() if isinstance(value, torch.Tensor))

    def tensors(self) -> Iterator[torch.Tensor]:
        """The weights and the optimizer's tensors."""
        for module in self.training.parts.modules.values():
            yield from (*module.parameters(), *module.buffers())
        yield from self.state()


def held(tensors: Iterable[torch.Tensor], device: str) -> int:
    """Bytes of the storages on a device; what several tensors share counts once."""
    own = (t.untyped_storage() for t in tensors if t.device.type == device)
    return sum({storage.data_ptr(): storage.nbytes() for storage in own}.values())
