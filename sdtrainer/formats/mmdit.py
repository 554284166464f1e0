"""The original single-file layout of Stable Diffusion 3 and 3.5, read by ComfyUI.

One file holds `model.diffusion_model.` (transformer), `first_stage_model.` (VAE) and `text_encoders.`: CLIP's
two under transformers' own names. T5 may be read from it but is no part of what is written: programs load it
from a file of its own, and nothing here changes it. Query, key and value are one tensor in the file, and
where a norm follows the time alone it has shift before scale, diffusers scale before shift.

Source of the names: Stability-AI/sd3.5 (mmditx.py), and the module classes of diffusers. Shapes: D width, N
places of the picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..seams import DENOISER, VAE
from . import ldm, ldm_shapes
from .kohya import with_text_model

if TYPE_CHECKING:
    import torch

TEXT_PREFIXES: Mapping[str, str] = {
    ldm.ENCODER: "text_encoders.clip_l.transformer.",
    ldm.ENCODER_2: "text_encoders.clip_g.transformer.",
}
T5_PREFIX = "text_encoders.t5xxl.transformer."
_SIDE = 128
"""Of the latents that all of these models are made for; no shape tells it."""
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_VAE = {"scaling_factor": 1.5305, "shift_factor": 0.0609}

_ENDS = (
    ("pos_embed.pos_embed", "pos_embed"),
    ("pos_embed.proj", "x_embedder.proj"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("context_embedder", "context_embedder"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
)
_BLOCK = (
    ("norm1.linear", "x_block.adaLN_modulation.1"),
    ("norm1_context.linear", "context_block.adaLN_modulation.1"),
    ("attn.to_qkv", "x_block.attn.qkv"),
    ("attn.to_out.0", "x_block.attn.proj"),
    ("attn.norm_q", "x_block.attn.ln_q"),
    ("attn.norm_k", "x_block.attn.ln_k"),
    ("attn.add_qkv_proj", "context_block.attn.qkv"),
    ("attn.to_add_out", "context_block.attn.proj"),
    ("attn.norm_added_q", "context_block.attn.ln_q"),
    ("attn.norm_added_k", "context_block.attn.ln_k"),
    ("attn2.to_qkv", "x_block.attn2.qkv"),
    ("attn2.to_out.0", "x_block.attn2.proj"),
    ("attn2.norm_q", "x_block.attn2.ln_q"),
    ("attn2.norm_k", "x_block.attn2.ln_k"),
    ("ff.net.0.proj", "x_block.mlp.fc1"),
    ("ff.net.2", "x_block.mlp.fc2"),
    ("ff_context.net.0.proj", "context_block.mlp.fc1"),
    ("ff_context.net.2", "context_block.mlp.fc2"),
)
_Q = re.compile(r"\.(to_q|add_q_proj)\.")
_QKV = re.compile(r"\.(to_qkv|add_qkv_proj)\.")


def is_one(configs: ldm.Configs) -> bool:
    """Return whether a model with these configs is of this kind."""
    return "joint_attention_dim" in configs[DENOISER]


def to_file(states: Mapping[str, ldm.State], configs: ldm.Configs) -> dict[str, torch.Tensor]:
    """Return the tensors of the file for the state dicts of transformer, VAE and CLIP's text encoders."""
    names = names_of(configs[DENOISER])
    ours = _turned(_fused(states[DENOISER]), configs[DENOISER])
    state = {ldm.UNET_PREFIX + ldm.renamed(key, names): value for key, value in ours.items()}
    state |= ldm.vae_to_file(states[VAE], configs[VAE])
    for encoder, prefix in TEXT_PREFIXES.items():
        state |= {prefix + with_text_model(key): value for key, value in states[encoder].items()}
    return state


def from_file(state: ldm.State, configs: ldm.Configs) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state dicts of transformer, VAE and CLIP's text encoders; what belongs to none of them is
    left out.

    Raises:
        UserError: a tensor inside one of them has an unknown name.
    """
    names = {theirs: ours for ours, theirs in names_of(configs[DENOISER]).items()}
    theirs = _below(state, ldm.UNET_PREFIX)
    found = {DENOISER: {ldm.renamed(key, names): value for key, value in theirs.items()}}
    found[DENOISER] = _turned(_split(found[DENOISER]), configs[DENOISER])
    found[VAE] = ldm.vae_from_file(state, configs[VAE])
    for encoder, prefix in TEXT_PREFIXES.items():
        theirs = _below(state, prefix)
        found[encoder] = {key: value for key, value in theirs.items() if _is_of_clip(key)}
    return found


def unheld(state: ldm.State) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that no part of the model holds, such as T5. Averaged weights are left
    out, for they are those of another moment.
    """
    texts = tuple(TEXT_PREFIXES.values())
    others = (ldm.UNET_PREFIX, ldm.VAE_PREFIX, ldm.EMA_PREFIX)
    return {
        key: value
        for key, value in state.items()
        if not key.startswith(others)
        and not any(key.startswith(p) and _is_of_clip(key.removeprefix(p)) for p in texts)
    }


def _is_of_clip(name: str) -> bool:
    return name.startswith(("text_model.", "text_projection.")) and name != ldm.POSITION_IDS


