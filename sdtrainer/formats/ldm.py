"""The original single-file layout of Stable Diffusion 1, 2 and XL, read by A1111, Forge and ComfyUI.

One file holds `model.diffusion_model.` (UNet), `first_stage_model.` (VAE) and `cond_stage_model.` (text
encoder, CLIP in SD1 and OpenCLIP in SD2) or, in SDXL, `conditioner.embedders.` (one of each). `to_ldm` and
`from_ldm` translate tensor names between it and diffusers, both from the same tables: the name of a module in
one layout, the name in the other.

Source of the names: CompVis/stable-diffusion (ldm/modules/diffusionmodules), Stability-AI/generative-models
(sgm/modules), mlfoundations/open_clip, and the module classes of diffusers and transformers. Shapes: D width
of a text encoder, P of its projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..seams import DENOISER, VAE
from ..section import UserError
from .kohya import with_text_model

if TYPE_CHECKING:
    import torch

State = Mapping[str, "torch.Tensor"]
Configs = Mapping[str, Mapping[str, Any]]
"""The config.json of each part, as diffusers and transformers write it."""
Text = Literal["clip", "openclip", "both"]
"""The text encoders of SD1, SD2 and SDXL."""

ENCODER, ENCODER_2 = "text_encoder", "text_encoder_2"
EMA_PREFIX = "model_ema."
UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
TEXT_PREFIXES: Mapping[Text, Mapping[str, str]] = {
    "clip": {ENCODER: "cond_stage_model.transformer."},
    "openclip": {ENCODER: "cond_stage_model.model."},
    "both": {ENCODER: "conditioner.embedders.0.transformer.", ENCODER_2: "conditioner.embedders.1.model."},
}
POSITION_IDS = "text_model.embeddings.position_ids"
"""A buffer 0 .. T - 1 that older CLIP classes store; readers of the layout expect it."""


def text_layout(width: int) -> Text:
    """Return how SD1 (768 and others) or SD2 (1024 wide) stores its text encoder."""
    return "openclip" if width == 1024 else "clip"


def to_ldm(states: Mapping[str, State], configs: Configs, text: Text) -> dict[str, torch.Tensor]:
    """Return the tensors of the file for the state dicts of denoiser, VAE and text encoders."""
    state = {}
    for part, prefix in _prefixes(text).items():
        ours = _prepared(part, states[part], text)
        names = names_of(part, configs[part], text)
        state |= {
            prefix + renamed(key, names): _shaped(part, key, value, to_file=True)
            for key, value in ours.items()
        }
    return state


def from_ldm(state: State, configs: Configs, text: Text) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state dicts of denoiser, VAE and text encoders; what belongs to none of them is left out.

    Raises:
        UserError: a tensor inside one of them has an unknown name.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for part, prefix in _prefixes(text).items():
        names = {theirs: ours for ours, theirs in names_of(part, configs[part], text).items()}
        theirs = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if part in TEXT_PREFIXES[text]:
            theirs = _without_unused(part, theirs, configs[part], text)
        state_ = {renamed(key, names): value for key, value in theirs.items()}
        state_ = {k: _shaped(part, k, v, to_file=False) for k, v in state_.items()}
        found[part] = _split(state_) if is_openclip(part, text) else state_
    return found


def unheld(state: State, configs: Configs, text: Text) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that no part of the model holds: OpenCLIP's last layer in SD2, the noise
    schedule, marks. Averaged weights are left out, for they are those of another moment.
    """
    prefixes = _prefixes(text)
    unused = tuple(
        prefix + name
        for part, prefix in prefixes.items()
        if is_openclip(part, text)
        for name in _unused(part, configs[part])
    )
    return {
        key: value
        for key, value in state.items()
        if key.startswith(unused) or not key.startswith((*prefixes.values(), EMA_PREFIX))
    }


def vae_to_file(state: State, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of the file for the state dict of a VAE, which every layout keeps alike."""
    names = names_of(VAE, config, "clip")
    return {
        VAE_PREFIX + renamed(key, names): _shaped(VAE, key, value, to_file=True)
        for key, value in state.items()
    }


def vae_from_file(state: State, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state dict of the VAE in a file. Raises UserError for an unknown name."""
    names = {theirs: ours for ours, theirs in names_of(VAE, config, "clip").items()}
    theirs = {k.removeprefix(VAE_PREFIX): v for k, v in state.items() if k.startswith(VAE_PREFIX)}
    ours = {renamed(key, names): value for key, value in theirs.items()}
    return {key: _shaped(VAE, key, value, to_file=False) for key, value in ours.items()}


def is_openclip(part: str, text: Text) -> bool:
    """Return whether a part is a text encoder with OpenCLIP's names, and not CLIP's."""
    return part == ENCODER_2 or (part == ENCODER and text == "openclip")


_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    DENOISER: {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
    },
    VAE: {"block_out_channels": (64,), "layers_per_block": 1},
    ENCODER: {"num_hidden_layers": 12},
    ENCODER_2: {"num_hidden_layers": 12},
}
"""What a config that is silent means: the defaults of diffusers' and transformers' classes."""


