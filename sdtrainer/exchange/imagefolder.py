"""Hugging Face's image folder: pictures with a table `metadata.jsonl`. It holds all that is known here.

Source: https://huggingface.co/docs/datasets/image_dataset#imagefolder. Columns of our own are `crop` and
`focus`, in fractions of the upright image.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import files
from .pieces import METADATA, Piece, mask_path, whole_file, write_pictures


def write(pieces: Sequence[Piece], out: Path, home: Path) -> Iterator[int]:
    yield from write_pictures(pieces, out)
    lines = [json.dumps(row(piece), ensure_ascii=False) for piece in pieces]
    whole_file(out / METADATA, "\n".join(lines) + "\n")


def write_zip(folder: Path, out: Path) -> None:
    """Pack a folder that was written; pictures are packed as they are."""

    def pack(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as packed:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                packed.write(file, file.relative_to(folder).as_posix())

    files.write(out, pack)


def row(piece: Piece) -> dict[str, Any]:
    columns: dict[str, Any] = {"file_name": piece.path, "text": piece.caption}
    if piece.crop:
        columns["crop"] = [round(edge, 6) for edge in piece.crop]
    if piece.focus:
        columns["focus"] = [round(part, 6) for part in piece.focus]
    if piece.mask:
        columns["mask_file_name"] = mask_path(piece)
    return columns
