"""Adapters in each of the layouts that programs read, from tensors by part, module path and word.

    kohya      lora_unet_mid_block_... .lora_down.weight, alpha beside it   A1111, Forge, ComfyUI, diffusers
    diffusers  unet.mid_block... .lora_A.weight, alpha folded in            diffusers
    peft       a folder for each part, alpha in its config                  peft
    comfyui    diffusion_model.middle_block... .lora_down.weight, alpha     ComfyUI

The words mean what formats/lycoris.py says. diffusers and peft have LoRA and DoRA alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..formats import diffusers_names, peft_folder, safetensors_file
from ..formats.adapter_file import Layers
from ..formats.diffusers_names import METADATA_KEY
from ..formats.kohya import LoraTensors
from ..formats.naming import Naming, naming_of
from ..recognition import Found
from ..seams import Facts, Precision
from ..section import UserError, knob

if TYPE_CHECKING:
    import torch

Layout = Literal["kohya", "diffusers", "peft", "comfyui"]
PLAIN: tuple[Layout, ...] = ("diffusers", "peft")
"""Those that have no place for anything but LoRA and DoRA."""
_ENDS = {word: f"{word}.weight" for word in ("lora_down", "lora_up", "lora_mid")}
_LORA = {"lora_down", "lora_up", "lora_mid", "alpha", "dora_scale", "magnitude"}


def layout_knob() -> Any:
    return knob(
        "kohya",
        "Layout",
        "kohya: A1111, Forge, ComfyUI, and mostly diffusers. diffusers: its pipelines. peft: a folder for "
        "that library. comfyui: ComfyUI's own names.",
    )


def layout_of(found: Found, names: Mapping[str, Any], path: Path) -> Layout:
    """Return the layout of a file that was found."""
    if path.is_dir():
        return "peft"
    if any(name.startswith("diffusion_model.") or ".clip_" in name for name in names):
        return "comfyui"
    return "diffusers" if found.adapter and found.adapter.layout == "diffusers" else "kohya"


def check(layers: Layers[Any], layout: Layout, name: str, setting: str) -> None:
    """Raise UserError if a layout has no place for these adapters."""
    for by_path in layers.values():
        for path, words in by_path.items():
            if layout in PLAIN and not ({"lora_down", "lora_up"} <= words.keys() <= _LORA):
                raise UserError(
                    f"Layout: '{layout}' has LoRA and DoRA alone, and {path} of {name} is neither.",
                    "Choose kohya or comfyui, or resize the file first, which makes a LoRA of it.",
                    setting,
                )
            if layout in PLAIN and "dora_scale" in words and words["dora_scale"].shape[0] == 1:
                raise UserError(
                    f"Layout: {name} is a DoRA of the older kind, with one size per input, which '{layout}' "
                    "does not know.",
                    "Choose kohya or comfyui.",
                    setting,
                )


def writing(
    path: Path,
    layers: Layers[torch.Tensor],
    facts: Facts,
    layout: Layout,
    metadata: Mapping[str, str],
    precision: Precision | None,
) -> Iterator[int]:
    """Write an adapter file, or peft's folder, yielding the bytes of each tensor."""
    kept = {key: value for key, value in metadata.items() if key != METADATA_KEY}
    if layout == "peft":
        yield from peft_folder.writing(path, _plain(layers), kept, precision)
        return
    if layout == "diffusers":
        state, header = diffusers_names.to_diffusers(_plain(layers))
    else:
        state, header = _by_words(layers, naming_of(facts), layout), {}
    yield from safetensors_file.writing(path, state, kept | header, precision)


def _by_words(layers: Layers[torch.Tensor], naming: Naming, layout: Layout) -> dict[str, torch.Tensor]:
    name = naming.comfyui if layout == "comfyui" else naming.name
    return {
        f"{name(part, path)}.{_ENDS.get(word, word)}": tensor
        for part, by_path in layers.items()
        for path, words in by_path.items()
        for word, tensor in _with_dora_scale(words).items()
    }


def _with_dora_scale(words: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """peft's magnitudes in kohya's shape: (out, 1[, 1, 1])."""
    if "magnitude" not in words:
        return dict(words)
    shape = (-1, *[1] * (words["lora_down"].ndim - 1))
    others = {word: tensor for word, tensor in words.items() if word != "magnitude"}
    return others | {"dora_scale": words["magnitude"].reshape(shape)}


def _plain(layers: Layers[torch.Tensor]) -> dict[str, dict[str, LoraTensors]]:
    return {
        part: {path: _lora(_with_dora_scale(words)) for path, words in by_path.items()}
        for part, by_path in layers.items()
    }


def _lora(words: Mapping[str, torch.Tensor]) -> LoraTensors:
    down, up = words["lora_down"], words["lora_up"]
    if "lora_mid" in words:
        down = without_middle(words["lora_mid"], down)
    alpha = float(words["alpha"]) if "alpha" in words else float(down.shape[0])
    return LoraTensors(down, up, alpha, words.get("dora_scale"))


def without_middle(middle: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Return the one matrix (R, in, kh, kw) that a Tucker decomposition's middle (R, R, kh, kw) and first
    (R, in, 1, 1) are together.
    """
    import torch

    return torch.einsum("rskl,si->rikl", middle.float(), down.flatten(1).float())