def names_of(part: str, config: Mapping[str, Any], text: Text) -> dict[str, str]:
    """Return the name in the file of every module (or parameter) of a part, by its name in diffusers.

    What lies below a named module keeps its name.
    """
    config = dict(_DEFAULTS[part]) | dict(config)
    if part == DENOISER:
        return dict(_unet(config))
    if part == VAE:
        return dict(_vae(config))
    if not is_openclip(part, text):
        return {"text_model": "text_model"}
    return dict(_openclip(config)) | _PROJECTED[part]


Pairs = Iterable[tuple[str, str]]

_UNET_ENDS = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
)
_UNET_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
_MIDDLE = (("resnets.0", "0"), ("attentions.0", "1"), ("resnets.1", "2"))


def _unet(config: Mapping[str, Any]) -> Pairs:
    """The file numbers all layers of the way down, and of the way up, through the blocks."""
    yield from _UNET_ENDS
    down, up = config["down_block_types"], config["up_block_types"]
    number = 1
    for block, kind in enumerate(down):
        for layer in range(config["layers_per_block"]):
            yield from _layer(f"down_blocks.{block}", layer, f"input_blocks.{number}", kind)
            number += 1
        if block < len(down) - 1:
            yield f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    for ours, theirs in _MIDDLE:
        place = f"mid_block.{ours}", f"middle_block.{theirs}"
        yield from _below(*place, _UNET_RESNET) if ours.startswith("resnets") else [place]
    number = 0
    for block, kind in enumerate(up):
        for layer in range(config["layers_per_block"] + 1):
            yield from _layer(f"up_blocks.{block}", layer, f"output_blocks.{number}", kind)
            number += 1
        if block < len(up) - 1:
            place = 2 if "CrossAttn" in kind else 1
            yield f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{number - 1}.{place}.conv"


def _layer(block: str, layer: int, theirs: str, kind: str) -> Pairs:
    yield from _below(f"{block}.resnets.{layer}", f"{theirs}.0", _UNET_RESNET)
    if "CrossAttn" in kind:
        yield f"{block}.attentions.{layer}", f"{theirs}.1"


_VAE_RESNET = (("conv_shortcut", "nin_shortcut"),)
_VAE_ATTENTION = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)
_SAME = ("conv_in", "conv_out")


def _vae(config: Mapping[str, Any]) -> Pairs:
    """The file counts the decoder's blocks from the finest, diffusers from the coarsest."""
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    count, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for half in ("encoder", "decoder"):
        yield from _below(half, half, [*((name, name) for name in _SAME), ("conv_norm_out", "norm_out")])
        for resnet in (0, 1):
            yield from _vae_resnet(f"{half}.mid_block.resnets.{resnet}", f"{half}.mid.block_{resnet + 1}")
        yield from _below(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _VAE_ATTENTION)
    for block in range(count):
        down = f"encoder.down_blocks.{block}", f"encoder.down.{block}"
        up = f"decoder.up_blocks.{block}", f"decoder.up.{count - 1 - block}"
        for layer in range(layers):
            yield from _vae_resnet(f"{down[0]}.resnets.{layer}", f"{down[1]}.block.{layer}")
        for layer in range(layers + 1):
            yield from _vae_resnet(f"{up[0]}.resnets.{layer}", f"{up[1]}.block.{layer}")
        yield f"{down[0]}.downsamplers.0.conv", f"{down[1]}.downsample.conv"
        yield f"{up[0]}.upsamplers.0.conv", f"{up[1]}.upsample.conv"


def _vae_resnet(ours: str, theirs: str) -> Pairs:
    yield ours, theirs
    yield from _below(ours, theirs, _VAE_RESNET)


_OPENCLIP_ENDS = (
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
)
_OPENCLIP_LAYER = (
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
)


_PROJECTION = "text_projection"
_LINEAR_PROJECTION = f"{_PROJECTION}.weight"
_PROJECTED: Mapping[str, Mapping[str, str]] = {
    ENCODER: {_PROJECTION: _PROJECTION},  # SD2's, which is not used
    ENCODER_2: {_LINEAR_PROJECTION: _PROJECTION},
}
"""OpenCLIP's projection is a matrix (D, P), that of transformers a linear layer (P, D)."""


