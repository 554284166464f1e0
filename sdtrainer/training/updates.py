"""Updates: how gradients change the trained weights, all at once, one after another, or within the backward
pass.

Weights kept as bf16 are updated one at a time on a temporary fp32 copy, which is rounded up or down by chance
(stochastic rounding: Gupta et al. 2015, arXiv 1502.02551, section 3; for bf16 weights: Zamirai et al. 2020,
arXiv 2010.06192). Rounded to the nearest, changes below 1/512 of a weight would be lost every time; like this
they are right in the mean. The optimizer sees fp32 alone, so its state is that of fp32 weights.

With fused backward each weight is updated in the hook that its finished gradient calls, and the gradient is
given back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..seeds import seed_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..plan import Plan
    from .checkpoint import Trained

_LOWER_HALF = 1 << 16
"""fp32 is bf16 and 16 bits more."""


class Updates:
    """The optimizer's steps of a run. `begin` one, go backward, `finish` it."""

    def __init__(self, trained: Trained, plan: Plan) -> None:
        self._accelerator: Accelerator = trained.accelerator
        self._optimizer: Any = trained.optimizer
        self._weights = trained.weights()
        self._names = {weight: name for name, weight in self._weights.items()}
        groups = enumerate(trained.optimizer.param_groups)
        self._groups = {self._names[weight]: number for number, own in groups for weight in own["params"]}
        self._seed, self._step = plan.config.train.seed, 0
        self._max_norm = plan.config.optim.max_grad_norm or math.inf
        self._is_fused, self._is_whole = plan.fused_backward, plan.trained_as == "fp32"
        self._norms: dict[str, torch.Tensor] = {}
        if self._is_fused:
            for weight in self._weights.values():
                weight.register_post_accumulate_grad_hook(self._arrived)

    def begin(self, step: int) -> None:
        self._step = step

    def finish(self) -> torch.Tensor:
        """Update what is not updated yet, free all gradients and return their norm, before clipping."""
        if self._is_fused:
            norms = [self._norms[name] for name in self._weights if name in self._norms]
            self._norms = {}
            return torch.linalg.vector_norm(torch.stack(norms))
        norm = self._accelerator.clip_grad_norm_(list(self._weights.values()), self._max_norm)
        if self._is_whole:
            self._optimizer.step()
        else:
            for weight in self._weights.values():
                if weight.grad is not None:
                    self._update(weight)
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _arrived(self, weight: torch.nn.Parameter) -> None:
        """The gradient of this weight is whole."""
        assert weight.grad is not None
        self._norms[self._names[weight]] = torch.linalg.vector_norm(weight.grad, dtype=torch.float32)
        self._update(weight)
        weight.grad = None

    def _update(self, weight: torch.nn.Parameter) -> None:
        name = self._names[weight]
        seed = seed_of(self._seed, "rounding", self._step, name)
        update(self._optimizer.optimizer, self._groups[name], weight, seed)


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer, group: int, weight: torch.nn.Parameter, seed: int) -> None:
    """Take the optimizer's step for one of its parameters, which is in its group of this number.

    A weight that is not fp32 is one for the optimizer, and its gradient is given back; `seed` decides how the
    result is rounded.
    """
    if weight.dtype is torch.float32:
        _step_alone(optimizer, group, weight)
        return
    assert weight.grad is not None
    kept, gradient = weight.data, weight.grad.float()
    weight.grad = None
    weight.data = kept.float()
    weight.grad = gradient
    del gradient
    try:
        _step_alone(optimizer, group, weight)
        updated = weight.data
    finally:
        weight.grad = None
        weight.data = kept
    weight.copy_(rounded(updated, torch.Generator(weight.device).manual_seed(seed)))


def _step_alone(optimizer: torch.optim.Optimizer, group: int, weight: torch.nn.Parameter) -> None:
    """Narrow the optimizer to one parameter for a step; its state, which it keeps by parameter, stays."""
    groups = optimizer.param_groups
    optimizer.param_groups = [{**groups[group], "params": [weight]}]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups


def rounded(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round fp32 values to numbers of bf16, in place: up as often as the lower half of the bits says.

    Adding a random number below 2**16 carries into the upper half with just that chance. Numbers of bf16,
    infinity and NaN stay as they are.
    """
    bits = values.view(torch.int32)
    bits.add_(torch.empty_like(bits).random_(0, _LOWER_HALF, generator=generator))
    bits.bitwise_and_(-_LOWER_HALF)
    return values


@contextlib.contextmanager
def as_if_fp32(weights: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Have an optimizer take over its state unrounded: torch casts it to the format of the weights."""
    kept = [weight.data for weight in weights]
    for weight in weights:
        weight.data = torch.empty(0, device=weight.device)
    try:
        yield
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data
