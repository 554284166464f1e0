"""The arithmetic of diffusion: noising, targets, signal-to-noise weights and the error of a prediction.

Symbols are the papers': alpha_bar is `schedule.alphas_cumprod`, x0 the clean latents, eps the noise, x_t the
noisy latents: x_t = alpha x0 + sigma eps with alpha = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t).
SNR = alpha^2 / sigma^2. Flow matching is flow.py's; its settings are here.

Shapes: B batch, C latent channels, h w latents, N timesteps. t (B,) whole numbers.
Every random draw takes a generator that lies on the device drawn on, and nothing here waits for the GPU.
Knows no model, no file and no trainer. Importing it does not import torch.

Sources: Ho et al. 2020 (arXiv 2006.11239), Salimans & Ho 2022 (2202.00512), Hang et al. 2023 (2303.09556),
Lin et al. 2023 (2305.08891).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationInfo, field_validator

from .section import Section, UserError, knob

if TYPE_CHECKING:
    import torch

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a denoiser says of noisy latents: the noise, the velocity, the clean latents, or the flow."""


class NoiseSection(Section):
    """How noise is added in training and how the error is counted. The defaults suit almost every run."""

    min_snr_gamma: float = knob(
        5.0,
        "Min-SNR gamma",
        "Lets the nearly clean timesteps count less, which makes training calmer and faster. "
        "5 is usual; 0 turns it off.",
        ge=0.0,
        le=100.0,
    )
    offset: float = knob(
        0.0,
        "Noise offset",
        "Adds a random brightness to the noise, so that the model learns very dark and very bright pictures. "
        "0.03 to 0.05 is usual; 0 is off. Not together with zero terminal SNR.",
        ge=0.0,
        le=1.0,
    )
    loss: Literal["mse", "huber"] = knob(
        "mse",
        "Loss",
        "How errors are counted: mse squares them all; huber counts large ones less, "
        "so that odd pictures pull less.",
    )
    huber_delta: float = knob(
        0.1,
        "Huber delta",
        "With the Huber loss, errors larger than this count in proportion rather than squared.",
        ge=0.001,
        le=10.0,
    )
    min_timestep: int = knob(
        0,
        "First timestep",
        "The least noisy timestep that is trained. Raise it to leave fine detail as it is.",
        ge=0,
        le=999,
    )
    max_timestep: int = knob(
        1000,
        "Last timestep",
        "Timesteps from here on are not trained. Lower it to leave the composition of pictures as it is.",
        ge=1,
        le=1000,
    )
    density: Literal["logit-normal", "mode", "uniform"] = knob(
        "logit-normal",
        "Timesteps drawn",
        "Stable Diffusion 3 alone: which timesteps are trained most. logit-normal: the middle, as the model "
        "itself was trained; mode: the middle a little more than the ends; uniform: all alike.",
    )
    shift: float = knob(
        0.0,
        "Timestep shift",
        "Stable Diffusion 3 alone: above 1, noisier timesteps are trained more, which large pictures need. 0 "
        "takes the model's own, usually 3; 1 is none.",
        ge=0.0,
        le=20.0,
    )
    zero_terminal_snr: bool = knob(
        False,
        "Zero terminal SNR",
        "Trains the last timestep on pure noise, for true blacks and whites. Only for models that predict v.",
    )

    @field_validator("max_timestep")
    @classmethod
    def _after_min(cls, value: int, info: ValidationInfo) -> int:
        first = info.data.get("min_timestep", 0)
        if value <= first:
            raise ValueError(f"Last timestep ({value}) must be greater than First timestep ({first})")
        return value


def check(section: NoiseSection, prediction_type: PredictionType) -> None:
    """Raise UserError if these settings are ill-posed for what the base model predicts."""
    if not section.zero_terminal_snr:
        return
    if prediction_type == "epsilon":
        raise UserError(
            "Zero terminal SNR cannot be used with this base model, which predicts the noise (epsilon).",
            "Turn Zero terminal SNR off, or choose a base model that predicts v (such as SD 2.1 768-v).",
            "noise.zero_terminal_snr",
        )
    if prediction_type == "flow":
        raise UserError(
            "Zero terminal SNR has no meaning for this base model, whose noise already ends at zero SNR.",
            "Turn Zero terminal SNR off.",
            "noise.zero_terminal_snr",
        )


def warnings(section: NoiseSection, prediction_type: PredictionType) -> list[str]:
    """Say which settings have no effect, or spoil each other, for what the base model predicts."""
    said = [
        f"{title} is ignored: {reason}."
        for name, title, reason in (_NOT_IN_FLOW if prediction_type == "flow" else _ONLY_IN_FLOW)
        if getattr(section, name) not in (0, NoiseSection.model_fields[name].default)
    ]
    if prediction_type == "flow":
        return said
    if section.zero_terminal_snr and section.offset:
        said.append("Noise offset and Zero terminal SNR do the same work: use one of them.")
    if section.zero_terminal_snr and section.min_snr_gamma:
        said.append("Min-SNR gamma gives the last timestep, where the SNR is zero, no weight: set it to 0.")
    return said


