"""Asks a loaded model what it predicts, where no file says so: one forward pass at the noisiest timestep.

There the noisy latents are almost all noise, and what is asked of a model shows in how its answer resembles
them: eps is the noise itself, so that the correlation is near 1, while v = alpha eps - sigma x0 is about -x0,
the picture that it sees in the noise, and nearly orthogonal to it. Source of v: Salimans & Ho 2022 (arXiv
2202.00512), section 4; alpha is 0.07 there in Stable Diffusion, or 0 with zero terminal SNR. A model that
predicts x0 answers like one that predicts v: none is known among those whose files do not say it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .diffusion import PredictionType
from .seams import DENOISER, Facts, Family, Noised, Parts

SIDE = 256
"""Pixels of the picture asked about: noise is noise at any size."""
NOISE_ABOVE, VELOCITY_BELOW = 0.7, 0.4
"""Correlations with the noise. Between them nothing is concluded."""


@dataclass(frozen=True)
class Answer:
    """`type` is None where the model's answer tells nothing; `correlation` is that with the noise."""

    type: PredictionType | None
    correlation: float

    @property
    def why(self) -> str:
        """How it is known, as the end of a sentence."""
        like = {"epsilon": "with that noise", "v_prediction": "with something else"}.get(self.type or "")
        said = f"it answers {like}" if like else "its answer tells nothing"
        return f"asked about pure noise {said} (correlation {self.correlation:.2f})"

    def of(self, facts: Facts) -> Facts:
        """Return the facts with what was answered, or with what was likely before."""
        told = self.type or facts.prediction_type
        why = f"{facts.why.partition(';')[0]}; {self.why}, so it predicts {told}"
        if self.type is None:
            why = f"{facts.why}; {self.why}"
        return replace(facts, prediction_type=told, is_undecided=False, why=why)


def ask(
    family: Family,
    parts: Parts,
    device: str,
    autocast: torch.dtype | None = None,
    bring: Callable[[Sequence[str]], None] = lambda names: None,
) -> Answer:
    """Run the denoiser once, on noise and no prompt. `bring` has the named parts on the device, and may take
    the others off it.
    """
    size = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], dtype=torch.float32, device=device)
    latents = SIDE // parts.facts.pixels_per_latent
    noise = torch.randn(
        1, parts.facts.latent_channels, latents, latents, generator=torch.Generator().manual_seed(0)
    )
    last = torch.tensor([len(parts.schedule.alphas_cumprod) - 1], device=device)
    enabled = autocast is not None
    with torch.no_grad(), torch.autocast(torch.device(device).type, autocast, enabled=enabled):
        bring(parts.facts.encoders)
        tokens = {name: ids.to(device) for name, ids in family.tokenize(parts, [""], 1).items()}
        conditioning = family.encode_text(parts, tokens, 0, size)
        bring((DENOISER,))
        dtype = next(p.dtype for p in parts.denoiser.parameters() if p.is_floating_point())
        noisy = noise.to(device, torch.float32 if enabled else dtype)
        answer = family.predict(parts, Noised(noisy, last, noisy, last), conditioning)
    return conclude(noise, answer.float().cpu())


def conclude(noise: torch.Tensor, answer: torch.Tensor) -> Answer:
    """Return what an answer to noise (B, C, h, w) says."""
    correlation = float(torch.cosine_similarity(noise.flatten(), answer.flatten(), dim=0))
    if correlation > NOISE_ABOVE:
        return Answer("epsilon", correlation)
    is_other = abs(correlation) < VELOCITY_BELOW and bool(answer.abs().max() > 0)  # false if not finite
    return Answer("v_prediction" if is_other else None, correlation)
