"""Parquet tables: their columns, and their rows a few at a time, so that memory stays flat.

Knows nothing of pictures. What a file says of itself is not believed: whatever it is, there are rows or
there is a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..section import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_ROWS = 10_000_000
MOST_TIMES = 200
"""How many times larger than packed something may be; text and drawings reach 100."""
FREELY_BYTES = 2**20
"""Up to this size it may be packed as tightly as it is."""
MAGIC, LOCKED = b"PAR1", b"PARE"
"""How a file begins and ends. Source: github.com/apache/parquet-format, README.md and Encryption.md."""
BUFFER_BYTES = 2**20


class BadTable(UserError):
    """A file that is no sound Parquet table; `why` says it within a sentence."""

    def __init__(self, path: Path, why: str) -> None:
        what = f"{path.name} cannot be read: {why}."
        super().__init__(what, "Copy or download it anew, or choose another.", "source")
        self.why = why


def columns(path: Path) -> Mapping[str, pa.DataType]:
    """Return the columns of a table and what they hold. Raises BadTable."""
    with _opened(path) as table:
        return {field.name: field.type for field in table.schema_arrow}


def size(path: Path) -> tuple[int, int]:
    """Return how many rows a table has, and how many bytes they unpack to, by its own account.

    Raises:
        BadTable: it is more than one would believe.
    """
    with _opened(path) as table:
        # Not from its columns: damage there ends the whole process (pyarrow 26.0, ColumnChunkMetaData).
        groups = map(table.metadata.row_group, range(table.num_row_groups))
        num_rows, num_bytes = table.metadata.num_rows, sum(group.total_byte_size for group in groups)
    if num_rows > MOST_ROWS:
        raise BadTable(path, f"it has {num_rows:,} rows, and {MOST_ROWS:,} are read")
    times = num_bytes / path.stat().st_size
    if num_bytes > FREELY_BYTES and times > MOST_TIMES:
        raise BadTable(path, f"it unpacks to {times:,.0f} times its size")
    return num_rows, num_bytes


def rows(path: Path, names: Sequence[str], at_once: int) -> Iterator[dict[str, Any]]:
    """Yield the rows with these columns; so many are held at once. Raises BadTable."""
    size(path)
    with _opened(path) as table:
        for batch in table.iter_batches(at_once, columns=list(names), use_threads=False):
            yield from batch.to_pylist()


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as table:
            yield table
    except BadTable:
        raise
    except Exception as error:  # what decoding raises on damaged files is nearly anything
        raise BadTable(path, _why(path, error)) from error


def _why(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            begins = file.read(4)
            file.seek(-min(4, path.stat().st_size), 2)
            ends = file.read()
    except OSError as closed:
        return str(closed.strerror)
    if LOCKED in (begins, ends):
        return "it is encrypted"
    if ends != MAGIC:
        return "it was cut off" if begins == MAGIC else "it is no Parquet file"
    return f"it is damaged ({' '.join(str(error).split())[:100]})"
