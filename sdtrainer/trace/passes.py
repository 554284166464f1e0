"""The passes through a model, each run once on fake tensors while the bytes held are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch

from ..activations import Kind
from ..plan import Plan
from ..seams import DENOISER, Batch, Conditioning, Family, Noised, Parts
from ..training.setup import DTYPES
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
    with kernels.of(plan.device), counter:
        if kind == "step":
            return step(TrainStep(family, parts, plan), fakes.batch(plan, shape), counter)
        with torch.no_grad(), _autocast(plan, enabled=kind in ("draw", "text")):
            out = _FORWARD[kind](plan, family, parts, shape)
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
    with _autocast(module.plan):
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


def _autocast(plan: Plan, enabled: bool = True) -> torch.autocast:
    """Mixed precision as in training, on the processor, where fake tensors lie."""
    return torch.autocast("cpu", DTYPES[plan.precision], enabled=enabled and plan.precision != "fp32")


def _draw(plan: Plan, family: Family, parts: Parts, shape: Shape) -> torch.Tensor:
    latents = torch.empty(shape.batch, plan.facts.latent_channels, shape.height, shape.width)
    timesteps = torch.empty(shape.batch, dtype=torch.long)
    dtype = DTYPES[plan.place(DENOISER, "sample").precision]
    words = torch.empty(shape.batch, fakes.WINDOW * shape.texts, plan.facts.text_width, dtype=dtype)
    return family.predict(parts, Noised(latents, timesteps, latents, timesteps), Conditioning(words))


def _decode(plan: Plan, family: Family, parts: Parts, shape: Shape) -> torch.Tensor:
    latents = torch.empty(shape.batch, plan.facts.latent_channels, shape.height, shape.width)
    return parts.vae.decode(latents.to(parts.vae.dtype), return_dict=False)[0]


def _encode(plan: Plan, family: Family, parts: Parts, shape: Shape) -> object:
    scale = plan.facts.pixels_per_latent
    return family.encode_images(parts, torch.empty(shape.batch, 3, shape.height * scale, shape.width * scale))


def _text(plan: Plan, family: Family, parts: Parts, shape: Shape) -> object:
    ids = torch.empty(shape.batch, fakes.WINDOW * shape.texts, dtype=torch.long)
    tokens = dict.fromkeys(plan.facts.encoders, ids)
    return family.encode_text(parts, tokens, plan.config.base.clip_skip, torch.empty(shape.batch, 6))


_FORWARD: Mapping[str, Callable[[Plan, Family, Parts, Shape], object]] = {
    "draw": _draw,
    "decode": _decode,
    "encode": _encode,
    "text": _text,
}
