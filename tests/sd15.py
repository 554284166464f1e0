"""Stable Diffusion 1.5 as its config files alone: enough to recognise, plan and count it, without a weight.

The values are those of the published model (stable-diffusion-v1-5/stable-diffusion-v1-5 on the hub); what is
left out is the classes' own default.
"""

from __future__ import annotations

import json
from pathlib import Path

UNET, VAE, TEXT_ENCODER = 859_520_964, 83_653_863, 123_060_480
"""Parameters of the published weights."""

_FILES = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    "text_encoder/config.json": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
    },
}


def write(folder: Path) -> Path:
    """Write the folder and return it."""
    for name, values in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    return folder
