"""The passes through a model, each run once on fake tensors while the bytes held are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ..activations import Kind
from ..plan import Plan
from ..seams import Batch, Conditioning, Family, Noised, Parts
from ..training.step import TrainStep
from . import fakes, kernels
from .fakes import Shape
from .live import LiveBytes


@dataclass(frozen=True)
class Trace:
    """Bytes held after each operation, besides gradients of trained weights; those held then; and what was
    held when the forward pass ended.
    """

    operations: tuple[str, ...]
    held: tuple[int, ...]
    gradients: tuple[int, ...]
    saved: int


def run(kind: Kind, plan: Plan, family: Family, parts: Parts, shape: Shape) -> Trace:
    """Run one pass on a model that `fakes.model` gave, and count."""
    known = [t for m in parts.modules.values() for t in (*m.parameters(), *m.buffers())]
    counter = LiveBytes([*known, *(t for t in vars(parts.schedule).values() if torch.is_tensor(t))])
    with kernels.of(plan.device):
        if kind == "step":
            batch = fakes.batch(plan, family, parts, shape)
            with counter:
                return step(TrainStep(family, parts, replace(plan, batch_parts=1)), batch, counter)
        given = _GIVEN[kind](plan, family, parts, shape)
        with torch.no_grad(), fakes.autocast(plan, kind in ("draw", "text")), counter:
            out = _FORWARD[kind](plan, family, parts, given)
    del out
    return _told(counter, [], 0)


def step(module: TrainStep, batch: Batch, counter: LiveBytes) -> Trace:
    """One forward and backward pass of training; with real tensors as with fake ones."""
    made: list[tuple[int, int]] = []

    def note(parameter: torch.nn.Parameter) -> None:
        assert parameter.grad is not None
        made.append((len(counter.moments), parameter.grad.nbytes))

    trained = [p for m in module.parts.modules.values() for p in m.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(note) for p in trained]
    with fakes.autocast(module.plan):
        loss = module(batch, cast(torch.Generator, None)).mean()
    saved = counter.now
    loss.backward()
    for hook in hooks:
        hook.remove()
    for parameter in trained:
        parameter.grad = None
    return _told(counter, made, saved)


def _told(counter: LiveBytes, made: list[tuple[int, int]], saved: int) -> Trace:
    """Tell gradients from the rest: they are there from the moment that they were made."""
    gradients, waiting = [], list(made)
    held_gradients = 0
    for number in range(len(counter.moments)):
        while waiting and waiting[0][0] <= number:
            held_gradients += waiting.pop(0)[1]
        gradients.append(held_gradients)
    held = tuple(now - grads for (_, now), grads in zip(counter.moments, gradients, strict=True))
    return Trace(tuple(name for name, _ in counter.moments), held, tuple(gradients), saved)


def _noised(plan: Plan, family: Family, parts: Parts, shape: Shape) -> tuple[Noised, Conditioning]:
    latents, timesteps = _latents(plan, family, parts, shape), torch.empty(shape.batch, dtype=torch.long)
    words = fakes.conditioning(plan, family, parts, shape)
    return Noised(latents, timesteps, latents, timesteps), words


def _latents(plan: Plan, family: Family, parts: Parts, shape: Shape) -> torch.Tensor:
    return torch.empty(shape.batch, plan.facts.latent_channels, shape.height, shape.width)


def _pixels(plan: Plan, family: Family, parts: Parts, shape: Shape) -> torch.Tensor:
    scale = plan.facts.pixels_per_latent
    return torch.empty(shape.batch, 3, shape.height * scale, shape.width * scale)


def _shape(plan: Plan, family: Family, parts: Parts, shape: Shape) -> Shape:
    return shape


_GIVEN: Mapping[str, Callable[[Plan, Family, Parts, Shape], Any]] = {
    "draw": _noised,
    "decode": _latents,
    "encode": _pixels,
    "text": _shape,
}
_FORWARD: Mapping[str, Callable[[Plan, Family, Parts, Any], object]] = {
    "draw": lambda plan, family, parts, given: family.predict(parts, *given),
    "decode": lambda plan, family, parts, given: parts.vae.decode(given.to(parts.vae.dtype)),
    "encode": lambda plan, family, parts, given: family.encode_images(parts, given),
    "text": lambda plan, family, parts, given: fakes.conditioning(plan, family, parts, given),
}
