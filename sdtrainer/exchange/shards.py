"""Whole data sets as Hugging Face keeps them: Parquet files that hold the pictures. They are unpacked into a
folder with a table, row by row.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..data import parquet
from ..data.images import EXTENSIONS, BadImage, extension_of
from ..data.texts import METADATA_NAMES
from ..data.walk import natural_key, walk
from ..events import Event, PhaseBegan, Progress
from ..files import told_size
from ..section import UserError
from .archives import MOST_BYTES, MOST_FILES, refusal
from .columns import MASK, Shard, picture_in, shard, words_in
from .pieces import COUNTS, MASKS

HELD_OUT = re.compile(r"(^|/)(test|validation|valid|val|dev|eval)(?=[-_./]|$)", re.IGNORECASE)
"""Files of these parts of a data set, by how `datasets` names them, are not for training."""
ROWS_AT_ONCE = 8
MOST_FOLDERS, MOST_BYTES_OF_NAME = 3, 150
"""Of a picture's path within a data set: the rest is cut."""
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{name}{n}" for name in ("COM", "LPT") for n in range(1, 10))}
"""Names that Windows keeps for itself."""


def listed(source: Path) -> tuple[Path, ...]:
    """Return the files with pictures inside: the source itself, or all in a folder without other pictures.

    Links count: in the cache of the Hugging Face hub each file is one.
    """
    if source.is_file():
        return (source,) if source.suffix.lower() == ".parquet" else ()
    if any(found.extension in EXTENSIONS for found in walk(source.resolve(), [])):
        return ()
    there = [path for path in source.rglob("*.parquet") if path.is_file()]
    shards = [path for path in there if path.name.lower() not in METADATA_NAMES]
    return tuple(sorted(shards, key=lambda path: natural_key(path.as_posix())))


def unpack(
    paths: Sequence[Path], root: Path, folder: Path, column: str
) -> Generator[Event, None, tuple[str, ...]]:
    """Write the pictures into `folder`, and a table of what is known of them; returns what there is to say.

    Pictures that are only named are looked for in `root`. `column` holds the captions; empty for the first
    that is known to.

    Raises:
        UserError: a file is damaged, holds no pictures, or unpacks to more than it may or the disk holds.
    """
    wanted, notes = _for_training(paths, root)
    shards = [shard(path, column) for path in wanted]
    free_bytes = min(MOST_BYTES, shutil.disk_usage(folder.parent).free)
    total, done = checked(shards, free_bytes), 0
    notes += dict.fromkeys(one.about_captions for one in shards)
    yield PhaseBegan("work", f"Unpacking {total} pictures")
    folder.mkdir()
    unpacking = _Unpacking(root.resolve(), folder, free_bytes)
    with (folder / METADATA_NAMES[0]).open("w", encoding="utf-8") as table:
        for one in shards:
            for number, row in enumerate(parquet.rows(one.path, one.columns, ROWS_AT_ONCE), 1):
                if known := unpacking.take(one, number, row):
                    table.write(json.dumps(known) + "\n")
                done += 1
                yield Progress(done, total, "pictures")
    notes += unpacking.told()
    if not unpacking.taken:
        why = " ".join(notes[-2:])
        raise UserError(f"There are no pictures to import. {why}", "Choose another set.", "source")
    return tuple(notes)


def checked(shards: Sequence[Shard], free_bytes: int) -> int:
    """Return how many rows there are. Raises UserError if they are too many, or too large."""
    total, size = sum(one.num_rows for one in shards), sum(one.num_bytes for one in shards)
    if total > MOST_FILES:
        raise refusal(shards[0].path.name, f"there are {total:,} pictures", f"Choose at most {MOST_FILES:,}.")
    if size > free_bytes:
        raise _too_large(shards[0].path.name, told_size(size))
    return total