def _openclip(config: Mapping[str, Any]) -> Pairs:
    yield from _OPENCLIP_ENDS
    for layer in range(config["num_hidden_layers"] + 1):
        ours, theirs = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        yield from _below(ours, theirs, _OPENCLIP_LAYER)


def _below(ours: str, theirs: str, names: Pairs) -> Pairs:
    return ((f"{ours}.{mine}", f"{theirs}.{its}") for mine, its in names)


def _prefixes(text: Text) -> dict[str, str]:
    return {DENOISER: UNET_PREFIX, VAE: VAE_PREFIX, **TEXT_PREFIXES[text]}


def beginning(key: str, names: Mapping[str, str]) -> str:
    """Return the longest beginning of a key that has a name; '' if there is none."""
    while key and key not in names:
        key = key.rpartition(".")[0]
    return key


def renamed(key: str, names: Mapping[str, str]) -> str:
    """Return the key with its longest named beginning replaced. Raises UserError if it has none."""
    known = beginning(key, names)
    if not known:
        raise UserError(
            f"'{key}' is no tensor of this kind of Stable Diffusion.",
            "Choose a model of the same kind as the base model.",
        )
    return names[known] + key[len(known) :]


def _shaped(part: str, key: str, value: torch.Tensor, to_file: bool) -> torch.Tensor:
    """The VAE's attention is made of 1x1 convolutions in the file, of linear layers in diffusers; a text
    projection lies across.
    """
    if key == _LINEAR_PROJECTION:
        return value.T.contiguous()
    is_linear = part == VAE and ".attentions." in key and key.endswith(".weight") and "norm" not in key
    if not is_linear:
        return value
    return value.reshape(*value.shape[:2], *((1, 1) if to_file else ()))


def _prepared(part: str, state: State, text: Text) -> dict[str, torch.Tensor]:
    """The state dict with what the file has and the module has not."""
    if part not in TEXT_PREFIXES[text]:
        return dict(state)
    named = {with_text_model(key): value for key, value in state.items()}
    if is_openclip(part, text):
        return _fused(named) if part == ENCODER_2 else _with_unused(_fused(named))
    return named | {POSITION_IDS: _position_ids(named)}


def _position_ids(state: State) -> torch.Tensor:
    import torch

    table = state["text_model.embeddings.position_embedding.weight"]
    return torch.arange(table.shape[0], device=table.device).unsqueeze(0)


_QKV = ("q_proj", "k_proj", "v_proj")


def _fused(state: State) -> dict[str, torch.Tensor]:
    """OpenCLIP keeps query, key and value as one tensor (3 D, D), and bias (3 D,)."""
    import torch

    fused = {key: value for key, value in state.items() if key.split(".")[-2] not in _QKV}
    for key in state:
        layer, dot, kind = key.partition(".q_proj.")
        if dot:
            fused[f"{layer}.in_proj_{kind}"] = torch.cat([state[f"{layer}.{name}.{kind}"] for name in _QKV])
    return fused


def _split(state: State) -> dict[str, torch.Tensor]:
    split = {key: value for key, value in state.items() if ".in_proj_" not in key}
    for key in state.keys() - split.keys():
        layer, _, kind = key.partition(".in_proj_")
        thirds = state[key].chunk(3)
        split |= {f"{layer}.{name}.{kind}": third for name, third in zip(_QKV, thirds, strict=True)}
    return split


_LAYERS = "text_model.encoder.layers."


def _with_unused(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """SD2 stops before OpenCLIP's last layer and projection; readers build them, so the file holds some."""
    import torch

    count = 1 + max(int(k.removeprefix(_LAYERS).partition(".")[0]) for k in state if k.startswith(_LAYERS))
    last, table = f"{_LAYERS}{count - 1}.", state["text_model.embeddings.position_embedding.weight"]
    unused = {k.replace(last, f"{_LAYERS}{count}."): v for k, v in state.items() if k.startswith(last)}
    projection = torch.eye(table.shape[1], dtype=table.dtype, device=table.device)
    return state | unused | {_PROJECTION: projection}


def _without_unused(
    part: str, theirs: State, config: Mapping[str, Any], text: Text
) -> dict[str, torch.Tensor]:
    """The file's text encoder without what diffusers' has no place for."""
    if not is_openclip(part, text):
        named = {with_text_model(key): value for key, value in theirs.items()}
        return {k: v for k, v in named.items() if k.startswith("text_model.") and k != POSITION_IDS}
    unused = _unused(part, config)
    return {key: value for key, value in theirs.items() if not key.startswith(unused)}


def _unused(part: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """How the names in OpenCLIP begin that the text encoder has no place for."""
    unused = ("logit_scale", "attn_mask")
    if part == ENCODER:
        return (*unused, f"transformer.resblocks.{config['num_hidden_layers']}.", _PROJECTION)
    return unused