_FLOW = "this base model is trained by flow matching"
_NOT_IN_FLOW = (
    ("min_snr_gamma", "Min-SNR gamma", _FLOW),
    ("offset", "Noise offset", f"{_FLOW}, and its last timestep is pure noise already"),
)
_ONLY_IN_FLOW = (
    ("density", "Timesteps drawn", "this base model is not trained by flow matching, but on all alike"),
    ("shift", "Timestep shift", "this base model is not trained by flow matching"),
)
"""Settings that have no effect, unless they are 0 or as they come."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much signal is left at each timestep. Shapes: alphas_cumprod (N,), fp32, decreasing."""

    alphas_cumprod: torch.Tensor
    has_zero_terminal: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Build from a diffusers scheduler_config, in the same fp32 steps as diffusers.

        Raises: UserError for a beta schedule that Stable Diffusion models do not have.
        """
        import torch

        schedule = cls(torch.cumprod(1.0 - _betas(config), dim=0))
        return schedule.rescaled() if config.get("rescale_betas_zero_snr") else schedule

    def to(self, device: torch.device | str) -> Schedule:
        """Return the same schedule on another device."""
        return Schedule(self.alphas_cumprod.to(device), self.has_zero_terminal)

    def rescaled(self) -> Schedule:
        """Return the schedule shifted and scaled so that the last SNR is exactly 0 and the first stays.

        Source: Lin et al. 2023, algorithm 1.
        """
        if self.has_zero_terminal:
            return self
        root = self.alphas_cumprod.sqrt()
        first, last = root[:1], root[-1:]
        return Schedule(((root - last) * first / (first - last)).square(), has_zero_terminal=True)

    def alpha_sigma(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha and sigma at t, shaped to multiply `like` (B, ...), in its dtype."""
        alpha_bar = self.alphas_cumprod[t].view(-1, *[1] * (like.ndim - 1))
        return alpha_bar.sqrt().to(like.dtype), (1.0 - alpha_bar).sqrt().to(like.dtype)


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, schedule: Schedule, t: torch.Tensor
) -> torch.Tensor:
    """Return x_t. Source: Ho et al. 2020, equation 4."""
    alpha, sigma = schedule.alpha_sigma(t, latents)
    return alpha * latents + sigma * noise


def target(
    prediction_type: PredictionType,
    latents: torch.Tensor,
    noise: torch.Tensor,
    schedule: Schedule,
    t: torch.Tensor,
) -> torch.Tensor:
    """Return what the denoiser should say of x_t: eps, x0 or v = alpha eps - sigma x0.

    Source: Salimans & Ho 2022, section 4. Flow matching's needs no schedule: flow.py.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    assert prediction_type == "v_prediction", prediction_type
    alpha, sigma = schedule.alpha_sigma(t, latents)
    return alpha * noise - sigma * latents


def snr(schedule: Schedule, t: torch.Tensor) -> torch.Tensor:
    """Return the signal-to-noise ratio at t, (B,): 0 for pure noise, infinite for none."""
    alpha_bar = schedule.alphas_cumprod[t]
    return alpha_bar / (1.0 - alpha_bar)


def loss_weight(prediction_type: PredictionType, snr: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return each sample's weight, (B,), by min-SNR-gamma; 1 if gamma is 0 or for flow matching.

    Source: Hang et al. 2023, section 3.4: x0's error weighs min(SNR, gamma); eps' error is SNR times, and v's
    SNR + 1 times that of x0, so theirs weigh min(SNR, gamma) / SNR and min(SNR, gamma) / (SNR + 1).
    Written so that both ends are finite: SNR 0 gives eps 1 (the limit; `check` refuses such a schedule),
    v 0 and x0 0; infinite SNR gives eps 0, v 0 and x0 gamma.
    """
    if gamma == 0 or prediction_type == "flow":
        return snr.new_ones(snr.shape)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    if prediction_type == "sample":
        return snr.clamp(max=gamma)
    assert prediction_type == "v_prediction", prediction_type
    return snr.clamp(max=gamma) / (snr + 1.0)


def draw_timesteps(
    generator: torch.Generator, batch: int, section: NoiseSection, device: torch.device | str
) -> torch.Tensor:
    """Draw t uniformly from [min_timestep, max_timestep), (B,)."""
    import torch

    return torch.randint(
        section.min_timestep, section.max_timestep, (batch,), generator=generator, device=device
    )


def noise_like(latents: torch.Tensor, generator: torch.Generator, offset: float = 0.0) -> torch.Tensor:
    """Draw eps; `offset` adds one number per sample and channel, offset * N(0, 1).

    Source: N. Guttenberg 2023, crosslabs.org/blog/diffusion-with-offset-noise.
    """
    import torch

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=latents.device, dtype=latents.dtype)

    noise = draw(*latents.shape)
    return noise + offset * draw(*latents.shape[:2], 1, 1) if offset else noise


def error(
    prediction: torch.Tensor, target: torch.Tensor, section: NoiseSection, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the error of each sample, (B,): the mean over C, h and w, in fp32, of each place's error times
    what it weighs in `mask`.

    Shapes: mask (B, 1, h, w).
    Huber's is twice the usual definition, so that it equals the squared error up to delta.
    """
    import torch.nn.functional as F

    prediction, target = prediction.float(), target.float()
    if section.loss == "huber":
        each = 2.0 * F.huber_loss(prediction, target, reduction="none", delta=section.huber_delta)
    else:
        each = F.mse_loss(prediction, target, reduction="none")
    return (each if mask is None else each * mask).flatten(1).mean(1)


def _betas(config: Mapping[str, Any]) -> torch.Tensor:
    import torch

    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float32)
    first, last = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    num, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    if kind == "linear":
        return torch.linspace(first, last, num, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, num, dtype=torch.float32).square()
    if kind == "squaredcos_cap_v2":
        alpha_bar = [math.cos((i / num + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(num + 1)]
        return torch.tensor([min(1.0 - b / a, 0.999) for a, b in pairwise(alpha_bar)], dtype=torch.float32)
    raise UserError(
        f"The base model's noise schedule is {kind!r}, which is not known.",
        "Use a Stable Diffusion model: its schedule is linear, scaled_linear or squaredcos_cap_v2.",
        "base.path",
    )
