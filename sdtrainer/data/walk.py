"""Which files lie in a folder: in natural order, never outside it, no hidden ones.

A file is held as few bytes and shown as `Found` where it is looked at, as there may be hundreds of thousands.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, eq=False)
class Folder:
    """The files that lie in one folder itself. `names` are joined by slashes, which no name holds."""

    path: str
    names: str
    extensions: tuple[str, ...]
    num_bytes: array[int]
    mtimes_ns: array[int]

    def __len__(self) -> int:
        return len(self.extensions)

    def __iter__(self) -> Iterator[Found]:
        return map(self.at, range(len(self)), self.names.split("/"))

    def at(self, place: int, name: str) -> Found:
        path = f"{self.path}/{name}" if self.path else name
        return Found(path, self.num_bytes[place], self.mtimes_ns[place], self.path, self.extensions[place])

    def of(self, extensions: Collection[str]) -> Iterator[Found]:
        """Yield the files with one of these extensions."""
        return (self.at(place, name) for name, place in self.places(extensions))

    def places(self, extensions: Collection[str]) -> Iterator[tuple[str, int]]:
        """Yield names and places of the files with one of these extensions."""
        if self.has(extensions):
            for place, name in enumerate(self.names.split("/")):
                if self.extensions[place] in extensions:
                    yield name, place

    def has(self, extensions: Collection[str]) -> bool:
        """Tell whether any file has one of these extensions."""
        return any(extension in extensions for extension in self.extensions)


@dataclass(frozen=True, slots=True)
class Files:
    """All files of a folder and of those in it, folder by folder."""

    folders: tuple[Folder, ...]

    def __len__(self) -> int:
        return sum(map(len, self.folders))

    def __iter__(self) -> Iterator[Found]:
        for folder in self.folders:
            yield from folder

    def of(self, extensions: Collection[str]) -> Iterator[Found]:
        """Yield the files with one of these extensions."""
        for folder in self.folders:
            yield from folder.of(extensions)

    def count(self, extensions: Collection[str]) -> int:
        return sum(extension in extensions for folder in self.folders for extension in folder.extensions)


def walk(root: Path, problems: list[Problem]) -> Files:
    """Return every file under `root` (resolved) in natural order, those of a folder before those of the
    folders in it; what is left out goes to `problems`.
    """
    return Files(tuple(_walk(root, "", problems)))


def natural_key(name: str) -> tuple[str, str]:
    """Sort image2 before image10, in capitals or not; the name itself decides between equals."""
    return _rank(name), name


def path_key(path: str) -> tuple[tuple[bool, tuple[str, str]], ...]:
    """Sort paths as `walk` does."""
    *folders, name = path.split("/")
    return (*((True, natural_key(folder)) for folder in folders), (False, natural_key(name)))


_DIGITS = re.compile(r"[0-9]+")


def _rank(name: str) -> str:
    """Write numbers so that text sorts them: before all letters, the one of fewer digits first."""
    composed = name if name.isascii() else unicodedata.normalize("NFC", name)
    return _DIGITS.sub(_sorting_number, composed.casefold())


def _sorting_number(match: re.Match[str]) -> str:
    digits = match[0].lstrip("0")
    return f"\0{chr(len(digits))}{digits}"


def _walk(root: Path, folder: str, problems: list[Problem]) -> Iterator[Folder]:
    names: list[str] = []
    folders: list[str] = []
    num_bytes, mtimes_ns = array("q"), array("q")
    faults: list[Problem] = []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith(".") or entry.name in OTHERS:
                    continue
                if fault := _fault(root, path, entry):
                    faults.append(fault)
                elif entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file() and (stat := _stat(entry)):
                    names.append(entry.name)
                    num_bytes.append(stat.st_size)
                    mtimes_ns.append(stat.st_mtime_ns)
    except OSError as error:
        what = f"This folder cannot be opened: {error.strerror}."
        faults.append(Problem(folder, "folder", what, "skipped"))
    problems += sorted(faults, key=lambda fault: path_key(fault.file))
    if names:
        yield _packed(folder, names, num_bytes, mtimes_ns)
    del names, num_bytes, mtimes_ns
    for name in sorted(folders, key=natural_key):
        yield from _walk(root, f"{folder}/{name}" if folder else name, problems)


def _packed(folder: str, names: list[str], num_bytes: array[int], mtimes_ns: array[int]) -> Folder:
    ranks = [_rank(name) for name in names]
    order = sorted(range(len(names)), key=names.__getitem__)
    order.sort(key=ranks.__getitem__)
    return Folder(
        folder,
        "/".join([names[place] for place in order]),
        tuple([extension_of(names[place]) for place in order]),
        array("q", [num_bytes[place] for place in order]),
        array("q", [mtimes_ns[place] for place in order]),
    )


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:  # it may go at any moment
        return None


def extension_of(name: str) -> str:
    """Return the extension of a file's name in small letters, with its dot; it is held once for all files."""
    dot = name.rfind(".")
    return sys.intern(name[dot:].lower()) if dot > 0 else ""


def _fault(root: Path, path: str, entry: os.DirEntry[str]) -> Problem | None:
    if not path.isascii() and path != (readable := path.encode("utf-8", "replace").decode()):
        return Problem(readable, "undecodable", "Its name has broken letters; rename it.", "skipped")
    if entry.is_symlink() and (fault := _fault_of_link(root, root / path)):
        return Problem(path, "link", fault, "skipped")
    return None


def _fault_of_link(root: Path, link: Path) -> str:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return "This link leads nowhere; copy the file itself into the folder."
    if not target.is_relative_to(root):
        return "This link leads out of the image folder; copy the file itself into the folder."
    return "This link leads to a folder that is read anyway." if target.is_dir() else ""
