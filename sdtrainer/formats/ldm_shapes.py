"""The configs of a model in the original single-file layout, read off the shapes of its tensors.

What no shape tells (heads, activations, the noise schedule) is constant in each generation:
CompVis/stable-diffusion configs/stable-diffusion/v1-inference.yaml, Stability-AI/stablediffusion
configs/stable-diffusion/v2-inference.yaml, Stability-AI/generative-models configs/inference/sd_xl_base.yaml.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
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
SDXL_SCHEDULER = dict(SCHEDULER) | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}


def configs_of(shapes: Shapes) -> dict[str, dict[str, Any]] | None:
    """Return the configs of denoiser, VAE, text encoders and scheduler, or None if this is none that is
    known.

    The scheduler's has no prediction type, and the denoiser's no sample size: no shape tells them.
    """
    text = next((t for t, texts in ldm.TEXT_PREFIXES.items() if _has_all(shapes, texts.values())), None)
    if text is None:
        return None
    try:
        return {
            DENOISER: _unet(_below(shapes, ldm.UNET_PREFIX)),
            VAE: vae(_below(shapes, ldm.VAE_PREFIX)) | _VAE_OF.get(text, {}),
            "scheduler": dict(SDXL_SCHEDULER if text == "both" else SCHEDULER),
            **{
                encoder: _encoder(encoder, text)(_below(shapes, prefix))
                for encoder, prefix in ldm.TEXT_PREFIXES[text].items()
            },
        }
    except (KeyError, IndexError):  # a tensor that every such model has is missing
        return None


def _has_all(shapes: Shapes, prefixes: Iterable[str]) -> bool:
    return all(any(name.startswith(prefix) for name in shapes) for prefix in prefixes)


def _encoder(encoder: str, text: ldm.Text) -> Callable[[Shapes], dict[str, Any]]:
    if encoder == ldm.ENCODER_2:
        return _projected
    return _openclip if ldm.is_openclip(encoder, text) else clip


def _below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def count(shapes: Shapes, pattern: str) -> int:
    """Return how many tensors named by `pattern` with 0, 1, 2 ... there are."""
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
    first = f"input_blocks.{blocks[attends_down.index(True)][0]}.1" if True in attends_down else ""
    is_linear = len(shapes[f"{first}.proj_in.weight"]) == 2
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "layers_per_block": layers,
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends_down],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends_up],
        "cross_attention_dim": shapes[f"{first}.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": is_linear,
        # a number of heads, whatever diffusers calls it: 8 in SD1, as many of width 64 as fit in SD2
        "attention_head_dim": [width // 64 for width in channels] if is_linear else 8,
        **(_of_sdxl(shapes, blocks) if "label_emb.0.0.weight" in shapes else {}),
        **({} if "middle_block.1.proj_in.weight" in shapes else {"mid_block_type": "UNetMidBlock2D"}),
    }


def _of_sdxl(shapes: Shapes, blocks: list[list[int]]) -> dict[str, Any]:
    """What SDXL's UNet has besides: deeper transformers, pooled text, and six sizes of 256 numbers each.
    Where layers were taken out, the ways down and up differ.
    """
    layers = len(blocks[0])
    down = [_depths(shapes, "input_blocks", block) for block in blocks]
    ups = [range(n * (layers + 1), (n + 1) * (layers + 1)) for n in range(len(blocks))]
    up = [_depths(shapes, "output_blocks", block) for block in ups]
    is_even = all(set(d) == set(u) for d, u in zip(down, reversed(up), strict=True))
    return {
        "transformer_layers_per_block": [block[0] for block in down] if is_even else down,
        **({} if is_even else {"reverse_transformer_layers_per_block": up}),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
    }


def _depths(shapes: Shapes, blocks: str, numbers: Iterable[int]) -> list[int]:
    """How many transformer blocks each layer has; where it has none diffusers asks all the same, for 1."""
    name = "{}.{}.1.transformer_blocks.{{}}.norm1.weight"
    return [count(shapes, name.format(blocks, number)) or 1 for number in numbers]


def vae(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a VAE of SD1 and SD2; others differ in their scale."""
    blocks = count(shapes, "encoder.down.{}.block.0.conv1.weight")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [shapes[f"encoder.down.{n}.block.0.conv1.weight"][0] for n in range(blocks)],
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "layers_per_block": count(shapes, "encoder.down.0.block.{}.conv1.weight"),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "scaling_factor": 0.18215,
    }


_VAE_OF: Mapping[ldm.Text, Mapping[str, Any]] = {"both": {"scaling_factor": 0.13025, "force_upcast": True}}
"""SDXL's VAE has SD's shapes and another scale; it overflows in fp16."""


def clip(shapes: Shapes) -> dict[str, Any]:
    """Return the config of a text encoder under transformers' names, those of CLIP-L where no shape tells."""
    named = {with_text_model(key): shape for key, shape in shapes.items()}
    return _text(
        named["text_model.embeddings.token_embedding.weight"],
        named["text_model.embeddings.position_embedding.weight"][0],
        count(named, "text_model.encoder.layers.{}.mlp.fc1.weight"),
        named["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "quick_gelu",
    )


def _openclip(shapes: Shapes) -> dict[str, Any]:
    return _text(
        shapes["token_embedding.weight"],
        shapes["positional_embedding"][0],
        min(OPENCLIP_LAYERS, count(shapes, "transformer.resblocks.{}.mlp.c_fc.weight")),
        shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "gelu",
    )


def _projected(shapes: Shapes) -> dict[str, Any]:
    """OpenCLIP with all of its layers, and its projection."""
    return _openclip(shapes) | {
        "architectures": ["CLIPTextModelWithProjection"],
        "num_hidden_layers": count(shapes, "transformer.resblocks.{}.mlp.c_fc.weight"),
        "projection_dim": shapes["text_projection"][1],
    }


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
