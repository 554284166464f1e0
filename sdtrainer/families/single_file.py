"""A base model of Stable Diffusion 1, 2 or XL in one .safetensors file of the original layout.

Owns how its configs, its prediction type and its tokenizers are found, and how its modules are filled. Our
own exports carry all of it in their header; of others, configs are read off the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import ldm, ldm_shapes, whole_model
from ..formats.safetensors_file import Header, read_header
from ..seams import DENOISER, VAE
from ..section import UserError
from . import clip_tokenizer
from .configs import Found

if TYPE_CHECKING:
    import torch

WORDS = 49408
"""Of that tokenizer."""

_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction", "sample": "sample"}
_TELLING = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_OF_REFINER = "conditioner.embedders.0.model."
V_MARK, ZERO_TERMINAL_MARK = "v_pred", "ztsnr"
"""Empty tensors by which SDXL models say that they predict v, and that their last timestep is pure noise."""
_V_ABOVE = 0.09
"""The spread of this weight tells SD 2.1-v (wide) from SD 2.1-base. Source: ComfyUI, supported_models.py,
SD20.model_type."""


def look(path: str, family: str) -> Found | None:
    """Return what lies at `path`, or None if it is no model of this family. Reads the header, and one weight
    if need be.

    Raises:
        UserError: the file is damaged, or is the refiner of SDXL.
    """
    file = Path(path).expanduser()
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    header = read_header(file)
    ours, _ = whole_model.inside(header.metadata)
    if ours is not None and {DENOISER, VAE, ldm.ENCODER, whole_model.SCHEDULER} <= ours.keys():
        why = "a single file made by sdtrainer, which says how it is built"
        return Found(path, "file", ours, why) if _family(ours) == family else None
    if any(name.startswith(_OF_REFINER) for name in header.tensors):
        raise refiner(path)
    configs = ldm_shapes.configs_of({name: info.shape for name, info in header.tensors.items()})
    if configs is None or _family(configs) != family:
        return None
    prediction, why = _prediction(file, header, configs)
    configs[whole_model.SCHEDULER] |= {"prediction_type": prediction} | _zero_terminal(header)
    configs[DENOISER]["sample_size"] = _side(header.metadata) or _usual_side(configs, prediction)
    width = configs[DENOISER]["cross_attention_dim"]
    return Found(path, "file", configs, f"a single file whose text is {width} wide, and {why}")


def refiner(path: str) -> UserError:
    """The error for SDXL's second model."""
    return UserError(
        f"Base model: '{path}' is the refiner of SDXL, which only finishes what another model began.",
        "Choose the base model of SDXL.",
        "base.path",
    )


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


def tokenizers(path: Path, configs: ldm.Configs, encoders: Sequence[str]) -> dict[str, Any]:
    """Return the file's own tokenizers, or the common one of CLIP, by text encoder.

    Raises:
        UserError: it has another vocabulary, and does not say which.
    """
    _, own = whole_model.inside(read_header(path).metadata)
    return {
        encoder: clip_tokenizer.of_texts(own[encoder]) if encoder in own else _usual(path, configs, encoder)
        for encoder in encoders
    }


def _usual(path: Path, configs: ldm.Configs, encoder: str) -> Any:
    """CLIP's tokenizer, which every encoder of CLIP or OpenCLIP shares."""
    num_words = configs[encoder]["vocab_size"]
    if num_words != WORDS:
        raise UserError(
            f"Base model: {path.name} knows {num_words:,} words instead of CLIP's {WORDS:,}, and "
            "does not say which.",
            "Choose this model as a diffusers folder.",
            "base.path",
        )
    is_openclip = ldm.is_openclip(encoder, whole_model.layout_of(configs))
    return clip_tokenizer.clip_tokenizer(clip_tokenizer.OPENCLIP_PAD if is_openclip else clip_tokenizer.END)


def _prediction(path: Path, header: Header, configs: ldm.Configs) -> tuple[str, str]:
    """The prediction type, and how it is known."""
    said = _PREDICTIONS.get(header.metadata.get("modelspec.prediction_type", ""))
    if said is not None:
        return said, f"which says that it predicts {said}"
    if V_MARK in header.tensors:
        return "v_prediction", "marked as predicting v_prediction"
    if whole_model.layout_of(configs) != "openclip":
        return "epsilon", "as such models usually do it predicts epsilon"
    guess = "v_prediction" if _spread(path, header) > _V_ABOVE else "epsilon"
    return guess, f"judging by one of its weights it predicts {guess} (set Prediction type if it does not)"


def _zero_terminal(header: Header) -> dict[str, Any]:
    """What the scheduler's config says of a model whose last timestep is pure noise."""
    is_so = ZERO_TERMINAL_MARK in header.tensors
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if is_so else {}


def _usual_side(configs: ldm.Configs, prediction: str) -> int:
    """The side of the latents that such a model is made for: 1024 px, 768 or 512."""
    if _family(configs) == "sdxl":
        return 128
    return 96 if configs[DENOISER]["use_linear_projection"] and prediction == "v_prediction" else 64


def _family(configs: Mapping[str, Any]) -> str:
    return "sdxl" if ldm.ENCODER_2 in configs else "sd"


def _spread(path: Path, header: Header) -> float:
    from safetensors import safe_open

    if _TELLING not in header.tensors:
        return 0.0
    with safe_open(path, "pt") as file:
        return float(file.get_tensor(_TELLING).float().std(unbiased=False))


def _side(metadata: Mapping[str, str]) -> int:
    """The side of the latents, from a resolution such as 768x768; 0 if the file does not say."""
    width, _, _ = metadata.get("modelspec.resolution", "").partition("x")
    return int(width) // 8 if width.isdecimal() and 256 <= int(width) <= 2048 else 0
