"""TrainStep: one forward pass of training, from a batch to the loss of each of its samples.

The only module that accelerate prepares, so that accumulation, several processes and every method see one
model. The memory trace runs the same code.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .. import diffusion
from ..methods import method_of
from ..plan import Plan
from ..seams import Batch, Conditioning, Family, Parts


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
        latents = self.latents(batch, generator)
        noised = self.family.noise(self.parts, latents, generator, self.plan.config.noise)
        prediction = self.family.predict(self.parts, noised, self.conditioning(batch, text_learns))
        error = diffusion.error(prediction, noised.target, self.plan.config.noise)
        losses = batch.weight * noised.weight * error
        penalty = self.method.penalty(self.parts, self.plan.config.method)
        return losses if penalty is None else losses + penalty

    def latents(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """(B, C, h, w) fp32, drawn from the VAE's posterior."""
        if batch.latents is not None:
            return batch.latents.sample(generator)
        assert batch.pixels is not None
        with torch.no_grad(), torch.autocast(batch.pixels.device.type, enabled=False):
            return self.family.encode_images(self.parts, batch.pixels).sample(generator)

    def conditioning(self, batch: Batch, text_learns: bool = True) -> Conditioning:
        """Without `text_learns` no gradient reaches a text encoder, so that no optimizer touches it."""
        if batch.conditioning is not None:
            return batch.conditioning
        assert batch.tokens is not None
        clip_skip = self.plan.config.base.clip_skip
        with torch.set_grad_enabled(text_learns and torch.is_grad_enabled()):
            return self.family.encode_text(self.parts, batch.tokens, clip_skip, batch.sizes)


def to_device(batch: Batch, device: str) -> Batch:
    """Copy a batch to the training device."""
    return batch if device == "cpu" else _moved(batch, device)


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if dataclasses.is_dataclass(value):
        return type(value)(
            **{f.name: _moved(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        )
    return {name: _moved(v, device) for name, v in value.items()} if isinstance(value, dict) else value
