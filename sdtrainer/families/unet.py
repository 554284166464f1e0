"""What Stable Diffusion 1, 2 and XL have in common: facts in their configs, and what they do with latents.

Shapes: B batch, C latent channels, h w latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import diffusion
from ..seams import DENOISER, VAE, Facts, Latents, Noised, Parts
from ..section import UserError
from .configs import SCHEDULER, Found

if TYPE_CHECKING:
    import torch


def facts(family: str, title: str, found: Found, encoders: tuple[str, ...]) -> Facts:
    """Return the facts of a model.

    Raises:
        UserError: its denoiser takes more than latents.
    """
    config, denoiser, vae = found.configs, found.configs[DENOISER], found.configs[VAE]
    if denoiser["in_channels"] != vae["latent_channels"]:
        raise UserError(
            f"Base model: the denoiser of '{found.path}' reads {denoiser['in_channels']} channels, and its "
            f"VAE makes {vae['latent_channels']}.",
            "Choose the ordinary version of this model.",
            "base.path",
        )
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return Facts(
        family=family,
        title=title,
        path=found.path,
        layout=found.layout,
        why=found.why,
        prediction_type=config[SCHEDULER].get("prediction_type", "epsilon"),
        resolution=denoiser["sample_size"] * scale,
        latent_channels=denoiser["in_channels"],
        pixels_per_latent=scale,
        text_width=denoiser["cross_attention_dim"],
        encoders=encoders,
        config=config,
        is_undecided=found.is_undecided,
    )


def encode_images(parts: Parts, pixels: torch.Tensor) -> Latents:
    """Encode pixels (B, 3, H, W) in [-1, 1]."""
    posterior = parts.vae.encode(pixels.to(parts.vae.dtype)).latent_dist
    scale, shift = parts.vae.config.scaling_factor, parts.vae.config.shift_factor or 0.0
    return Latents((posterior.mean - shift) * scale, posterior.std * scale)


def noise(
    parts: Parts, latents: torch.Tensor, generator: torch.Generator, section: diffusion.NoiseSection
) -> Noised:
    """Draw timesteps and noise for (B, C, h, w) latents."""
    kind, schedule = parts.facts.prediction_type, parts.schedule
    timesteps = diffusion.draw_timesteps(generator, latents.shape[0], section, latents.device)
    drawn = diffusion.noise_like(latents, generator, section.offset)
    weight = diffusion.loss_weight(kind, diffusion.snr(schedule, timesteps), section.min_snr_gamma)
    return Noised(
        diffusion.add_noise(latents, drawn, schedule, timesteps),
        timesteps,
        diffusion.target(kind, latents, drawn, schedule, timesteps),
        weight,
    )


def scheduler(parts: Parts) -> Any:
    """Return the scheduler that samples are drawn with."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    config = dict(parts.facts.config[SCHEDULER]) | {"prediction_type": parts.facts.prediction_type}
    if not parts.schedule.has_zero_terminal:
        return DPMSolverMultistepScheduler.from_config(config)
    # DPM++ divides by the SNR; DDIM starts from pure noise as it must. Latents have no range to clip to.
    return DDIMScheduler.from_config(
        config | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    )
