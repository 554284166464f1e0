"""Stable Diffusion 3 and 3.5 as their config files alone: enough to recognise, plan and count them, without
weights and without T5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdtrainer.bench import models
from sdtrainer.families import published

HUB_ID = "stabilityai/stable-diffusion-3.5-medium"
TRANSFORMER = 2_243_171_520
"""Parameters of its published weights."""

_BASES = {"3 medium": "SD3", "3.5 medium": "SD3.5 medium", "3.5 large": "SD3.5 large"}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    version: dict(published.MODELS[base]["transformer/config.json"]) for version, base in _BASES.items()
}


def write(folder: Path, version: str = "3.5 medium") -> Path:
    """Write the folder and return it."""
    return models.write_configs(published.MODELS[_BASES[version]], folder)
