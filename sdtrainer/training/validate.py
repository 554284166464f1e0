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
from .step import TrainStep, to_device

BANDS = 4
"""Every image is noised once in each quarter of the timesteps."""


def validation_loss(training: Training) -> float:
    """Return the mean squared error over all held-out images and bands, unweighted."""
    plan, loader = training.plan, training.held_out
    assert loader is not None
    module = training.accelerator.unwrap_model(training.step_module)
    with training.accelerator.autocast():
        return fixed_loss(module, held_out(loader, plan.batch_size))


def fixed_loss(step: TrainStep, batches: Iterable[Batch]) -> float:
    """Return the mean squared error of these batches in every band; noise depends on their order alone."""
    device, errors = step.plan.device, []
    with torch.no_grad(), evaluating(step.parts):
        for number, on_cpu in enumerate(batches):
            batch = to_device(on_cpu, device)
            conditioning = step.conditioning(batch)
            for band in range(BANDS):
                generator = torch.Generator(device).manual_seed(seed_of("validation", number, band))
                latents = step.latents(batch, generator)
                section = _band(band)
                noised = step.family.noise(step.parts, latents, generator, section)
                prediction = step.family.predict(step.parts, noised, conditioning)
                errors.append(diffusion.error(prediction, noised.target, section))
    return torch.cat(errors).mean().item()


def _band(band: int) -> diffusion.NoiseSection:
    width = 1000 // BANDS
    return diffusion.NoiseSection(
        min_timestep=band * width, max_timestep=(band + 1) * width, min_snr_gamma=0, offset=0
    )
