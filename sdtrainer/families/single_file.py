"""A base model of Stable Diffusion 1 or 2 in one .safetensors file of the original layout.

Owns how its configs, its prediction type and its tokenizer are found, and how its modules are filled. Our own
exports carry all of it in their header; of others, configs are read off the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import recognition
from ..formats import ldm, ldm_shapes, whole_model
from ..recognition.contents import contents_of
from ..recognition.found import Prediction
from ..seams import DENOISER, VAE
from ..section import UserError
from . import clip_tokenizer

if TYPE_CHECKING:
    import torch

WORDS = 49408
"""Of that tokenizer."""


@dataclass(frozen=True)
class SingleFile:
    """What a file is. `why` ends a sentence for the user."""

    configs: dict[str, dict[str, Any]]
    prediction: Prediction
    why: str


def look(path: Path) -> SingleFile | None:
    """Return what lies at `path`, or None if it is no model of this kind. Reads the header, and one weight
    if need be.

    Raises:
        UserError: the file is damaged.
    """
    found = recognition.look(path)
    if found.base not in ("SD1", "SD2") or found.prediction is None:
        return None
    contents = contents_of(path)
    ours, _ = whole_model.inside(contents.metadata)
    if ours is not None and {DENOISER, VAE, ldm.ENCODER, whole_model.SCHEDULER} <= ours.keys():
        return SingleFile(
            ours, found.prediction, "a single file made by sdtrainer, which says how it is built"
        )
    configs = ldm_shapes.configs_of(contents.shapes)
    if configs is None:
        return None
    prediction = found.prediction
    configs[whole_model.SCHEDULER] |= {
        "prediction_type": prediction.type,
        "rescale_betas_zero_snr": found.is_zero_snr,
    }
    is_large = found.base == "SD2" and prediction.type == "v_prediction"
    configs[DENOISER]["sample_size"] = _side(contents.metadata) or (96 if is_large else 64)
    why = f"{found.why}, in a single file; {prediction.why} it predicts {prediction.type}"
    return SingleFile(configs, prediction, why)


def modules(
    path: Path, empty: Mapping[str, torch.nn.Module], configs: ldm.Configs, dtypes: Mapping[str, torch.dtype]
) -> dict[str, torch.nn.Module]:
    """Fill modules that have no weights yet, each in its number format.

    Raises:
        UserError: a tensor is missing or has another shape than the configs say.
    """
    if not empty:
        return {}
    states = whole_model.read_states(path, configs)
    try:
        for part, module in empty.items():
            whole_model.fill(module, states[part], dtypes[part])
    except RuntimeError as error:
        raise UserError(
            f"Base model: {path.name} is incomplete ({' '.join(str(error).split())[:160]}).",
            "Download it again, or choose another file.",
            "base.path",
        ) from error
    return dict(empty)


def tokenizer(path: Path, configs: ldm.Configs) -> Any:
    """Return the file's own tokenizer, or the common one of CLIP.

    Raises:
        UserError: it has another vocabulary, and does not say which.
    """
    _, texts = whole_model.inside(contents_of(path).metadata)
    if texts is not None:
        return clip_tokenizer.of_texts(texts)
    encoder = configs[ldm.ENCODER]
    if encoder["vocab_size"] != WORDS:
        raise UserError(
            f"Base model: {path.name} knows {encoder['vocab_size']:,} words instead of CLIP's {WORDS:,}, and "
            "does not say which.",
            "Choose this model as a diffusers folder.",
            "base.path",
        )
    is_openclip = ldm.text_layout(encoder["hidden_size"]) == "openclip"
    return clip_tokenizer.clip_tokenizer(clip_tokenizer.OPENCLIP_PAD if is_openclip else clip_tokenizer.END)


def _side(metadata: Mapping[str, str]) -> int:
    """The side of the latents, from a resolution such as 768x768; 0 if the file does not say."""
    width, _, _ = metadata.get("modelspec.resolution", "").partition("x")
    return int(width) // 8 if width.isdecimal() and 256 <= int(width) <= 2048 else 0
