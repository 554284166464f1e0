"""Validation: the loss on held-out images at fixed noise and timesteps, comparable between steps and between
runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .. import diffusion
from ..sample import evaluating
from ..seams import Batch
from ..seeds import seed_of
from .feed import held_out
from .setup import Training
from .step import TrainStep, divided, to_device

BANDS = 4
"""Every image is noised once in each quarter of the timesteps."""


def validation_loss(training: Training, batch_parts: int) -> float:
    """Return the mean squared error over all held-out images and bands, weighted by their masks alone."""
    plan, loader = training.plan, training.held_out
    assert loader is not None
    module = training.accelerator.unwrap_model(training.step_module)
    with training.accelerator.autocast():
        return fixed_loss(module, held_out(loader, plan.batch_size), batch_parts)


def fixed_loss(step: TrainStep, batches: Iterable[Batch], batch_parts: int = 1) -> float:
    """Return the mean squared error of these batches in every band; noise depends on their order alone, not
    on the number of parts in which each goes through the model.
    """
    device, errors = step.plan.device, []
    with torch.no_grad(), evaluating(step.parts):
        for number, on_cpu in enumerate(batches):
            batch = to_device(on_cpu, device)
            parts = divided(batch, batch_parts)
            told, masks = [step.conditioning(part) for part in parts], [part.mask for part in parts]
            for band in range(BANDS):
                generator = torch.Generator(device).manual_seed(seed_of("validation", number, band))
                latents = step.latents(batch, generator)
                section = _band(band)
                noised = step.family.noise(step.parts, latents, generator, section)
                for part, conditioning, mask in zip(divided(noised, batch_parts), told, masks, strict=True):
                    prediction = step.family.predict(step.parts, part, conditioning)
                    errors.append(diffusion.error(prediction, part.target, section, mask))
    return torch.cat(errors).mean().item()


def _band(band: int) -> diffusion.NoiseSection:
    width = 1000 // BANDS
    return diffusion.NoiseSection(
        min_timestep=band * width, max_timestep=(band + 1) * width, min_snr_gamma=0, offset=0
    )
