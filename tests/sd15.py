"""Stable Diffusion 1.5 as its config files alone: enough to recognise, plan and count it."""

from __future__ import annotations

from pathlib import Path

from sdtrainer.bench import models

HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
UNET, VAE, TEXT_ENCODER = 859_520_964, 83_653_863, 123_060_480
"""Parameters of the published weights."""


def write(folder: Path) -> Path:
    """Write the folder and return it."""
    return models.write("SD 1.5", folder)
