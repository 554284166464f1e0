"""A base model in one file of the original layout.

Owns how its configs, its prediction type and its tokenizers are found, and how its modules are filled. Our
own exports carry all of it in their header; of others, configs are read off the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import recognition
from ..formats import intact, ldm, ldm_shapes, mmdit, whole_model
from ..recognition.contents import Contents, contents_of
from ..seams import DENOISER, T5, VAE
from ..section import UserError
from . import clip_tokenizer
from .configs import Found

if TYPE_CHECKING:
    import torch

WORDS = 49408
"""Of that tokenizer."""


def look(path: str, stated: str) -> Found | None:
    """Return what lies at `path`, which may be `stated` to be of a family; None if it is no file of a model
    that is known. Reads the header, and one weight if need be.

    Raises:
        UserError: the file is damaged.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        return None
    seen = recognition.look(file, family=stated)
    if seen.kind != "model" or seen.prediction is None:
        return None
    contents = contents_of(file)
    if ours := _ours(contents.metadata):
        why = "a single file made by sdtrainer, which says how it is built"
        return Found(path, "file", ours | _t5(contents), why)
    prediction = seen.prediction
    if prediction.type == "flow":
        configs = mmdit.configs_of(contents.shapes)
        return configs and Found(path, "file", configs | _t5(contents), f"{seen.why}, in a single file")
    configs = ldm_shapes.configs_of(contents.shapes)
    if configs is None:
        return None
    configs[whole_model.SCHEDULER] |= {"prediction_type": prediction.type} | _zero_terminal(seen)
    configs[DENOISER]["sample_size"] = _side(contents.metadata) or _usual_side(seen.base, prediction.type)
    why = f"{seen.why}, in a single file; {prediction.why} it predicts {prediction.type}"
    return Found(path, "file", configs, why, is_undecided=not prediction.is_decided)


def _ours(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The configs in the header of a file of ours."""
    configs, _ = whole_model.inside(metadata)
    wanted = {DENOISER, VAE, ldm.ENCODER, whole_model.SCHEDULER}
    return configs if configs is not None and wanted <= configs.keys() else None


def _t5(contents: Contents) -> dict[str, Any]:
    """The config of T5 where it is in the file."""
    config = mmdit.config_of_t5(contents.shapes)
    return {T5: config} if config else {}


def modules(
    path: Path, empty: Mapping[str, torch.nn.Module], configs: ldm.Configs, dtypes: Mapping[str, torch.dtype]
) -> dict[str, torch.nn.Module]:
    """Fill modules that have no weights yet, each in its number format.

    Raises:
        UserError: a tensor is missing, has another shape than the configs say, or is not what we wrote.
    """
    if not empty:
        return {}
    if _ours(contents_of(path).metadata):
        intact.check_hash(path)
    states = whole_model.read_states(path, configs)
    if T5 in empty:
        states[T5] = mmdit.t5_from_file(whole_model.read_tensors(path))
    try:
        for part, module in empty.items():
            whole_model.fill(module, states[part], dtypes[part])
        if T5 in empty:
            empty[T5].tie_weights()
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
    _, own = whole_model.inside(contents_of(path).metadata)
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


def _zero_terminal(seen: recognition.Found) -> dict[str, Any]:
    """What the scheduler's config says of a model whose last timestep is pure noise."""
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if seen.is_zero_snr else {}


def _usual_side(base: str, prediction: str) -> int:
    """The side of the latents that such a model is made for: 1024 px, 768 or 512."""
    if base == "SDXL":
        return 128
    return 96 if base == "SD2" and prediction == "v_prediction" else 64


def _side(metadata: Mapping[str, str]) -> int:
    """The side of the latents, from a resolution such as 768x768; 0 if the file does not say."""
    width, _, _ = metadata.get("modelspec.resolution", "").partition("x")
    return int(width) // 8 if width.isdecimal() and 256 <= int(width) <= 2048 else 0
