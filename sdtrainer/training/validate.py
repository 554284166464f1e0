"""Validation: the loss on held-out images at fixed noise and timesteps, comparable between steps and between
runs.
"""

from __future__ import annotations

import torch

from .. import diffusion
from ..sample import evaluating
from ..seeds import seed_of
from .feed import held_out
from .setup import Training
from .step import to_device

BANDS = 4
"""Every image is noised once in each quarter of the timesteps."""


def validation_loss(training: Training) -> float:
    """Return the mean squared error over all held-out images and bands, unweighted."""
    plan, loader = training.plan, training.held_out
    assert loader is not None
    module = training.accelerator.unwrap_model(training.step_module)
    errors = []
    with torch.no_grad(), evaluating(training.parts), training.accelerator.autocast():
        for number, on_cpu in enumerate(held_out(loader, plan.batch_size)):
            batch = to_device(on_cpu, plan.device)
            conditioning = module.conditioning(batch)
            for band in range(BANDS):
                generator = torch.Generator(plan.device).manual_seed(seed_of("validation", number, band))
                latents = module.latents(batch, generator)
                section = _band(band)
                noised = training.family.noise(training.parts, latents, generator, section)
                prediction = training.family.predict(training.parts, noised, conditioning)
                errors.append(diffusion.error(prediction, noised.target, section))
    return torch.cat(errors).mean().item()


def _band(band: int) -> diffusion.NoiseSection:
    width = 1000 // BANDS
    return diffusion.NoiseSection(
        min_timestep=band * width, max_timestep=(band + 1) * width, min_snr_gamma=0, offset=0
    )
