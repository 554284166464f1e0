"""The configs of a model in the original single-file layout, read off the shapes of its tensors.

What no shape tells (heads, activations, the noise schedule) is constant in Stable Diffusion 1 and 2:
CompVis/stable-diffusion configs/stable-diffusion/v1-inference.yaml and Stability-AI/stablediffusion
configs/stable-diffusion/v2-inference.yaml.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from ..seams import DENOISER, VAE
from . import ldm
from .kohya import with_text_model

Shapes = Mapping[str, tuple[int, ...]]

OPENCLIP_LAYERS = 23
"""SD2 takes the text after this layer of OpenCLIP's 24; some files hold all, some only these."""
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}


def configs_of(shapes: Shapes) -> dict[str, dict[str, Any]] | None:
    """Return the configs of denoiser, VAE, text encoder and scheduler, or None if this is no SD1 or SD2.

    The scheduler's has no prediction type, and the denoiser's no sample size: no shape tells them.
    """
    text = next((t for t, prefix in ldm.TEXT_PREFIXES.items() if _below(shapes, prefix)), None)
    if text is None:
        return None
    encoders = {"clip": _clip, "openclip": _openclip}
    try:
        return {
            DENOISER: _unet(_below(shapes, ldm.UNET_PREFIX)),
            VAE: _vae(_below(shapes, ldm.VAE_PREFIX)),
            ldm.ENCODER: encoders[text](_below(shapes, ldm.TEXT_PREFIXES[text])),
            "scheduler": dict(SCHEDULER),
        }
    except (KeyError, IndexError):  # a tensor that every such model has is missing
        return None


def _below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def _count(shapes: Shapes, pattern: str) -> int:
    """How many tensors named by `pattern` with 0, 1, 2 ... there are."""
    return next(n for n in itertools.count() if pattern.format(n) not in shapes)


def _unet(shapes: Shapes) -> dict[str, Any]:
    blocks: list[list[int]] = [[]]
    for number in itertools.count(1):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            blocks.append([])
        elif f"input_blocks.{number}.0.in_layers.2.weight" in shapes:
            blocks[-1].append(number)
        else:
            break
    layers = len(blocks[0])
    channels = [shapes[f"input_blocks.{block[0]}.0.out_layers.3.weight"][0] for block in blocks]
    ups = range(0, len(blocks) * (layers + 1), layers + 1)
    attends_down = [f"input_blocks.{block[0]}.1.proj_in.weight" in shapes for block in blocks]
    attends_up = [f"output_blocks.{first}.1.proj_in.weight" in shapes for first in ups]
    is_linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "layers_per_block": layers,
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends_down],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends_up],
        "cross_attention_dim": shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": is_linear,
        # a number of heads, whatever diffusers calls it: 8 in SD1, as many of width 64 as fit in SD2
        "attention_head_dim": [width // 64 for width in channels] if is_linear else 8,
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    count = _count(shapes, "encoder.down.{}.block.0.conv1.weight")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [shapes[f"encoder.down.{n}.block.0.conv1.weight"][0] for n in range(count)],
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "layers_per_block": _count(shapes, "encoder.down.0.block.{}.conv1.weight"),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "scaling_factor": 0.18215,
    }


def _clip(shapes: Shapes) -> dict[str, Any]:
    named = {with_text_model(key): shape for key, shape in shapes.items()}
    return _text(
        named["text_model.embeddings.token_embedding.weight"],
        named["text_model.embeddings.position_embedding.weight"][0],
        _count(named, "text_model.encoder.layers.{}.mlp.fc1.weight"),
        named["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "quick_gelu",
    )


def _openclip(shapes: Shapes) -> dict[str, Any]:
    return _text(
        shapes["token_embedding.weight"],
        shapes["positional_embedding"][0],
        min(OPENCLIP_LAYERS, _count(shapes, "transformer.resblocks.{}.mlp.c_fc.weight")),
        shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "gelu",
    )


def _text(table: tuple[int, ...], positions: int, layers: int, inner: int, activation: str) -> dict[str, Any]:
    words, width = table
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "max_position_embeddings": positions,
        "hidden_act": activation,
    }
