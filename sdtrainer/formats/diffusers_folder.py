"""A model as a diffusers folder: model_index.json, and a folder for each part with config and weights.

Knows which class of which library each part of a family is. Reads and writes files; loads no model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..seams import DENOISER, T5, VAE
from ..section import UserError
from . import safetensors_file, tokenizer_files

if TYPE_CHECKING:
    from ..seams import Precision
    from .whole_model import WholeModel

INDEX = "model_index.json"
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""What each library calls the weights of a part."""


@dataclass(frozen=True)
class Component:
    """A part's folder, its class, and what its weights are called."""

    folder: str
    library: str
    cls: str
    weights: str


@dataclass(frozen=True)
class Weights:
    """The files of one part's weights; `variant` is the word in their names for a number format, or ""."""

    variant: str
    files: tuple[Path, ...]


VARIANTS = ("", "fp16", "bf16")
_PAINTERS = {
    DENOISER: Component("unet", "diffusers", "UNet2DConditionModel", DIFFUSERS),
    VAE: Component("vae", "diffusers", "AutoencoderKL", DIFFUSERS),
    "text_encoder": Component("text_encoder", "transformers", "CLIPTextModel", TRANSFORMERS),
}
_PROJECTED = "CLIPTextModelWithProjection"
PIPELINES: Mapping[str, str] = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
}
COMPONENTS: Mapping[str, Mapping[str, Component]] = {
    "sd": _PAINTERS,
    "sdxl": _PAINTERS
    | {"text_encoder_2": Component("text_encoder_2", "transformers", _PROJECTED, TRANSFORMERS)},
    "sd3": {
        DENOISER: Component("transformer", "diffusers", "SD3Transformer2DModel", DIFFUSERS),
        VAE: _PAINTERS[VAE],
        "text_encoder": Component("text_encoder", "transformers", _PROJECTED, TRANSFORMERS),
        "text_encoder_2": Component("text_encoder_2", "transformers", _PROJECTED, TRANSFORMERS),
        T5: Component(T5, "transformers", "T5EncoderModel", TRANSFORMERS),
    },
}
"""By family and part. T5 may be missing."""
TOKENIZERS: Mapping[str, str] = {
    "text_encoder": "CLIPTokenizer",
    "text_encoder_2": "CLIPTokenizer",
    T5: "T5TokenizerFast",
}
"""By text encoder."""
_BESIDE: Mapping[str, Mapping[str, Any]] = {
    "sd": {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    },
    "sdxl": {
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
    },
    "sd3": {"image_encoder": [None, None], "feature_extractor": [None, None]},
}
"""What else the index of a folder says."""


def write(path: Path, model: WholeModel, metadata: Mapping[str, str], precision: Precision) -> None:
    """Write the folder, whole or not at all; one that is there stays until the new one is complete.

    Raises:
        UserError: a tensor is not finite, or the disk refuses.
    """
    for _ in writing(path, model, metadata, precision):
        pass


def writing(
    path: Path, model: WholeModel, metadata: Mapping[str, str], precision: Precision | None
) -> Iterator[int]:
    """Do what `write` does, yielding the bytes of each tensor; without a precision each keeps its own."""
    try:
        with files.new_folder(path) as new:
            yield from _writing_into(new, model, dict(metadata) | {"format": "pt"}, precision)
            shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{path.name} could not be written: {error}.", "Free some disk space, or choose another folder."
        ) from error


