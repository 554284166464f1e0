"""Folders: a model as diffusers keeps it, or one part of such a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..formats import peft_folder
from ..formats.diffusers_folder import DIFFUSERS, INDEX, TRANSFORMERS, weights_in
from ..formats.safetensors_file import TensorInfo, read_header
from . import adapters
from .bases import BASES, EDM, PRUNED, VARIANTS, titled
from .contents import Contents
from .found import Found, Kind, Part, Prediction
from .models import parts_of

_PIPELINES: tuple[tuple[str, str], ...] = (
    ("StableDiffusion3", "SD3"),
    ("StableDiffusionXL", "SDXL"),
    ("StableDiffusion", "SD1"),  # or SD2, by the width of its text
    ("Flux", "Flux"),
)
"""How the class of a pipeline begins."""
_CLASSES: Mapping[str, tuple[Kind, str]] = {
    "UNet2DConditionModel": ("denoiser", "the denoiser of a model alone, as diffusers keeps it"),
    "SD3Transformer2DModel": ("denoiser", "the denoiser of a model alone, as diffusers keeps it"),
    "AutoencoderKL": ("vae", "a VAE, as diffusers keeps it"),
    "ControlNetModel": ("controlnet", "a ControlNet, as diffusers keeps it"),
    "MotionAdapter": ("other", "a motion module, as diffusers keeps it"),
}
_MIDDLE = "UNetMidBlock2DCrossAttn"
_TOLD_MORE = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")
"""Settings of a UNet that is told something which those of Stable Diffusion are not."""
_PART_FOLDERS: Mapping[str, str] = {
    "unet": "denoiser", "transformer": "denoiser", "vae": "VAE", "text_encoder": "text encoder",
    "text_encoder_2": "text encoder 2", "text_encoder_3": "text encoder 3",
}  # fmt: skip


def look(path: Path, reads_weights: bool = True) -> Found | None:
    """Return what lies in this folder, or None if it is no folder of a model. Without `reads_weights` they
    need not be there yet.

    Raises:
        UserError: its weights are damaged, or some of them are missing.
    """
    index = _json(path / INDEX)
    if index is not None:
        return _pipeline(path, index, reads_weights)
    if peft_folder.is_folder(path):
        return _peft(path)
    config = _json(path / "config.json") or {}
    known = _CLASSES.get(str(config.get("_class_name", "")))
    if known:
        return Found(known[0], known[1], f"its config.json, a {config['_class_name']}")
    return _parts_alone(path, reads_weights)


def _peft(path: Path) -> Found:
    """What its tensors are, if they can be read."""
    infos, metadata = peft_folder.read(path, lambda file: read_header(file).tensors)
    found = adapters.look(Contents(infos, metadata, lambda name: [0.0]))
    why = f"its {peft_folder.CONFIG}"
    if found is None:
        return Found("adapter", "an adapter as a folder of peft", why)
    return replace(found, title=f"{found.title}, as a folder of peft", why=f"{why} and {found.why}")


def _pipeline(path: Path, index: Mapping[str, Any], reads_weights: bool) -> Found | None:
    name, denoiser = str(index.get("_class_name", "")), _denoiser(path)
    base = next((base for start, base in _PIPELINES if name.startswith(start)), "")
    if not base:
        title = f"a model of another kind ({name or 'without a name'})"
        return Found("other", title, f"its {INDEX}", otherwise=_built_like(path, "", reads_weights))
    base, why = _refined(base, index, denoiser), f"its {INDEX}, a {name}"
    return _model(path, base, why, reads_weights, _built_like(path, base, reads_weights))


def _parts_alone(path: Path, reads_weights: bool) -> Found | None:
    """Folders of the parts with nothing that says what they make together."""
    otherwise = _built_like(path, "", reads_weights)
    title, why = f"the parts of a model without {INDEX}", "its folders"
    return Found("other", title, why, otherwise=otherwise) if otherwise else None


def _built_like(path: Path, base: str, reads_weights: bool) -> tuple[Found, ...]:
    """What else than `base` the folder may hold, by what its denoiser is built like."""
    bases = [like for like in _like(_denoiser(path)) if like != base]
    found = [_model(path, like, f"how its denoiser is built, as in {like}", reads_weights) for like in bases]
    return tuple(replace(one, variant="") if one.variant == PRUNED else one for one in found)


def _like(denoiser: Mapping[str, Any]) -> tuple[str, ...]:
    """The rows of BASES that a denoiser with this config may belong to."""
    if denoiser.get("_class_name") == "SD3Transformer2DModel":
        return (_refined("SD3", {}, denoiser),)
    if denoiser.get("_class_name") != "UNet2DConditionModel" or any(denoiser.get(k) for k in _TOLD_MORE):
        return ()
    width, added = denoiser.get("cross_attention_dim"), denoiser.get("addition_embed_type")
    if added is not None:
        return ("SDXL",) if added == "text_time" and width != BASES["SDXL refiner"].text_width else ()
    published = tuple(base for base in ("SD1", "SD2") if BASES[base].text_width == width)
    return published or ("SD1", "SD2")


def _model(path: Path, base: str, why: str, reads_weights: bool, otherwise: tuple[Found, ...] = ()) -> Found:
    variant = _variant(base, _denoiser(path), _json(path / "scheduler" / "scheduler_config.json") or {})
    found = Found(
        "folder",
        titled(base, variant),
        why,
        base=base,
        variant=variant,
        parts=_parts(path) if reads_weights else (),
        prediction=_prediction(path, base),
    )
    own = (replace(found, variant=""),) if variant == PRUNED else ()
    return replace(found, otherwise=(*own, *otherwise))


def _denoiser(path: Path) -> dict[str, Any]:
    """The config of the denoiser; empty if there is none."""
    return _json(path / "unet" / "config.json") or _json(path / "transformer" / "config.json") or {}


def _variant(base: str, denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
    if denoiser.get("in_channels") in VARIANTS:
        return VARIANTS[denoiser["in_channels"]]
    if str(scheduler.get("_class_name", "")).startswith("EDM"):
        return EDM
    is_whole = denoiser.get("mid_block_type", _MIDDLE) == _MIDDLE
    is_even = denoiser.get("reverse_transformer_layers_per_block") is None
    return "" if is_whole and is_even else PRUNED


def _refined(base: str, index: Mapping[str, Any], denoiser: Mapping[str, Any]) -> str:
    width = denoiser.get("cross_attention_dim")
    if base == "SD1" and width == BASES["SD2"].text_width:
        return "SD2"
    if base == "SDXL" and index.get("text_encoder") == [None, None]:
        return "SDXL refiner"
    if base == "SD3" and denoiser.get("dual_attention_layers"):
        return "SD3.5 medium"
    return "SD3.5 large" if base == "SD3" and denoiser.get("num_layers") == 38 else base


def _parts(path: Path) -> tuple[Part, ...]:
    return tuple(part for folder, word in _PART_FOLDERS.items() for part in _weights(path / folder, word))


def _weights(folder: Path, word: str) -> tuple[Part, ...]:
    """Raises UserError: a file is missing or damaged."""
    name = TRANSFORMERS if word.startswith("text") else DIFFUSERS
    found = weights_in(folder, name)
    tensors: dict[str, TensorInfo] = {}
    for file in found.files if found else ():
        tensors |= read_header(file).tensors
    return parts_of(tensors, {word: ""}) if tensors else ()


def _prediction(path: Path, base: str) -> Prediction:
    if BASES[base].is_flow:
        return Prediction("flow", "as all models of this kind do")
    config = _json(path / "scheduler" / "scheduler_config.json")
    if config is None:
        return Prediction("epsilon", "as most such models do", is_decided=False)
    return Prediction(config.get("prediction_type", "epsilon"), "as its scheduler says")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
