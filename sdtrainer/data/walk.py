"""Which files lie in a folder: in natural order, never outside it, no hidden ones."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .census import Problem

OTHERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}
"""Folders that systems put beside images, with copies or thumbnails inside."""


@dataclass(frozen=True)
class Found:
    """One file. `path` is relative to the folder, with forward slashes."""

    path: str
    num_bytes: int
    mtime_ns: int

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def extension(self) -> str:
        return posixpath.splitext(self.path)[1].lower()


def walk(root: Path, problems: list[Problem]) -> tuple[Found, ...]:
    """Return every file under `root` (resolved) in natural order; what is left out goes to `problems`."""
    return tuple(sorted(_files(root, "", problems), key=lambda found: natural_key(found.path)))


def natural_key(path: str) -> tuple[object, ...]:
    """Sort image2 before image10, folder by folder; the path itself decides between equals."""
    parts = [
        tuple((not piece.isdigit(), _number(piece), piece) for piece in _pieces(p)) for p in path.split("/")
    ]
    return (parts, path)


def _pieces(name: str) -> list[str]:
    return [piece for piece in re.split(r"([0-9]+)", unicodedata.normalize("NFC", name).casefold()) if piece]


def _number(piece: str) -> int:
    return int(piece) if piece.isdecimal() and len(piece) < 100 else 0


def _files(root: Path, folder: str, problems: list[Problem]) -> Iterator[Found]:
    try:
        entries = list(os.scandir(root / folder))
    except OSError as error:
        problems.append(
            Problem(folder, "folder", f"This folder cannot be opened: {error.strerror}.", "skipped")
        )
        return
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or entry.name in OTHERS:
            continue
        if path != path.encode("utf-8", "replace").decode():
            readable = path.encode("utf-8", "replace").decode()
            problems.append(
                Problem(readable, "undecodable", "Its name has broken letters; rename it.", "skipped")
            )
        elif entry.is_symlink() and (fault := _fault_of_link(root, root / path)):
            problems.append(Problem(path, "link", fault, "skipped"))
        elif entry.is_dir():
            yield from _files(root, path, problems)
        elif entry.is_file():
            stat = entry.stat()
            yield Found(path, stat.st_size, stat.st_mtime_ns)


def _fault_of_link(root: Path, link: Path) -> str:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return "This link leads nowhere; copy the file itself into the folder."
    if not target.is_relative_to(root):
        return "This link leads out of the image folder; copy the file itself into the folder."
    return "This link leads to a folder that is read anyway." if target.is_dir() else ""