def read(path: Path, load: Callable[[Path], dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """Return the tensors of each part; `load` reads one file, by default mapped from disk.

    Raises:
        UserError: weights are missing, or are not stored as .safetensors.
    """
    components = COMPONENTS[_family(path)]
    there = {part: c for part, c in components.items() if part != T5 or (path / c.folder).is_dir()}
    return {part: _tensors(path / c.folder, c.weights, load) for part, c in there.items()}


def weights_in(folder: Path, name: str) -> Weights | None:
    """Return the files of the weights called `name`, of several precisions the plain ones; None if there are
    none. Reads their list, and no weights.

    Raises:
        UserError: a file is missing that the list of the shards names, or the list is damaged.
    """
    refusal = None
    for variant in VARIANTS:
        dotted = f".{variant}" if variant else ""
        index = folder / f"{name}.safetensors.index{dotted}.json"
        shards = _listed(index) if index.is_file() else (f"{name}{dotted}.safetensors",)
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if not missing:
            return Weights(variant, tuple(folder / shard for shard in shards))
        if index.is_file():
            refusal = refusal or _incomplete(folder, index.name, missing[0])
    if refusal is not None:
        raise refusal
    return None


def _listed(index: Path) -> tuple[str, ...]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return tuple(sorted({Path(file).name for file in named}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index.parent.name}/{index.name} is damaged: it lists no files of weights.",
            "Download the model again.",
        ) from error


def _incomplete(folder: Path, index: str, missing: str) -> UserError:
    return UserError(
        f"{folder.name}/{missing} is missing, which {folder.name}/{index} lists.",
        "Download the model again, or copy the missing file into its folder.",
    )


def is_folder(path: Path) -> bool:
    """Return whether a model of a family known here lies in this folder."""
    return _family(path) in COMPONENTS


def tokenizer_folder(encoder: str) -> str:
    """Return where a text encoder's tokenizer lies."""
    return encoder.replace("text_encoder", "tokenizer")


def _family(path: Path) -> str:
    try:
        name = json.loads((path / INDEX).read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return ""
    return next((family for family, pipeline in PIPELINES.items() if pipeline == name), "")


def _writing_into(
    new: Path, model: WholeModel, metadata: Mapping[str, str], precision: Precision | None
) -> Iterator[int]:
    for part, component in _parts_of(model).items():
        folder, state = new / component.folder, model.states[part]
        said = _stored_as(component, precision, state)
        _write_json(folder / "config.json", dict(model.configs[part]) | said)
        weights = folder / f"{component.weights}.safetensors"
        yield from safetensors_file.writing(weights, state, metadata, precision)
    scheduler = model.configs["scheduler"]
    _write_json(new / "scheduler" / "scheduler_config.json", scheduler)
    for encoder, texts in model.tokenizers.items():
        tokenizer_files.write(texts, new / tokenizer_folder(encoder))
    _write_json(new / INDEX, _index(model, scheduler["_class_name"]))


def _stored_as(component: Component, precision: Precision | None, state: Mapping[str, Any]) -> dict[str, str]:
    """transformers' configs name the number format; both its old and its new version are told."""
    dtypes = (safetensors_file.stored_as(t, precision) for t in state.values())
    long = next((str(dtype).removeprefix("torch.") for dtype in dtypes if dtype.is_floating_point), "float32")
    return {"dtype": long, "torch_dtype": long} if component.library == "transformers" else {}


def _index(model: WholeModel, scheduler: str) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": PIPELINES[model.family],
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", scheduler],
        **{c.folder: [None, None] for c in COMPONENTS[model.family].values()},
        **{tokenizer_folder(e): [None, None] for e in COMPONENTS[model.family] if e.startswith("text")},
        **{tokenizer_folder(encoder): ["transformers", TOKENIZERS[encoder]] for encoder in model.tokenizers},
        **{c.folder: [c.library, c.cls] for c in _parts_of(model).values()},
        **_BESIDE[model.family],
    }


def _parts_of(model: WholeModel) -> dict[str, Component]:
    return {part: c for part, c in COMPONENTS[model.family].items() if part in model.states}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _tensors(folder: Path, name: str, load: Callable[[Path], dict[str, Any]] | None = None) -> dict[str, Any]:
    from safetensors.torch import load_file

    load = load or load_file
    found = weights_in(folder, name)
    if found is None:
        raise UserError(
            f"{folder.parent.name}/{folder.name} has no {name}.safetensors.",
            "Choose a complete diffusers folder whose weights are .safetensors.",
        )
    return {key: value for file in found.files for key, value in load(file).items()}
