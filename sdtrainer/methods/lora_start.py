"""A LoRA that goes on from a LoRA file: checked by its header alone, then taken over layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import adapter_file, lycoris
from ..formats.naming import naming_of
from ..formats.safetensors_file import Header, TensorInfo, read_header
from ..seams import Facts, Parts
from ..section import UserError
from . import targets
from .adapter import NAME, by_part, paths

if TYPE_CHECKING:
    import torch

    from .lora import LoraSection

SETTING = "method.init_from"
_MAGNITUDES = ("dora_scale", "magnitude")
_WORDS = {"lora_down", "lora_up", "alpha", *_MAGNITUDES}


def check(section: LoraSection, facts: Facts) -> None:
    """Look at the file's header.

    Raises:
        UserError: it is missing, no plain LoRA, or of another rank, kind or base.
    """
    layers = adapter_file.by_name(_header(section.init_from).tensors)
    strange = {word for layer in layers.values() for word in layer} - _WORDS
    if strange or not all({"lora_down", "lora_up"} <= layer.keys() for layer in layers.values()):
        raise _refused(section.init_from, "is no plain LoRA", "Choose a LoRA file.")
    is_dora = any(word in layer for layer in layers.values() for word in _MAGNITUDES)
    if is_dora != section.dora:
        kind, switch = ("a DoRA", "on") if is_dora else ("no DoRA", "off")
        raise _refused(section.init_from, f"is {kind}", f"Switch DoRA {switch}.")
    allowed = {section.rank, *targets.other_ranks(section)}
    found = {lycoris.rank(layer) for layer in layers.values()}
    if not found <= allowed:
        wrong = ", ".join(str(rank) for rank in sorted(found - allowed))
        raise _refused(
            section.init_from, f"has rank {wrong}", f"It is {section.rank} here: make them the same."
        )
    _check_text_width(section.init_from, layers, facts)


def take_over(file: str, parts: Parts) -> None:
    """Copy a file's matrices into the attached layers; those that the file does not have stay without effect.

    On the meta device only names and shapes are checked.

    Raises:
        UserError: the file has layers that are not trained, or of another shape.
    """
    from safetensors.torch import load_file

    from ..formats import deferred

    header, attached, naming = _header(file), by_part(parts), naming_of(parts.facts)
    place = Path(file).expanduser()
    _check_layers(file, adapter_file.read(deferred.tensors(place), paths(parts), naming), attached)
    if any(
        p.is_meta for layers in attached.values() for layer in layers.values() for p in layer.parameters()
    ):
        return
    found = adapter_file.read(load_file(place), paths(parts), naming)
    for part, layers in adapter_file.with_header_alphas(found, header.metadata).items():
        for path, tensors in layers.items():
            _copy(attached[part][path], tensors)


def matrices(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return down (r, in[, k, k]) and up (out, r[, 1, 1]), sharing memory with the layer, with delta W =
    up @ down * alpha / r for W as the layer stores it.
    """
    if NAME in layer.lora_embedding_A:  # peft keeps A (r, words) and B (width, r) for W (words, width)
        return layer.lora_embedding_B[NAME].detach().T, layer.lora_embedding_A[NAME].detach().T
    return layer.lora_A[NAME].weight.detach(), layer.lora_B[NAME].weight.detach()


def _check_layers(file: str, found: adapter_file.Layers[Any], attached: dict[str, dict[str, Any]]) -> None:
    for part, layers in found.items():
        for path, told in layers.items():
            if path not in attached.get(part, {}):
                raise _refused(file, f"has the layer {part}.{path}", "Choose it among the layers to train.")
            for word, mine in zip(("lora_down", "lora_up"), matrices(attached[part][path]), strict=True):
                if told[word].shape[0] != mine.shape[0] or math.prod(told[word].shape) != mine.numel():
                    raise _refused(
                        file,
                        f"holds {list(told[word].shape)} for {part}.{path}, which is {list(mine.shape)} here",
                        "Choose the same rank and the base model that it was trained on.",
                    )


def _copy(layer: Any, tensors: lycoris.Tensors) -> None:
    """The file's strength goes into the second matrix where alpha / rank is another here."""
    import torch

    down, up = matrices(layer)
    scale = lycoris.scale(tensors) / layer.scaling[NAME]
    with torch.no_grad():
        down.copy_(tensors["lora_down"].reshape(down.shape))
        up.copy_(tensors["lora_up"].reshape(up.shape).float() * scale)
        magnitude = lycoris.magnitude(tensors, down.ndim)
        if magnitude is not None:
            mine = layer.lora_magnitude_vector[NAME].weight
            mine.copy_(magnitude.reshape(mine.shape))


def _header(file: str) -> Header:
    path = Path(file).expanduser()
    if path.suffix != ".safetensors":
        raise _refused(file, "is no .safetensors file", "Choose one that ends in .safetensors.")
    try:
        return read_header(path)
    except UserError as error:
        raise UserError(error.what, error.hint, SETTING) from error


def _check_text_width(file: str, layers: dict[str, dict[str, TensorInfo]], facts: Facts) -> None:
    for name, layer in layers.items():
        width = layer["lora_down"].shape[1]
        if name.endswith(("attn2_to_k", "attn2.to_k")) and width != facts.text_width:
            raise _refused(
                file,
                f"was trained on a base whose text is {width} wide, and that of {facts.title} is "
                f"{facts.text_width}",
                "Choose the base model that it was trained on.",
            )


def _refused(file: str, what: str, hint: str) -> UserError:
    return UserError(f"Go on from a LoRA file: {Path(file).name} {what}.", hint, SETTING)
