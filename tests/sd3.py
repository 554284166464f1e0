"""Stable Diffusion 3 and 3.5 as their config files alone: enough to recognise, plan and count them, without
weights and without T5.

The values are those of the published models (stabilityai/stable-diffusion-3-medium-diffusers,
stable-diffusion-3.5-medium and -large on the hub); what is left out is the classes' own default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdtrainer.bench import models

HUB_ID = "stabilityai/stable-diffusion-3.5-medium"
TRANSFORMER = 2_243_171_520
"""Parameters of its published weights."""

_TRANSFORMER = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "3 medium": _TRANSFORMER | {"pos_embed_max_size": 192},
    "3.5 medium": _TRANSFORMER
    | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))},
    "3.5 large": _TRANSFORMER
    | {
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
    },
}
_FILES = {
    "model_index.json": {"_class_name": "StableDiffusion3Pipeline"},
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "sample_size": 1024,
        "latent_channels": 16,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "text_encoder/config.json": models.MODELS["SDXL"]["text_encoder/config.json"],
    "text_encoder_2/config.json": models.MODELS["SDXL"]["text_encoder_2/config.json"],
    "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}


def write(folder: Path, version: str = "3.5 medium") -> Path:
    """Write the folder and return it."""
    return models.write_configs(_FILES | {"transformer/config.json": TRANSFORMERS[version]}, folder)
