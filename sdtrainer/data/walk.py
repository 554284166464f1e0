"""Which files lie in a folder: in natural order, never outside it, no hidden ones."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from pathlib import Path
from typing import NamedTuple

from .census import Problem

OTHERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}
"""Folders that systems put beside images, with copies or thumbnails inside."""


class Found(NamedTuple):
    """One file. `path` and the `folder` it lies in are relative to the folder walked, with forward slashes;
    `extension` is in small letters.
    """

    path: str
    num_bytes: int
    mtime_ns: int
    folder: str
    extension: str

    @property
    def name(self) -> str:
        return self.path[len(self.folder) + 1 :] if self.folder else self.path

    @property
    def stem(self) -> str:
        return self.name[: len(self.name) - len(self.extension)]

    @property
    def bare(self) -> str:
        """The path without extension."""
        return self.path[: len(self.path) - len(self.extension)]


def walk(root: Path, problems: list[Problem]) -> tuple[Found, ...]:
    """Return every file under `root` (resolved) in natural order; what is left out goes to `problems`."""
    files: list[Found] = []
    _walk(root, "", files, problems)
    return tuple(files)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort image2 before image10, in capitals or not; the name itself decides between equals."""
    composed = name if name.isascii() else unicodedata.normalize("NFC", name)
    pieces: list[str | int] = [*_DIGITS.split(composed.casefold())]
    pieces[1::2] = map(int, pieces[1::2])
    return pieces, name


_DIGITS = re.compile(r"([0-9]+)")


def _walk(root: Path, folder: str, files: list[Found], problems: list[Problem]) -> None:
    try:
        entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    except OSError as error:
        problems.append(
            Problem(folder, "folder", f"This folder cannot be opened: {error.strerror}.", "skipped")
        )
        return
    entries.sort(key=lambda entry: natural_key(entry.name))  # quicker when they are nearly in order
    for entry in entries:
        name = entry.name
        path = f"{folder}/{name}" if folder else name
        if name.startswith(".") or name in OTHERS:
            continue
        if not path.isascii() and path != (readable := path.encode("utf-8", "replace").decode()):
            problems.append(
                Problem(readable, "undecodable", "Its name has broken letters; rename it.", "skipped")
            )
        elif entry.is_symlink() and (fault := _fault_of_link(root, root / path)):
            problems.append(Problem(path, "link", fault, "skipped"))
        elif entry.is_dir():
            _walk(root, path, files, problems)
        elif entry.is_file():
            try:
                stat = entry.stat()
            except FileNotFoundError:  # it may go at any moment
                continue
            files.append(Found(path, stat.st_size, stat.st_mtime_ns, folder, extension_of(name)))


def extension_of(name: str) -> str:
    """Return the extension of a file's name in small letters, with its dot; it is held once for all files."""
    dot = name.rfind(".")
    return sys.intern(name[dot:].lower()) if dot > 0 else ""


def _fault_of_link(root: Path, link: Path) -> str:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return "This link leads nowhere; copy the file itself into the folder."
    if not target.is_relative_to(root):
        return "This link leads out of the image folder; copy the file itself into the folder."
    return "This link leads to a folder that is read anyway." if target.is_dir() else ""
