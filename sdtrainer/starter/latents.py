"""The starter's latent space: the four strongest principal components of 8x8 picture patches, whitened.

A small variational autoencoder trained from nothing needs hours to find a latent space.  This one is exact
and known in a minute, so the UNet can start at once, and the AutoencoderKL learns to imitate it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file

PATCH = 8
CHANNELS = 4


@dataclass(frozen=True)
class PatchSpace:
    """Linear map between pictures in -1..1 (N, 3, H, W) and latents (N, 4, H/8, W/8)."""

    mean: torch.Tensor  # (192,)
    components: torch.Tensor  # (4, 192), orthonormal rows
    deviation: torch.Tensor  # (4,), of each component over the world

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures to latents of about unit variance."""
        patches = _patches_of(pictures) - self.mean
        latents = patches @ self.components.T / self.deviation
        return latents.movedim(-1, 1).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The best linear guess of the pictures; blocky, and the floor any decoder must beat."""
        patches = (latents.movedim(1, -1) * self.deviation) @ self.components + self.mean
        return functional.pixel_shuffle(patches.movedim(-1, 1), PATCH)

    def save(self, path: Path) -> None:
        """Write the map as safetensors."""
        save_file({"mean": self.mean, "components": self.components, "deviation": self.deviation}, path)

    @classmethod
    def load(cls, path: Path) -> PatchSpace:
        """Read a map written by save."""
        return cls(**load_file(path))


def fit_patch_space(pictures: torch.Tensor) -> PatchSpace:
    """Principal components of the patches of these pictures."""
    patches = _patches_of(pictures).flatten(0, 2).double()
    mean = patches.mean(0)
    covariance = torch.cov((patches - mean).T)
    values, vectors = torch.linalg.eigh(covariance)
    strongest = vectors[:, -CHANNELS:].flip(1).T
    deviation = values[-CHANNELS:].flip(0).sqrt()
    return PatchSpace(mean.float(), strongest.float().contiguous(), deviation.float())


def _patches_of(pictures: torch.Tensor) -> torch.Tensor:
    return functional.pixel_unshuffle(pictures, PATCH).movedim(1, -1)
