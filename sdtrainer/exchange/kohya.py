"""kohya's trainer: folders that tell repeats, and dataset configs in TOML.

Source: kohya-ss/sd-scripts, docs/config_README-en.md (the layout, not the code).
"""

from __future__ import annotations

import glob
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomlkit

from ..data.texts import decode, one_line, read_caption, repeats_of_folder
from ..section import UserError
from . import pieces as pieces_
from .pieces import Piece, Set, flat, named_apart, of_folder, write_captions, write_mask, write_pictures
from .places import Places

NAMELESS = "images"
UNTOLD = ("caption_prefix", "caption_suffix")


def write_folders(pieces: Sequence[Piece], out: Path, home: Path) -> Iterator[int]:
    """Write `10_class word/picture.png` with a text beside each. Where one has no words at all, the folder's
    name has none either: it would be trained with them.
    """
    bare = {piece.repeats for piece in pieces if not piece.told}
    name = lambda piece: piece.class_word or ("" if piece.repeats in bare else NAMELESS)  # noqa: E731
    placed = _placed(pieces, lambda piece: f"{piece.repeats}_{name(piece)}")
    yield from write_pictures([replace(piece, mask=None) for piece in placed], out)
    write_captions(placed, out, lambda piece: piece.caption)


def write_config(pieces: Sequence[Piece], out: Path, home: Path) -> Iterator[int]:
    """Write a folder for each kind of picture, and `dataset.toml`, which names them as they will lie.

    Pictures with masks are a subset of their own: a folder of masks must have one for each picture.
    """
    groups: dict[tuple[int, str, bool], str] = {}
    for piece in pieces:
        key = (piece.repeats, piece.class_word, piece.mask is not None)
        groups.setdefault(key, f"set-{len(groups) + 1}")
    placed = _placed(pieces, lambda p: groups[p.repeats, p.class_word, p.mask is not None])
    yield from write_pictures([replace(piece, mask=None) for piece in placed], out)
    write_captions(placed, out, lambda piece: piece.caption)
    for piece in placed:
        if piece.mask:
            folder, _, name = piece.path.partition("/")
            write_mask(piece.mask, (out / f"{folder}-masks" / name).with_suffix(".png"))
    told = {"datasets": [{"subsets": _subsets(groups, home)}]}
    pieces_.whole_file(out / "dataset.toml", tomlkit.dumps(told))


def of_config(config: Path, within: Path | None = None) -> Set:
    """Read a dataset config; `within` as for Places. Raises UserError."""
    places = Places(config, within)
    try:
        subsets = list(_inherited(tomllib.loads(decode(config.read_bytes()))))
        found = [_subset(places, number, subset) for number, subset in enumerate(subsets, 1)]
    except (tomllib.TOMLDecodeError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{config.name} cannot be read ({error}).", "Check the file.", "source") from error
    if not found:
        what = f"{config.name} names no pictures: it has no [[datasets.subsets]]."
        raise UserError(what, "Choose a dataset config of kohya's trainer.", "source")
    return pieces_.joined(found)


def _placed(pieces: Sequence[Piece], folder: Callable[[Piece], str]) -> tuple[Piece, ...]:
    return named_apart([replace(piece, path=f"{folder(piece)}/{flat(piece)}") for piece in pieces])


def _subsets(groups: Mapping[tuple[int, str, bool], str], home: Path) -> list[dict[str, Any]]:
    told = []
    for (repeats, class_word, has_masks), name in groups.items():
        subset: dict[str, Any] = {"image_dir": str(home / name), "num_repeats": repeats}
        subset["caption_extension"] = ".txt"
        subset["class_tokens"] = class_word  # even if empty: without, a picture without a text is an error
        if has_masks:
            subset["conditioning_data_dir"] = str(home / f"{name}-masks")
        told.append(subset)
    return told


def _inherited(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each subset with what is said for its dataset, or for all."""
    for dataset in told.get("datasets", []):
        above = {**told.get("general", {}), **{k: v for k, v in dataset.items() if k != "subsets"}}
        for subset in dataset.get("subsets", []):
            yield {**above, **subset}


def _subset(places: Places, number: int, told: Mapping[str, Any]) -> Set:
    if told.get("is_reg") or "image_dir" not in told:
        kind = "class images" if told.get("is_reg") else "pictures named by a metadata file"
        return Set((), (f"Subset {number} is left out: it holds {kind}.",))
    folder = places.folder(str(told["image_dir"]))
    repeats, words = max(1, int(told.get("num_repeats", 1))), str(told.get("class_tokens") or "").strip()
    masked = str(told.get("conditioning_data_dir") or "")
    masks = places.folder(masked) if masked else None
    extension = str(told.get("caption_extension", ".caption"))
    read, place = of_folder(folder), f"{repeats}_{words}"
    if repeats == 1 and not words and not repeats_of_folder(folder.name):
        place = folder.name
    pieces = []
    for piece in read.pieces:
        if piece.file.parent != folder:
            continue  # kohya's trainer does not look into folders below
        text = piece.file.with_suffix(extension)
        caption = read_caption(text) if text.is_file() else ""
        named = sorted(masks.glob(f"{glob.escape(piece.file.stem)}.*")) if masks else [piece.mask]
        mask = next(iter(named), None)
        pieces.append(
            replace(piece, path=f"{place}/{piece.file.name}", caption=one_line(caption), class_word=words,
                    repeats=repeats, mask=mask)
        )  # fmt: skip
    untold = [f"Subset {number}: {name} is not taken over." for name in UNTOLD if told.get(name)]
    return Set(tuple(pieces), (*read.notes, *untold))


def subset_count(config: Path) -> int:
    """Return how many subsets a TOML file names; 0 if it is no dataset config."""
    try:
        return len(list(_inherited(tomllib.loads(decode(config.read_bytes())))))
    except (tomllib.TOMLDecodeError, TypeError, AttributeError, ValueError):
        return 0
