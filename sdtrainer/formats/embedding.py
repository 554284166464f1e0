"""Files of textual inversion: learnt vectors and, in some, the word that calls them up.

`webui`: a .safetensors file with `emb_params`. `pt`: A1111's older file, with `string_to_param`. `diffusers`:
one tensor under the word. Of models with several text encoders every layout is `clip_l`, `clip_g` (and
`t5xxl`), nothing but tensors, as A1111, Forge and ComfyUI read them.

Shapes: N vectors, D width of a text encoder. Vectors are stored as fp32: a file is a few kilobytes, and
rounding would be all that was saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..section import UserError
from . import legacy_pt, safetensors_file

if TYPE_CHECKING:
    import torch

ENCODER_KEYS = ("clip_l", "clip_g", "t5xxl")
"""The names of an embedding's parts, in the order of a model's text encoders."""
ENDINGS = {"webui": ".safetensors", "diffusers": "-diffusers.safetensors", "pt": ".pt"}
WORD, BESIDE = "sdtrainer_word", "sdtrainer_beside"
"""Entries of our metadata: the word, and the names of the files with the run's other words."""
_FOR_ONE = ("emb_params", "emp_params")
_NAMELESS = ("", "*", *_FOR_ONE)


@dataclass(frozen=True)
class Embedding:
    """`word` is empty if the file names none. `vectors` (N, D) are one tensor for each text encoder, in
    order. `beside` are names of files with the other words of the same run.
    """

    word: str
    vectors: tuple[torch.Tensor, ...]
    beside: tuple[str, ...] = ()


def write(layout: str, path: Path, embedding: Embedding, metadata: Mapping[str, str]) -> None:
    """Write one embedding in a layout of `ENDINGS`, whole or not at all.

    Raises: UserError if a vector is not finite, or if the disk refuses.
    """
    own = {WORD: embedding.word} | ({BESIDE: json.dumps(embedding.beside)} if embedding.beside else {})
    if layout == "pt":
        legacy_pt.write(path, _legacy(embedding, dict(metadata) | own))
    else:
        name = "emb_params" if layout == "webui" else embedding.word
        safetensors_file.write(path, _tensors(embedding, name), dict(metadata) | own, "fp32")


def is_one(path: Path) -> bool:
    """Return whether this is an embedding, by the names and shapes in it."""
    if path.suffix == ".safetensors" and path.is_file():
        header = safetensors_file.read_header(path)
        return bool(vectors_in({name: info.shape for name, info in header.tensors.items()}))
    return path.suffix in (".pt", ".bin") and path.is_file() and _is_legacy(legacy_pt.read(path))


def vectors_in(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of the tensors that are an embedding's vectors; none if this is no embedding."""
    chosen = _chosen(shapes)
    return chosen if all(1 <= len(shapes[name]) <= 2 for name in chosen) else []


def read(path: Path) -> Embedding:
    """Return an embedding of any known layout, ours or another program's, on the CPU in fp32.

    Raises: UserError naming the file if it is none.
    """
    if not is_one(path):
        raise UserError(f"{path.name} is no embedding.", "Choose a file of textual inversion.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _embedding(load_file(path), safetensors_file.read_header(path).metadata)
    content = legacy_pt.read(path)
    if "string_to_param" not in content:
        return _embedding(content, {})
    (vectors,) = content["string_to_param"].values()
    return _embedding({content.get("name") or "": vectors}, content)


def _embedding(tensors: Mapping[Any, torch.Tensor], words: Mapping[Any, Any]) -> Embedding:
    """`words` are what the file says beside its tensors."""
    chosen = _chosen(tensors)
    (named, *_) = chosen
    is_named = named not in (*_NAMELESS, *ENCODER_KEYS)
    return Embedding(
        word=words.get(WORD) or (named if is_named else ""),
        vectors=tuple(tensors[name].detach().float().reshape(-1, tensors[name].shape[-1]) for name in chosen),
        beside=tuple(Path(name).name for name in json.loads(words.get(BESIDE, "[]"))),
    )


def _tensors(embedding: Embedding, name: str) -> dict[str, torch.Tensor]:
    is_for_one = len(embedding.vectors) == 1
    return dict(zip((name,) if is_for_one else ENCODER_KEYS, embedding.vectors, strict=False))


def _legacy(embedding: Embedding, metadata: Mapping[str, str]) -> dict[str | int, Any]:
    """The dictionary that A1111 writes; 265 is the token of '*' there."""
    if len(embedding.vectors) > 1:
        return dict(_tensors(embedding, ""))
    return {
        "string_to_token": {"*": 265},
        "string_to_param": _tensors(embedding, "*"),
        "name": embedding.word,
        "step": int(metadata.get("ss_steps", 0)),
        "sd_checkpoint": metadata.get("ss_new_sd_model_hash"),
        "sd_checkpoint_name": metadata.get("ss_sd_model_name"),
    } | {key: text for key, text in metadata.items() if key.startswith("sdtrainer_")}


def _is_legacy(content: Mapping[Any, Any]) -> bool:
    inside = content.get("string_to_param", content)
    shapes = {str(name): tuple(getattr(value, "shape", ())) for name, value in inside.items()}
    return bool(vectors_in(shapes))


def _chosen(names: Mapping[str, Any]) -> list[str]:
    """Return the names of the vectors: by text encoder, the one usual name, or the only one there is.

    OneTrainer writes others beside them, which no reader uses.
    """
    known = [name for name in ENCODER_KEYS if name in names] or [name for name in _FOR_ONE if name in names]
    return known or (list(names) if len(names) == 1 else [])
