"""OneTrainer: a list of concepts in JSON, each a folder with texts and masks beside the pictures.

Source: Nerogar/OneTrainer, modules/util/config/ConceptConfig.py (names and defaults, not the code).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.masks import MASK_LABEL
from ..data.texts import caption_of_name, decode, one_line, read_caption
from ..section import UserError
from .pieces import (
    Piece,
    Set,
    flat,
    joined,
    named_apart,
    of_folder,
    whole_file,
    write_captions,
    write_mask,
    write_pictures,
)
from .places import Places

CONCEPTS = "concepts.json"


def write(pieces: Sequence[Piece], out: Path, home: Path) -> Iterator[int]:
    """Write a folder for each number of repeats, and `concepts.json`, which names them."""
    names = {repeats: f"concept-{repeats}x" for repeats in sorted({piece.repeats for piece in pieces})}
    placed = named_apart([replace(p, path=f"{names[p.repeats]}/{flat(p)}") for p in pieces])
    yield from write_pictures([replace(piece, mask=None) for piece in placed], out)
    write_captions(placed, out, lambda piece: piece.told)
    for piece in placed:
        if piece.mask:
            picture = out / piece.path
            write_mask(piece.mask, picture.with_name(f"{picture.stem}{MASK_LABEL}.png"))
    concepts = [_concept(name, repeats, home) for repeats, name in names.items()]
    whole_file(out / CONCEPTS, json.dumps(concepts, indent=4))


def of_concepts(file: Path, within: Path | None = None) -> Set:
    """Read a list of concepts; `within` as for Places. Raises UserError."""
    places = Places(file, within)
    try:
        told = json.loads(decode(file.read_bytes()))
        if not isinstance(told, list) or not all(isinstance(concept, dict) for concept in told):
            raise ValueError("it is no list of concepts")
        found = [_pieces(places, concept) for concept in told]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file.name} cannot be read ({error}).", "Choose a concepts.json of OneTrainer.", "source"
        ) from error
    return joined(found)


def _concept(name: str, repeats: int, home: Path) -> dict[str, Any]:
    return {
        "name": name,
        "path": str(home / name),
        "enabled": True,
        "include_subdirectories": False,
        "balancing": float(repeats),
        "balancing_strategy": "REPEATS",
        "image": {"enable_crop_jitter": False, "enable_random_flip": False},
        "text": {"prompt_source": "sample"},
    }


def _pieces(places: Places, told: Mapping[str, Any]) -> Set:
    name = str(told.get("name") or Path(str(told.get("path", ""))).name)
    if why := _left_out(told):
        return Set((), (f"The concept '{name}' is left out: {why}.",))
    folder = places.folder(str(told.get("path") or ""))
    balancing = float(told.get("balancing", told.get("repeats", 1.0)))
    repeats = max(1, round(balancing)) if told.get("balancing_strategy", "REPEATS") == "REPEATS" else 1
    changed = f"The concept '{name}' is repeated {repeats} times, not {balancing:g}."
    notes = [] if repeats == balancing else [changed]
    read, text = of_folder(folder), dict(told.get("text") or {})
    below = told.get("include_subdirectories", False)
    place = f"{repeats}_{name}" if repeats > 1 else name
    pieces = tuple(
        replace(
            piece,
            path=f"{place}/{piece.file.relative_to(folder).as_posix()}",
            repeats=repeats,
            class_word="",
            caption=_caption(piece, text, places),
        )
        for piece in read.pieces
        if below or piece.file.parent == folder
    )
    return Set(pieces, (*read.notes, *notes))


def _left_out(told: Mapping[str, Any]) -> str:
    if not told.get("enabled", True):
        return "it is switched off"
    kind = str(told.get("type", "STANDARD"))
    if told.get("validation_concept") or kind == "VALIDATION":
        return "it is for validation"
    return "it holds class images" if kind == "PRIOR_PREDICTION" else ""


def _caption(piece: Piece, text: Mapping[str, Any], places: Places) -> str:
    match text.get("prompt_source", "sample"):
        case "concept":
            file = places.file(str(text.get("prompt_path") or ""))
            lines = decode(file.read_bytes()).splitlines() if file else []
            return next((one_line(line) for line in lines if line.strip()), "")
        case "filename":
            return caption_of_name(piece.file.stem)
        case _:
            words = piece.file.with_suffix(".txt")
            return read_caption(words) if words.is_file() else ""