def configs_of(shapes: ldm_shapes.Shapes) -> dict[str, dict[str, Any]] | None:
    """Return the configs of transformer, VAE, CLIP's text encoders and scheduler, read off the shapes of a
    file, or None if it lacks what every such model has.
    """
    try:
        return {
            DENOISER: _transformer(_below(shapes, ldm.UNET_PREFIX)),
            VAE: _vae(_below(shapes, ldm.VAE_PREFIX)),
            "scheduler": dict(_SCHEDULER),
            **{
                encoder: _clip(_below(shapes, prefix), activation)
                for (encoder, prefix), activation in zip(
                    TEXT_PREFIXES.items(), ("quick_gelu", "gelu"), strict=True
                )
            },
        }
    except (KeyError, IndexError):
        return None


def config_of_t5(shapes: ldm_shapes.Shapes) -> dict[str, Any] | None:
    """Return T5's config, or None if the file has none, or keeps it in fewer bits with scales of its own."""
    inside = _below(shapes, T5_PREFIX)
    if any(name.endswith((".scale_weight", ".weight_scale")) for name in inside):
        return None
    try:
        words, width = inside["shared.weight"]
        inner, _ = inside["encoder.block.0.layer.0.SelfAttention.q.weight"]
        _, heads = inside["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        between, _ = inside["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]
    except KeyError:
        return None
    return {
        "vocab_size": words,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": between,
        "num_heads": heads,
        "num_layers": ldm_shapes.count(inside, "encoder.block.{}.layer.0.SelfAttention.q.weight"),
        "feed_forward_proj": "gated-gelu",
    }


def t5_from_file(state: ldm.State) -> dict[str, torch.Tensor]:
    """Return T5's state dict. Its words are used in two places, and may be named after one alone."""
    found = _below(state, T5_PREFIX)
    return found | {"encoder.embed_tokens.weight": found["shared.weight"]}


def names_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the name in the file of every module of the transformer, by its name in diffusers."""
    return dict(_ENDS) | {
        f"transformer_blocks.{number}.{ours}": f"joint_blocks.{number}.{theirs}"
        for number in range(config["num_layers"])
        for ours, theirs in _BLOCK
    }


def _fused(state: ldm.State) -> dict[str, torch.Tensor]:
    """Make one tensor (3 D, D), or bias (3 D,), of query, key and value."""
    import torch

    fused = {key: value for key, value in state.items() if not _is_third(key)}
    for key in filter(_Q.search, state):
        thirds = [state[_third(key, letter)] for letter in "qkv"]
        fused[_Q.sub(lambda m: f".{m[1].replace('_q', '_qkv')}.", key)] = torch.cat(thirds)
    return fused


def _split(state: ldm.State) -> dict[str, torch.Tensor]:
    split = {key: value for key, value in state.items() if not _QKV.search(key)}
    for key in state.keys() - split.keys():
        whole = _QKV.sub(lambda m: f".{m[1].replace('_qkv', '_q')}.", key)
        split |= {_third(whole, x): one for x, one in zip("qkv", state[key].chunk(3), strict=True)}
    return split


def _is_third(key: str) -> bool:
    return bool(re.search(r"\.(to_[qkv]|add_[qkv]_proj)\.", key))


def _third(key: str, letter: str) -> str:
    return _Q.sub(lambda m: f".{m[1].replace('_q', f'_{letter}')}.", key)


def _turned(state: ldm.State, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Exchange scale and shift of the last norms, of picture and of words: the same either way."""
    import torch

    last = tuple(f"{name}." for name in turned(config))
    return {
        key: torch.cat(value.chunk(2)[::-1]) if key.startswith(last) else value
        for key, value in state.items()
    }


def turned(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the modules, by their names in diffusers, whose halves lie the other way round in the file."""
    return "norm_out.linear", f"transformer_blocks.{config['num_layers'] - 1}.norm1_context.linear"


def thirds(name: str) -> tuple[str, ...]:
    """Return the modules of diffusers that a module of these tables stands for: query, key and value, or it
    alone.
    """
    found = _QKV.sub(lambda m: f".{m[1].replace('_qkv', '_q')}.", f"{name}.")
    return tuple(_third(found, x)[:-1] for x in "qkv") if found != f"{name}." else (name,)


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _transformer(shapes: ldm_shapes.Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    depth = ldm_shapes.count(shapes, "joint_blocks.{}.x_block.attn.qkv.weight")
    twice = [n for n in range(depth) if f"joint_blocks.{n}.x_block.attn2.qkv.weight" in shapes]
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": _SIDE,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": depth,
        "attention_head_dim": 64,
        "num_attention_heads": width // 64,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": twice,
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def _vae(shapes: ldm_shapes.Shapes) -> dict[str, Any]:
    has = {f"use_{name}": f"{name}.weight" in shapes for name in ("quant_conv", "post_quant_conv")}
    return ldm_shapes.vae(shapes) | _VAE | has


def _clip(shapes: ldm_shapes.Shapes, activation: str) -> dict[str, Any]:
    return ldm_shapes.clip(shapes) | {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": activation,
        "projection_dim": shapes["text_projection.weight"][0],
    }
