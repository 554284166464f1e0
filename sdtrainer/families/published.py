"""The configs of the base models as they were published: every name and shape of them, without a file.

Values are those of stable-diffusion-v1-5/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1,
stabilityai/stable-diffusion-xl-base-1.0, stabilityai/stable-diffusion-3-medium-diffusers,
stable-diffusion-3.5-medium and -large on the hub; what is left out is the classes' own default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..formats.diffusers_folder import COMPONENTS
from ..recognition.bases import BASES
from ..seams import Facts

Configs = dict[str, dict[str, Any]]
"""Config files by path."""
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
_SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _clip(width: int, layers: int, heads: int, activation: str, projected: int) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "projection_dim": projected,
    }


_CLIP_L = _clip(768, 12, 12, "quick_gelu", 768)
_OPEN_CLIP_H = _clip(1024, 23, 16, "gelu", 512)
_TWO_ENCODERS = {
    "text_encoder/config.json": _CLIP_L | {"architectures": ["CLIPTextModel"], "eos_token_id": 2},
    "text_encoder_2/config.json": _clip(1280, 32, 20, "gelu", 1280)
    | {"architectures": ["CLIPTextModelWithProjection"], "eos_token_id": 2},
}
_SD15: Configs = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae/config.json": _VAE | {"sample_size": 512},
    "text_encoder/config.json": _CLIP_L,
    "scheduler/scheduler_config.json": _SCHEDULE
    | {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
}
_SD21: Configs = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 96,
        "in_channels": 4,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "vae/config.json": _VAE | {"sample_size": 768},
    "text_encoder/config.json": _OPEN_CLIP_H,
    "scheduler/scheduler_config.json": _SCHEDULE
    | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}
_SDXL: Configs = {
    "model_index.json": {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True},
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "in_channels": 4,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae/config.json": _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    **_TWO_ENCODERS,
    "scheduler/scheduler_config.json": _SCHEDULE
    | {
        "_class_name": "EulerDiscreteScheduler",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "prediction_type": "epsilon",
    },
}
_TRANSFORMER: dict[str, Any] = {
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
_TRANSFORMERS = {
    "SD3": _TRANSFORMER | {"pos_embed_max_size": 192},
    "SD3.5 medium": _TRANSFORMER
    | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))},
    "SD3.5 large": _TRANSFORMER
    | {
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
    },
}
_SD3: Configs = {
    "model_index.json": {"_class_name": "StableDiffusion3Pipeline"},
    "vae/config.json": _VAE
    | {
        "sample_size": 1024,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    **_TWO_ENCODERS,
    "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}


MODELS: Mapping[str, Configs] = {
    "SD1": _SD15,
    "SD2": _SD21,
    "SDXL": _SDXL,
    **{base: _SD3 | {"transformer/config.json": config} for base, config in _TRANSFORMERS.items()},
}
"""By row of recognition.bases.BASES."""


def facts_of(base: str) -> Facts:
    """Return what is known of a published model, T5 aside: enough for its skeleton."""
    row, files = BASES[base], MODELS[base]
    names = {part: f"{component.folder}/config.json" for part, component in COMPONENTS[row.family].items()}
    configs = {part: files[name] for part, name in names.items() if name in files}
    encoders = tuple(part for part in configs if part.startswith("text_encoder"))
    return Facts(
        row.family, row.title, "", "folder", "", "flow" if row.is_flow else "epsilon", 0, 0, 8,
        row.text_width, encoders, configs,
    )  # fmt: skip
