"""What LoRA, LoHa and LoKr share: which modules get an adapter, putting it there through peft, and taking
stock of it.

Knows nothing of one method's mathematics or file format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..formats.safetensors_file import read_header
from ..seams import DENOISER, LearningRates, ParamGroup, Parts
from ..section import Section, UserError, knob

if TYPE_CHECKING:
    import torch

NAME = "default"
Targets = Literal["attention", "attention and feed-forward", "with convolutions", "own list"]

_ATTENTION = r"(.*\.)?(to_q|to_k|to_v|to_out\.0)"
_TRANSFORMER = r"(.*\.)?(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)"
_CONVOLUTIONS = (
    r"(.*\.)?(conv1|conv2|time_emb_proj|conv_shortcut|downsamplers\.\d+\.conv|upsamplers\.\d+\.conv)"
)
DENOISER_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": (_ATTENTION,),
    "attention and feed-forward": (_TRANSFORMER,),
    "with convolutions": (_TRANSFORMER, _CONVOLUTIONS),
}
ENCODER_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": (r"(.*\.)?self_attn\.(q_proj|k_proj|v_proj|out_proj)",),
    "attention and feed-forward": (r"(.*\.)?(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))",),
    "with convolutions": (r"(.*\.)?(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))",),
}


class AdapterSection(Section):
    """Settings that every adapter has."""

    targets: Targets = knob(
        "attention and feed-forward",
        "Layers to train",
        "Which layers of the model get an adapter. Attention alone gives the smallest file; feed-forward "
        "layers learn "
        "more detail; convolutions help styles and textures; 'own list' uses the patterns below.",
        level="basic",
    )
    own_targets: list[str] = knob(
        [],
        "Own list of layers",
        "Patterns of layer names, one per line, for 'own list': '*' stands for any text, as in "
        "*attn2.to_k. Names "
        "beginning with text_encoder. choose layers of the text encoder (token_embedding too).",
        lines=3,
    )
    train_text_encoder: bool = knob(
        False,
        "Train the text encoder too",
        "Also teaches the part that reads the prompt. Learns trigger words faster, but forgets more and "
        "needs more "
        "memory; text can then not be cached.",
        level="basic",
    )


def patterns(section: AdapterSection, part: str) -> tuple[str, ...]:
    """Return the regular expressions that a module path of `part` must match in full, one of them."""
    if section.targets == "own list":
        return tuple(_glob(p.removeprefix(f"{part}.")) for p in section.own_targets if _belongs(p, part))
    if part == DENOISER:
        return DENOISER_TARGETS[section.targets]
    return ENCODER_TARGETS[section.targets] if section.train_text_encoder else ()


def check_targets(section: AdapterSection) -> None:
    """Raise UserError when 'own list' is chosen and empty."""
    if section.targets == "own list" and not any(p.strip() for p in section.own_targets):
        raise UserError(
            "Own list of layers: it is empty.",
            "Add a pattern such as *attn2.to_k, or choose other layers to train.",
            "method.own_targets",
        )


def choose(module: torch.nn.Module, wanted: Sequence[str]) -> list[str]:
    """Return the paths of linear, convolution and embedding layers whose path matches one of `wanted` in
    full.

    Raises:
        UserError: a pattern matches no such layer; it is named.
    """
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)
    paths = [path for path, layer in module.named_modules() if isinstance(layer, kinds)]
    for pattern in wanted:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise UserError(
                f"Layers to train: no layer matches '{pattern}'.",
                f"Names look like {paths[len(paths) // 2]}; mend or remove the pattern.",
                "method.own_targets",
            )
    return [path for path in paths if any(re.fullmatch(pattern, path) for pattern in wanted)]


def inject(parts: Parts, section: AdapterSection, config_of: Any, lrs: LearningRates) -> list[ParamGroup]:
    """Put adapters made by `config_of(paths)` into the parts that the section chooses; they train in fp32.

    Returns one group per part, without empty ones.
    """
    from peft import inject_adapter_in_model

    groups = []
    for part in (DENOISER, *parts.facts.encoders):
        module = parts.modules[part]
        paths = choose(module, patterns(section, part))
        if not paths:
            continue
        inject_adapter_in_model(config_of(paths), module, adapter_name=NAME)
        trained = [p for p in module.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()
        assert len(list(layers(module))) == len(paths), (
            f"peft attached to other layers than {len(paths)} asked for"
        )
        lr = lrs.denoiser if part == DENOISER else lrs.text_encoder
        groups.append(ParamGroup(part.replace("_", " "), trained, lr))
    if not groups:
        raise UserError(
            "Layers to train: none is chosen.", "Choose layers of the denoiser.", "method.targets"
        )
    return groups


def remove(parts: Parts) -> None:
    """Put the bare layers back in place of those that carry an adapter."""
    for module in parts.modules.values():
        for path, layer in list(layers(module)):
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, layer.get_base_layer())


def add(module: torch.nn.Module, deltas: Mapping[str, torch.Tensor], strength: float) -> None:
    """Add strength x delta to the weights of the layers of these paths."""
    import torch

    with torch.no_grad():
        for path, delta in deltas.items():
            weight = module.get_submodule(path).weight
            weight.add_(delta.reshape(weight.shape).to(weight), alpha=strength)


def has_keys(file: Path, endings: tuple[str, ...]) -> bool:
    """Return whether this is a .safetensors file with a tensor whose name ends so."""
    if file.suffix != ".safetensors" or not file.is_file():
        return False
    return any(name.endswith(endings) for name in read_header(file).tensors)


def outputs(name: str, formats: Sequence[str]) -> tuple[str, ...]:
    """Return the file names of an adapter, by format."""
    endings = {"webui": ".safetensors", "diffusers": "-diffusers.safetensors"}
    return tuple(name + endings[layout] for layout in formats)


def trained_parts(section: AdapterSection, facts: Any) -> tuple[str, ...]:
    """Return the parts that get adapters, from the settings alone."""
    return tuple(part for part in (DENOISER, *facts.encoders) if patterns(section, part))


def layers(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (path, peft layer) of every layer that carries an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield path, layer


def _belongs(pattern: str, part: str) -> bool:
    names_encoder = pattern.startswith("text_encoder")
    return bool(pattern.strip()) and (pattern.startswith(f"{part}.") if names_encoder else part == DENOISER)


def _glob(pattern: str) -> str:
    return "".join(".*" if c == "*" else re.escape(c) for c in pattern.strip())
