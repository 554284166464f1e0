"""Reading an adapter file of any layout and any trainer: which tensors belong to which layer of a model.

Names are told apart from the model's own module paths, never guessed: `_` in kohya's names may stand for `.`
or for itself. Reads headers as well as tensors; what the tensors mean is lycoris.py's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..section import UserError
from . import mmdit_adapters
from .diffusers_names import METADATA_KEY
from .kohya import module_name, with_text_model
from .lycoris import rank
from .naming import SD_NAMING, Naming

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
"""A tensor, or what a header says of it."""

_ENDINGS: Mapping[str, str] = {
    "lora_down.weight": "lora_down", "lora_up.weight": "lora_up", "lora_mid.weight": "lora_mid",
    "lora_A.weight": "lora_down", "lora_B.weight": "lora_up",
    "lora_A.default.weight": "lora_down", "lora_B.default.weight": "lora_up",
    "lora.down.weight": "lora_down", "lora.up.weight": "lora_up",
    "lora_linear_layer.down.weight": "lora_down", "lora_linear_layer.up.weight": "lora_up",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    **{word: word for word in (
        "alpha", "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
        "diff", "diff_b", "w_norm", "b_norm",
    )},
}  # fmt: skip
"""How a key ends, by layout, and the word of lycoris.py for it."""

_ALSO_READ = {"lora_te": ("lora_te1",), "lora_unet": ("lycoris",)}
"""diffusers writes SD1's only encoder as if there were two; LyCORIS on its own names no part."""

_PROCESSOR = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.")
"""The attention layers in diffusers' files of 2023."""

Layers = dict[str, dict[str, dict[str, T]]]
"""What a file holds, by part, module path and word."""


def read(
    entries: Mapping[str, T], paths: Mapping[str, Iterable[str]], naming: Naming = SD_NAMING
) -> Layers[T]:
    """Return the entries of a file, tensors that may be deferred, by part ("unet", "text_encoder"), module
    path and word.

    `paths` are the module paths of the model by part.

    Raises:
        UserError: naming what is in the file and not in the model.
    """
    where = {
        name: (part, path)
        for part, modules in paths.items()
        for path in modules
        for name in _names(part, path, naming)
    }
    named: Mapping[str, Mapping[str, T]] = by_name(entries)
    if naming.joint:
        named = mmdit_adapters.translated(named, naming.joint)
    found: Layers[T] = {}
    left = []
    for name, words in named.items():
        if "" in words or name not in where:
            left += [f"{name}.{word}".rstrip(".") for word in words]
            continue
        part, path = where[name]
        found.setdefault(part, {})[path] = dict(words)
    if left or not found:
        raise misfit(left)
    return found


def by_name(entries: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Return the entries by the name that the file has for a module, and word; unknown words are ''."""
    found: dict[str, dict[str, T]] = {}
    for key, entry in entries.items():
        name, word = split(key)
        found.setdefault(name, {})[word] = entry
    return found


def split(key: str) -> tuple[str, str]:
    """Return the module's name in a key, and the word for what follows it; '' for an unknown one."""
    key = _PROCESSOR.sub(lambda m: f".{m[1].replace('to_out', 'to_out.0')}.lora.", key)
    for start in (i for i, c in enumerate(key) if c == "."):
        if key[start + 1 :] in _ENDINGS:
            return key[:start], _ENDINGS[key[start + 1 :]]
    return key, ""


def with_header_alphas(found: Layers[torch.Tensor], metadata: Mapping[str, str]) -> Layers[torch.Tensor]:
    """Return the layers with the alphas that diffusers keeps in the header, where no tensor holds them.

    Raises:
        UserError: the header's entry cannot be read.
    """
    import torch

    try:
        config = json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise UserError(
            "The header of this adapter file is damaged.", "Download or copy the file again."
        ) from error
    told: Layers[torch.Tensor] = {}
    for part, layers in found.items():
        mine = {k.removeprefix(f"{part}."): v for k, v in config.items() if k.startswith(f"{part}.")}
        for path, tensors in layers.items():
            if mine and "alpha" not in tensors and "lora_down" in tensors:
                tensors = tensors | {"alpha": torch.tensor(_peft_alpha(mine, path, rank(tensors)))}
            told.setdefault(part, {})[path] = tensors
    return told


def misfit(left: list[str]) -> UserError:
    """The error for entries of a file that fit no layer."""
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    named = f": {', '.join(left[:3])}{more}" if left else ""
    return UserError(
        f"{len(left)} entries of this adapter file do not fit the base model{named}."
        if left
        else "This adapter file is empty.",
        "Choose the base model that it was trained on, and an adapter file.",
    )


def _names(part: str, path: str, naming: Naming) -> list[str]:
    """Every name by which files know a module; of SDXL's denoiser those of diffusers, too."""
    prefix, original = naming.prefixes[part], naming.path(part, path)
    prefixes = (prefix, *_ALSO_READ.get(prefix, ()))
    names = [module_name(part, p, word) for word in prefixes for p in (original, path)]
    names.append(naming.comfyui(part, path))
    if part.startswith("text_encoder"):
        return [*names, f"{part}.{path}", f"{part}.{with_text_model(path)}"]
    return [*names, f"{part}.{path}", f"base_model.model.{path}", path, f"diffusion_model.{original}"]


def _peft_alpha(config: Mapping[str, Any], path: str, rank: int) -> float:
    """The alpha of a layer as peft reads its own config."""
    names = (path, with_text_model(path))
    patterns = config.get("alpha_pattern", {}).items()
    own = (v for k, v in patterns if any(re.match(rf"(.*\.)?({k})$", name) for name in names))
    alpha = float(next(own, config.get("lora_alpha", rank)))
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
