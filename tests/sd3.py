"""Stable Diffusion 3 and 3.5 as their config files alone: enough to recognise, plan and count them, without
weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdtrainer.bench import models
from sdtrainer.families import published

HUB_ID = "stabilityai/stable-diffusion-3.5-medium"
TRANSFORMER, T5 = 2_243_171_520, 4_762_310_656
"""Parameters of its published weights."""

_BASES = {"3 medium": "SD3", "3.5 medium": "SD3.5 medium", "3.5 large": "SD3.5 large"}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    version: dict(published.MODELS[base]["transformer/config.json"]) for version, base in _BASES.items()
}
_T5 = {
    "model_index.json": {
        "_class_name": "StableDiffusion3Pipeline",
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
    },
    "text_encoder_3/config.json": {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
}


def write(folder: Path, version: str = "3.5 medium", with_t5: bool = False) -> Path:
    """Write the folder and return it."""
    return models.write_configs({**published.MODELS[_BASES[version]], **(_T5 if with_t5 else {})}, folder)
