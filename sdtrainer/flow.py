"""The arithmetic of flow matching: x_s = (1 - s) x0 + s eps, a straight path from latents to noise.

Shapes: B batch, C latent channels, h w latents; s (B,) in [0, 1], which a model is told as timestep 1000 s.
Every random draw takes a generator that lies on the device drawn on, and nothing here waits for the GPU.
Importing it does not import torch.

Source: Esser et al. 2024 (arXiv 2403.03206).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .diffusion import NoiseSection

if TYPE_CHECKING:
    import torch


def add_noise(latents: torch.Tensor, noise: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Return x_s on the straight path from latents to noise. Source: Esser et al. 2024, equation 13."""
    s = s.view(-1, *[1] * (latents.ndim - 1)).to(latents.dtype)
    return (1.0 - s) * latents + s * noise


def target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the velocity dx_s / ds of the straight path."""
    return noise - latents


def draw(
    generator: torch.Generator, batch: int, section: NoiseSection, shift_: float, device: torch.device | str
) -> torch.Tensor:
    """Draw s by the section's density, (B,), moved by its shift, or by `shift_`, which is the model's own.

    First and last timestep squeeze the whole density into what lies between them.
    """
    s = shift(_DENSITIES[section.density](generator, batch, device), section.shift or shift_)
    first, last = section.min_timestep / 1000, section.max_timestep / 1000
    return first + (last - first) * s


def draw_uniform(generator: torch.Generator, batch: int, device: torch.device | str) -> torch.Tensor:
    """Draw s, every value alike, (B,)."""
    import torch

    return torch.rand(batch, generator=generator, device=device)


def draw_logit_normal(
    generator: torch.Generator, batch: int, device: torch.device | str, mean: float = 0.0, std: float = 1.0
) -> torch.Tensor:
    """Draw s whose logit is normal, (B,): most in the middle. Source: Esser et al. 2024, equation 19."""
    import torch

    return torch.sigmoid(mean + std * torch.randn(batch, generator=generator, device=device))


def draw_mode(
    generator: torch.Generator, batch: int, device: torch.device | str, scale: float = 1.29
) -> torch.Tensor:
    """Draw s with a chosen weight in the middle, (B,). Source: Esser et al. 2024, equation 20."""
    import torch

    u = torch.rand(batch, generator=generator, device=device)
    return 1.0 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1.0 + u)


_DENSITIES = {"logit-normal": draw_logit_normal, "mode": draw_mode, "uniform": draw_uniform}


def shift(s: torch.Tensor, factor: float) -> torch.Tensor:
    """Move s towards noise, as larger pictures need: factor s / (1 + (factor - 1) s). SD3 has 3 at 1024 px.

    Source: Esser et al. 2024, equation 23, whose sqrt(m / n) is `factor`.
    """
    return factor * s / (1.0 + (factor - 1.0) * s)
