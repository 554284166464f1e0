"""TrainStep: one forward pass of training, from a batch to the loss of each of its samples.

The only module that accelerate prepares, so that accumulation, several processes and every method see one
model. The memory trace runs the same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch

from .. import diffusion
from ..methods import method_of
from ..plan import Plan
from ..seams import Batch, Conditioning, Family, Latents, Noised, Parts

V = TypeVar("V", Batch, Noised, torch.Tensor)


class TrainStep(torch.nn.Module):
    """noise -> encode -> predict -> weighted error, and the method's penalty.

    Shapes: returns (B,) fp32: weight x error of each sample + penalty; the loss is their mean.
    """

    def __init__(self, family: Family, parts: Parts, plan: Plan) -> None:
        super().__init__()
        self.family, self.parts, self.plan = family, parts, plan
        self.method = method_of(plan.config.method.kind)
        used = [p.part for p in plan.placements if p.phase == "train" and p.device == plan.device]
        self.trained = torch.nn.ModuleDict({part: parts.modules[part] for part in used})

    def forward(self, batch: Batch, generator: torch.Generator, text_learns: bool = True) -> torch.Tensor:
        noised = batch.noised or self.noised(batch, generator)
        prediction = self.family.predict(self.parts, noised, self.conditioning(batch, text_learns))
        error = diffusion.error(prediction, noised.target, self.plan.config.noise, batch.mask)
        losses = batch.weight * noised.weight * error
        penalty = self.method.penalty(self.parts, self.plan.config.method)
        return losses if penalty is None else losses + penalty

    def noised(self, batch: Batch, generator: torch.Generator) -> Noised:
        latents = self.latents(batch, generator)
        return self.family.noise(self.parts, latents, generator, self.plan.config.noise)

    def latents(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """(B, C, h, w) fp32, drawn from the VAE's posterior."""
        if batch.latents is not None:
            return batch.latents.sample(generator)
        assert batch.pixels is not None
        with torch.no_grad(), torch.autocast(batch.pixels.device.type, enabled=False):
            parts = divided(batch.pixels, self.plan.batch_parts)
            encoded = [self.family.encode_images(self.parts, pixels) for pixels in parts]
            means, stds = [one.mean for one in encoded], [one.std for one in encoded]
            return Latents(torch.cat(means), torch.cat(stds)).sample(generator)

    def conditioning(self, batch: Batch, text_learns: bool = True) -> Conditioning:
        """Without `text_learns` no gradient reaches a text encoder, so that no optimizer touches it."""
        if batch.conditioning is not None:
            return batch.conditioning
        assert batch.tokens is not None
        clip_skip = self.plan.config.base.clip_skip
        with torch.set_grad_enabled(text_learns and torch.is_grad_enabled()):
            return self.family.encode_text(self.parts, batch.tokens, clip_skip, batch.sizes)


def in_parts(step: TrainStep, batch: Batch, generator: torch.Generator) -> list[Batch]:
    """Return the parts in which the plan passes a batch through the model.

    Latents, timesteps and noise are drawn for the whole batch, so that the mean loss of the parts, weighted
    by their sizes, is that of the whole. Dropout alone falls otherwise.
    """
    if step.plan.batch_parts == 1:
        return [batch]
    whole = dataclasses.replace(batch, latents=None, pixels=None, noised=step.noised(batch, generator))
    return divided(whole, step.plan.batch_parts)


def divided(value: V, parts: int) -> list[V]:
    """Divide into so many parts, as equal as can be, each of one image at least. Of a dataclass the first
    tensor tells how many images there are.
    """
    first = value if isinstance(value, torch.Tensor) else getattr(value, dataclasses.fields(value)[0].name)
    size = len(first)
    parts = min(parts, size)
    bounds = [size * number // parts for number in range(parts + 1)]
    return [_each(value, lambda tensor, a=a, b=b: tensor[a:b]) for a, b in pairwise(bounds)]


def to_device(batch: Batch, device: str) -> Batch:
    """Copy a batch to the training device."""
    return batch if device == "cpu" else _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a dataclass with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if dataclasses.is_dataclass(value):
        return type(value)(
            **{f.name: _each(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        )
    return {name: _each(v, change) for name, v in value.items()} if isinstance(value, dict) else value
