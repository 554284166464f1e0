"""Stable Diffusion XL 1.0 as its config files alone: enough to recognise, plan and count it."""

from __future__ import annotations

from pathlib import Path

from sdtrainer.bench import models

HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"
UNET, VAE, TEXT_ENCODER, TEXT_ENCODER_2 = 2_567_463_684, 83_653_863, 123_060_480, 694_659_840
"""Parameters of the published weights."""


def write(folder: Path) -> Path:
    """Write the folder and return it."""
    return models.write("SDXL", folder)
