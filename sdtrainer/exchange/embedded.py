"""A data set as Hugging Face keeps it: Parquet files with the pictures inside, for `datasets.load_dataset`.

Source: https://huggingface.co/docs/datasets/image_load (a folder `data`, files named by their part of the
set) and the `huggingface` entry that `datasets` reads from a schema's metadata.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.images import open_mask
from .columns import CAPTION, MASK, PICTURE
from .imagefolder import fractions
from .pieces import COUNTS, Piece

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES, GROUP_BYTES = 500 * 10**6, 32 * 2**20
"""Of a file, as the hub wants them, and of the part of it that is held in memory."""
ROWS_AT_ONCE = 8
"""In a page, the least that can be read of a file."""
_IMAGE = {"_type": "Image"}
_FRACTIONS = {"_type": "Sequence", "feature": {"_type": "Value", "dtype": "float64"}}


def write(pieces: Sequence[Piece], out: Path, home: Path) -> Iterator[int]:
    """Write `data/train-00000-of-00001.parquet`, and more files where there is much."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, done = _schema(pieces), 0
    shards = list(_grouped(pieces, SHARD_BYTES))
    (out / "data").mkdir()
    for number, shard in enumerate(shards):
        file = out / "data" / f"train-{number:05}-of-{len(shards):05}.parquet"
        with pq.ParquetWriter(file, schema, use_dictionary=[CAPTION], write_batch_size=ROWS_AT_ONCE) as table:
            for group in _grouped(shard, GROUP_BYTES):
                table.write_table(pa.Table.from_pylist([_row(piece) for piece in group], schema))
                done += len(group)
                yield done


def _schema(pieces: Sequence[Piece]) -> pa.Schema:
    """Return the columns that these need, with what `datasets` shall take them for."""
    import pyarrow as pa

    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {PICTURE: (picture, _IMAGE), CAPTION: (pa.string(), {"_type": "Value", "dtype": "string"})}
    columns |= {
        name: (pa.list_(pa.float64()), _FRACTIONS)
        for name in COUNTS
        if any(getattr(piece, name) for piece in pieces)
    }
    if any(piece.mask for piece in pieces):
        columns[MASK] = (picture, _IMAGE)
    told = {"info": {"features": {name: feature for name, (_, feature) in columns.items()}}}
    kinds = {name: kind for name, (kind, _) in columns.items()}
    return pa.schema(kinds, metadata={"huggingface": json.dumps(told)})


def _row(piece: Piece) -> dict[str, Any]:
    row = {PICTURE: {"bytes": piece.file.read_bytes(), "path": piece.path}, CAPTION: piece.caption}
    if piece.mask:
        mask = io.BytesIO()
        open_mask(piece.mask, is_alpha=False).save(mask, "PNG")
        row[MASK] = {"bytes": mask.getvalue(), "path": None}
    return row | fractions(piece)


def _grouped(pieces: Sequence[Piece], most_bytes: int) -> Iterator[list[Piece]]:
    """Divide pieces into groups of so many bytes, or of one piece."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        num_bytes = piece.file.stat().st_size
        if group and size + num_bytes > most_bytes:
            yield group
            group, size = [], 0
        group.append(piece)
        size += num_bytes
    if group:
        yield group
