"""Whole models in one file, and denoisers alone: base model, parts, what they predict."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ..diffusion import PredictionType
from ..formats.ldm import EMA_PREFIX
from ..formats.safetensors_file import TensorInfo
from ..formats.whole_model import CONFIG_KEY, MARKS
from . import bases
from .contents import Contents, precision
from .found import Found, Part, Prediction

EMA_PART = "averaged weights (EMA)"
V_MARK, ZERO_SNR_MARK = MARKS
"""Empty tensors by which a file says that it predicts v, and that its noise ends at zero SNR."""

_TELLING = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_ABOVE = 0.09
"""The spread of this weight tells SD 2.1-v (wide) from SD 2.1-base. Source: ComfyUI, supported_models.py,
SD20.model_type."""
_WORDS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction",
    "v-prediction": "v_prediction", "sample": "sample",
}  # fmt: skip
_ARCHITECTURES: Mapping[str, PredictionType] = {
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}
_IN_YAML: tuple[tuple[str, PredictionType], ...] = (
    (r"parameterization:\s*['\"]?v\b", "v_prediction"),
    (r"VScaling\b", "v_prediction"),
    (r"parameterization:\s*['\"]?eps\b", "epsilon"),
    (r"EpsScaling\b", "epsilon"),
    (r"LatentDiffusion\b", "epsilon"),  # the default of its class
)
"""What the settings file beside a model, of the original programs, says of it."""


def look(path: Path, contents: Contents) -> Found | None:
    """Return what model this is, or None if it is none."""
    inner = {name.removeprefix(bases.DENOISER_PREFIX): shape for name, shape in contents.shapes.items()}
    base, told = bases.base_of(inner)
    if not base:
        return _average(contents)
    row, variant = bases.BASES[base], bases.variant_of(base, inner)
    is_whole = any(name.startswith(bases.DENOISER_PREFIX) for name in contents.tensors)
    if not is_whole and any(bases.Mark(prefix).is_on(contents.shapes) for prefix in row.parts.values()):
        return None  # a text encoder or a VAE under the names of a whole model
    channels = bases.VARIANTS.values()
    found = Found(
        kind="model" if is_whole else "denoiser",
        title=bases.titled(base, variant) if is_whole else f"the denoiser of {row.title} alone",
        why=f"{told}{f' and {_channels(inner)} input channels' if variant in channels else ''}",
        base=base,
        variant=variant,
        parts=parts_of(contents.tensors, row.parts if is_whole else {"denoiser": ""}),
        missing=_missing(contents, row) if is_whole else (),
        prediction=_prediction(path, contents, base),
        is_zero_snr=ZERO_SNR_MARK in contents.tensors,
    )
    return replace(found, otherwise=(replace(found, variant=""),) if variant == bases.PRUNED else ())


def parts_of(tensors: Mapping[str, TensorInfo], prefixes: Mapping[str, str]) -> tuple[Part, ...]:
    """Return the parts whose tensors begin so, then averaged weights and whatever else there is."""
    groups: dict[str, list[TensorInfo]] = {}
    named = [(prefix, part) for part, prefix in prefixes.items()]
    named += [("text_encoders.t5xxl.", "text encoder 3"), (EMA_PREFIX, EMA_PART)]
    for name, info in tensors.items():
        part = next((part for prefix, part in named if name.startswith(prefix)), "other")
        groups.setdefault(part, []).append(info)
    order = [*(part for _, part in named), "other"]
    return tuple(_part(part, groups[part]) for part in order if part in groups)


def _part(name: str, infos: Iterable[TensorInfo]) -> Part:
    infos, sizes = list(infos), Counter[str]()
    for info in infos:
        sizes[precision(info.dtype)] += info.num_bytes
    return Part(
        name,
        len(infos),
        sum(_count(info.shape) for info in infos),
        sizes.total(),
        tuple(word for word, _ in sizes.most_common()),
    )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _channels(inner: bases.Shapes) -> int:
    return next(inner[name][1] for name in ("input_blocks.0.0.weight", "conv_in.weight") if name in inner)


def _missing(contents: Contents, row: bases.Base) -> tuple[str, ...]:
    return tuple(part for part, prefix in row.parts.items() if not bases.Mark(prefix).is_on(contents.shapes))


def _average(contents: Contents) -> Found | None:
    if not bases.Mark(EMA_PREFIX).is_on(contents.shapes):
        return None
    return Found(
        "other",
        "a model of which only the averaged weights (EMA) are there",
        f"its names begin with {EMA_PREFIX}",
        parts=parts_of(contents.tensors, bases.BASES["SD1"].parts),
    )


def _prediction(path: Path, contents: Contents, base: str) -> Prediction:
    """The first that speaks: the file's own marks and words, the file beside it, the kind of model."""
    if bases.BASES[base].is_flow:
        return Prediction("flow", "as all models of this kind do")
    for told, why in _told(path, contents):
        if told is not None:
            return Prediction(told, why)
    if base == "SD2" and _TELLING in contents.tensors:
        is_wide = statistics.pstdev(contents.numbers(_TELLING)) > _V_ABOVE
        return Prediction(
            "v_prediction" if is_wide else "epsilon", "judging by one of its weights", is_decided=False
        )
    return Prediction("epsilon", "as most such models do", is_decided=False)


def _told(path: Path, contents: Contents) -> Iterable[tuple[PredictionType | None, str]]:
    says = contents.metadata
    yield _inside(says), "as its header says"
    yield "v_prediction" if V_MARK in contents.tensors else None, f"as its mark {V_MARK} says"
    yield _WORDS.get(says.get("modelspec.prediction_type", "").lower()), "as its header says"
    architecture = says.get("modelspec.architecture", "").partition("/")[0]
    yield _ARCHITECTURES.get(architecture), f"as its header says: {architecture}"
    yield (
        "v_prediction" if says.get("ss_base_model_version", "").endswith("_v") else None,
        ("as its header says"),
    )
    yield _beside(path), f"as {path.with_suffix('.yaml').name} beside it says"


def _inside(metadata: Mapping[str, str]) -> PredictionType | None:
    """From the configs that a file of ours carries."""
    try:
        return json.loads(metadata[CONFIG_KEY])["scheduler"].get("prediction_type", "epsilon")
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def _beside(path: Path) -> PredictionType | None:
    try:
        text = path.with_suffix(".yaml").read_text(encoding="utf-8", errors="replace")[:100_000]
    except OSError:
        return None
    return next((found for pattern, found in _IN_YAML if re.search(pattern, text)), None)
