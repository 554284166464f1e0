"""Base models of full size without their weights: the configs that were published, and weights by chance.

Values are those of stable-diffusion-v1-5/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1 and
stabilityai/stable-diffusion-xl-base-1.0 on the hub; what is left out is the classes' own default.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families import ASSETS
from ..seams import Facts, Family, Parts

if TYPE_CHECKING:
    import torch

_VAE = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SD15 = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae/config.json": _VAE | {"sample_size": 512},
    "text_encoder/config.json": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
    "scheduler/scheduler_config.json": _SCHEDULE
    | {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
}
_SD21 = {
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
    "text_encoder/config.json": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 512,
    },
    "scheduler/scheduler_config.json": _SCHEDULE
    | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}
_SDXL = {
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
    "text_encoder/config.json": _SD15["text_encoder/config.json"]
    | {"architectures": ["CLIPTextModel"], "eos_token_id": 2},
    "text_encoder_2/config.json": {
        "architectures": ["CLIPTextModelWithProjection"],
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
        "eos_token_id": 2,
    },
    "scheduler/scheduler_config.json": _SCHEDULE
    | {
        "_class_name": "EulerDiscreteScheduler",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "prediction_type": "epsilon",
    },
}
MODELS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "SD 1.5": _SD15,
    "SD 2.1": _SD21,
    "SDXL": _SDXL,
}
"""Config files by model; one joins with its family."""


def write(model: str, folder: Path) -> Path:
    """Write a model's folder with configs and a tokenizer (the starter's, which has fewer words)."""
    write_configs(MODELS[model], folder)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(ASSETS / "starter-model" / "tokenizer", folder / name, dirs_exist_ok=True)
    return folder


def write_configs(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Write config files by their paths and return the folder."""
    for name, values in configs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    return folder


def with_random_weights(family: Family, device: str) -> Family:
    """Return the family, its weights made by chance on `device` instead of loaded."""

    class Random(type(family)):  # type: ignore[misc]
        def load(self, facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> Parts:
            loaded = super().load(facts, (), {})  # the tokenizers
            for part, module in self.skeleton(facts).items():
                if part in parts:
                    _fill(module, device, dtypes[part])
                    loaded.modules[part] = module.to("cpu").requires_grad_(False).eval()
            return loaded

    return Random()


def _fill(module: torch.nn.Module, device: str, dtype: torch.dtype) -> None:
    """Put numbers in place of a meta module's own: small ones, and 1 where a norm scales."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                made = torch.empty(parameter.shape, dtype=dtype, device=device)
                is_scale = name == "weight" and parameter.ndim == 1
                made = made.fill_(1.0) if is_scale else made.normal_(0, 0.02, generator=generator)
                owner._parameters[name] = torch.nn.Parameter(made)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = _buffer(buffer, device, dtype)


def _buffer(meant: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers are positions, counted along the last side; others do not matter."""
    import torch

    if meant.is_floating_point():
        return torch.zeros(meant.shape, dtype=dtype, device=device)
    return torch.arange(meant.shape[-1], dtype=meant.dtype, device=device).expand(meant.shape).contiguous()
