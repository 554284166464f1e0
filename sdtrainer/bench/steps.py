"""A run's own steps, without what happens between them, and the bytes of what they hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..training.loop import Loop

UPDATES, MOST_STEPS = 4, 20
"""Optimizer steps that are taken; more where loss scaling skips the first."""


class Steps(Loop):
    """Takes steps as training does."""

    def take(self, wanted: int = UPDATES) -> None:
        """Take steps until the optimizer has updated something so many times."""
        updates = 0
        for _ in range(MOST_STEPS):
            self._train()
            updates += any(True for _ in self.state())
            if updates == wanted:
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

    def weights(self) -> Iterator[torch.Tensor]:
        """The base's tensors, and what the method put beside them."""
        for module in self.training.parts.modules.values():
            yield from (*module.parameters(), *module.buffers())

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that stays from step to step: weights, the optimizer's tensors, and the running average."""
        yield from self.weights()
        yield from self.state()
        if self.training.trained.average is not None:
            yield from self.training.trained.average.shadow_params
