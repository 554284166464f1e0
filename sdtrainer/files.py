"""Atomic writes: a reader sees the old file or the whole new one, whenever the power fails. And what the disk
answers that a person can put right.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FAULTS: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "Make room there, or choose another disk"),
    errno.EDQUOT: ("your share of the disk is full", "Make room there, or choose another disk"),
    errno.EACCES: ("you have no permission", "Choose another place, or change its permissions"),
    errno.EPERM: ("you have no permission", "Choose another place, or change its permissions"),
    errno.EROFS: ("the disk cannot be written", "Choose another place"),
    errno.ENAMETOOLONG: ("its name is too long", "Give it a shorter name"),
    errno.ENOENT: ("there is no such file or folder", "Check whether it was moved, or choose another place"),
    errno.ENOTDIR: ("a part of the path is a file", "Choose another place"),
    errno.EIO: ("the disk failed", "Check whether it is still connected"),
}
"""By the system's number of an error: what is wrong, and what to do."""


def write(path: Path, put: Callable[[Path], object]) -> None:
    """Let `put` write a temporary file beside `path`, flush it to disk, and move it into place."""
    with new_file(path) as temporary:
        put(temporary)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path` that takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:60]}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    write(path, lambda part: part.write_bytes(content))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` (which must not exist) when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                flush(file)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def told_size(num_bytes: float) -> str:
    """Return "640 KB", "37 MB", "7.1 GB"; of 1024 each."""
    for unit, divisor in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if num_bytes >= divisor:
            value = num_bytes / divisor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{num_bytes:.0f} bytes"


def flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
