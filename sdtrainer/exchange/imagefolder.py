"""Hugging Face's image folder: pictures with a table of what is known of them, in one of three forms.

Source: https://huggingface.co/docs/datasets/image_dataset#imagefolder. Columns of our own are `crop` and
`focus`, in fractions of the upright image.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import files
from ..events import Event, PhaseBegan, Progress
from .pieces import Piece, mask_path, write_pictures

Row = dict[str, Any]


def write(pieces: Sequence[Piece], out: Path, home: Path, table: str = "metadata.jsonl") -> Iterator[int]:
    """Write pictures and one of TABLES."""
    yield from write_pictures(pieces, out)
    rows = [row(piece) for piece in pieces]
    files.write(out / table, lambda part: TABLES[table](rows, part))


write_csv = partial(write, table="metadata.csv")
write_parquet = partial(write, table="metadata.parquet")


def write_zip(folder: Path, out: Path) -> Iterator[Event]:
    """Pack a folder that was written, telling how far that is; pictures are packed as they are."""
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    yield PhaseBegan("work", "Packing")
    with files.new_file(out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as packed:
        for done, file in enumerate(written, 1):
            packed.write(file, file.relative_to(folder).as_posix())
            yield Progress(done, len(written), "files")


def row(piece: Piece) -> Row:
    """Return what is known of a picture, without what is not."""
    columns: Row = {"file_name": piece.path, "text": piece.caption} | fractions(piece)
    if piece.mask:
        columns["mask_file_name"] = mask_path(piece)
    return columns


def fractions(piece: Piece) -> Row:
    both = {"crop": piece.crop, "focus": piece.focus}
    return {name: [round(part, 6) for part in parts] for name, parts in both.items() if parts}


def _write_lines(rows: Sequence[Row], file: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_csv(rows: Sequence[Row], file: Path) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, _names(rows))
    table.writeheader()
    table.writerows(
        {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in rows
    )
    file.write_bytes(text.getvalue().encode())


def _write_parquet(rows: Sequence[Row], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in _names(rows)}), file)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


TABLES: Mapping[str, Callable[[Sequence[Row], Path], None]] = {
    "metadata.jsonl": _write_lines,
    "metadata.csv": _write_csv,
    "metadata.parquet": _write_parquet,
}