@dataclass
class _Unpacking:
    """What was written so far. `taken` are the paths without extension, in small letters."""

    root: Path
    folder: Path
    left_bytes: int
    taken: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)

    def take(self, one: Shard, number: int, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Write the picture of a row, and return what is known of it; None if there is none."""
        path, content = picture_in(row[one.picture])
        content = self._beside(one.path, path) if content is None and path else content
        if not content:
            self.refused["name a picture that is not beside the file" if path else "hold no picture"] += 1
            return None
        try:
            extension = extension_of(content, f"{one.path.name}, row {number}")
        except BadImage as error:
            reasons = {"too large": "hold a picture of too many million pixels"}
            self.refused[reasons.get(error.kind, "hold a picture that cannot be read")] += 1
            return None
        stem = self._free(safe(path) or f"{_clean(one.path.stem)}-{number:05}")
        self._write(stem + extension, content, one.path.name)
        if MASK in row:
            self._take_mask(stem, row[MASK], one.path.name)
        words = {"text": words_in(row[one.caption])} if one.caption else {}
        return {"file_name": stem + extension} | words | {name: row[name] for name in COUNTS if row.get(name)}

    def told(self) -> Iterator[str]:
        for why, count in self.refused.items():
            yield f"{count:,} of the rows {why}; they are left out."

    def _beside(self, shard: Path, path: str) -> bytes | None:
        """Return the content of a picture that a file names, if it lies within the set."""
        for place in (shard.absolute().parent / path, self.root / path):
            with contextlib.suppress(OSError, ValueError):  # no path at all, such as an address or a text
                file = place.resolve()
                if file.suffix.lower() in EXTENSIONS and file.is_relative_to(self.root) and file.is_file():
                    return file.read_bytes()
        return None

    def _take_mask(self, stem: str, cell: Any, name: str) -> None:
        _, content = picture_in(cell)
        if content and content.startswith(b"\x89PNG"):
            folder, _, last = stem.rpartition("/")
            self._write("/".join(filter(None, (folder, MASKS, f"{last}.png"))), content, name)

    def _write(self, path: str, content: bytes, name: str) -> None:
        self.left_bytes -= len(content)
        if self.left_bytes < 0:
            raise _too_large(name, "more than it says")
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def _free(self, stem: str) -> str:
        name, number = stem, 1
        while name.casefold() in self.taken:
            number += 1
            name = f"{stem}-{number}"
        self.taken.add(name.casefold())
        return name


def safe(path: str) -> str:
    """Return a path without extension that any disk takes, in folders or not; of a path from another disk the
    name alone. Empty if nothing is left.
    """
    plain = PurePosixPath(path.replace("\\", "/"))
    is_elsewhere = plain.is_absolute() or ".." in plain.parts or PureWindowsPath(path).drive or "://" in path
    *folders, name = ("", *plain.parts)[-1 if is_elsewhere else -1 - MOST_FOLDERS :]
    stem = _clean(name[: -len(plain.suffix)] if plain.suffix.lower() in EXTENSIONS else name)
    # A folder named as a picture could stand where a picture shall.
    inner = [f"{name}_" if Path(name).suffix.lower() in EXTENSIONS else name for name in map(_clean, folders)]
    return "/".join(filter(None, [*inner, stem])) if stem else ""


def _for_training(paths: Sequence[Path], root: Path) -> tuple[list[Path], list[str]]:
    """Leave out the parts of a data set that are not for training, unless there is nothing else."""
    inner = {path: path.relative_to(root).as_posix() for path in paths}
    left = [inner[path] for path in paths if HELD_OUT.search(inner[path])]
    if len(left) in (0, len(paths)):
        return list(paths), []
    files = f"{left[0]} and {len(left) - 1} more files are" if len(left) > 1 else f"{left[0]} is"
    note = f"{files} left out, being for tests or validation; import them alone if you want them."
    return [path for path in paths if inner[path] not in left], [note]


def _clean(part: str) -> str:
    kept = "".join(c for c in part if c.isprintable() and c not in '<>:"|?*/\\')
    kept = kept.strip(" .").encode()[:MOST_BYTES_OF_NAME].decode(errors="ignore").strip(" .")
    return f"{kept}_" if kept.partition(".")[0].upper() in DEVICES else kept


def _too_large(name: str, size: str) -> UserError:
    return refusal(name, f"it unpacks to {size}, and less is free", "Choose fewer files, or make room.")
