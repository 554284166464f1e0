"""A picture with all that is known of it, between one layout and another."""

from __future__ import annotations

import contextlib
import json
import posixpath
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import files
from ..data.census import Census, Sample
from ..data.images import open_mask
from ..data.overlay import Overlay
from ..data.parquet import BadTable
from ..data.scan import scan
from ..data.section import CaptionSource, DataSection
from ..data.texts import METADATA_NAMES, repeats_of_folder, same_path, table_rows
from ..events import Event, PhaseBegan, Progress
from ..section import UserError

MASKS = "masks"
COUNTS = {"crop": 4, "focus": 2}
"""How many fractions there are of each."""


@dataclass(frozen=True)
class Piece:
    """`path` is where the picture shall lie in the set, with forward slashes; `class_word` stands in where
    the caption is empty. `crop` and `focus` are fractions of the upright image, `mask` is a grey picture.
    """

    file: Path
    path: str
    caption: str = ""
    class_word: str = ""
    repeats: int = 1
    crop: tuple[float, ...] = ()
    focus: tuple[float, ...] = ()
    mask: Path | None = None

    @property
    def told(self) -> str:
        """The words that it is trained with."""
        return self.caption or self.class_word


@dataclass(frozen=True)
class Set:
    """Pieces, and what could not be taken along, in sentences."""

    pieces: tuple[Piece, ...]
    notes: tuple[str, ...] = field(default=())


def of_folder(folder: Path, overlay: Overlay | None = None, captions: CaptionSource = "auto") -> Set:
    """Read a folder in any layout that the trainer reads, with what is kept of it in the workspace.

    Raises:
        UserError: there is no picture in it.
    """
    census = scan(folder, DataSection(caption_from=captions), overlay)
    more = dict(_more_columns(census.folder))
    pieces = tuple(_piece(sample, _path(census, sample), more) for sample in census.samples)
    notes = [problem.told for problem in census.skipped]
    notes += [f"{name} is left out: beside pictures only metadata.parquet is read; import it alone."
              for name in sorted(path.name for path in census.folder.glob("*.parquet"))
              if name.lower() not in METADATA_NAMES]  # fmt: skip
    return Set(pieces, tuple(notes))


def check_room(pieces: Iterable[Piece], folder: Path) -> None:
    """Raise UserError where the disk of a folder has no room for these pictures."""
    needed, there = sum(piece.file.stat().st_size for piece in pieces), shutil.disk_usage(folder).free
    if needed > there:
        what = (
            f"The pictures take {files.told_size(needed)}, and {files.told_size(there)} are free at {folder}."
        )
        raise UserError(what, "Make room there.")


def counted(number: int) -> str:
    return "1 picture" if number == 1 else f"{number:,} pictures"


def joined(sets: Iterable[Set]) -> Set:
    whole = tuple(sets)
    pieces = tuple(piece for one in whole for piece in one.pieces)
    return Set(named_apart(pieces), tuple(note for one in whole for note in one.notes))


def named_apart(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return pieces of which no two share a path without extension, whatever the letters' case: they would
    share a caption file.
    """
    taken: set[str] = set()
    apart = []
    for piece in pieces:
        stem, extension = posixpath.splitext(piece.path)
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        apart.append(replace(piece, path=name + extension))
    return tuple(apart)


def flat(piece: Piece) -> str:
    """Return its file name, with the folders above it in front; a kohya folder's name is told otherwise."""
    folder, name = posixpath.split(piece.path)
    parts = [part for part in folder.split("/") if part and not repeats_of_folder(part)]
    return "_".join([*parts, name])


def write_pictures(pieces: Sequence[Piece], out: Path) -> Iterator[int]:
    """Copy pictures and masks, each mask to a folder `masks` beside its picture; yields how many are done."""
    for done, piece in enumerate(pieces, 1):
        target = out / piece.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(piece.file, target)
        if piece.mask:
            write_mask(piece.mask, out / mask_path(piece))
        yield done


def settle(folder: Path) -> Iterator[Event]:
    """Wait until all in a folder is on the disk, telling how far that is: of thousands of small files it
    takes longer than to write them.
    """
    written = [path for path in folder.rglob("*") if path.is_file()]
    yield PhaseBegan("work", "Waiting for the disk")
    for done, file in enumerate(written, 1):
        files.flush(file)
        yield Progress(done, len(written), "files")


def write_captions(pieces: Iterable[Piece], out: Path, text: Callable[[Piece], str]) -> None:
    for piece in pieces:
        if words := text(piece):
            (out / piece.path).with_suffix(".txt").write_text(words, encoding="utf-8")


def mask_path(piece: Piece) -> str:
    folder, name = posixpath.split(piece.path)
    return posixpath.join(folder, MASKS, posixpath.splitext(name)[0] + ".png")


def write_mask(mask: Path, target: Path) -> None:
    """Write a mask as grey PNG. Raises BadImage."""
    target.parent.mkdir(parents=True, exist_ok=True)
    open_mask(mask, is_alpha=False).save(target, "PNG")


def keep_apart(pieces: Iterable[Piece], overlay: Overlay) -> None:
    """Keep crops and focus points in the workspace."""
    whole = tuple(pieces)
    if crops := {piece.path: list(piece.crop) for piece in whole if piece.crop}:
        overlay.lay("crops", crops)
    if focus := {piece.path: list(piece.focus) for piece in whole if piece.focus}:
        overlay.lay("focus", focus)


def free(path: Path) -> Path:
    """Return the path, or the first of path-2, path-3 ... where nothing is."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def _piece(sample: Sample, path: str, more: dict[str, dict[str, tuple[float, ...]]]) -> Piece:
    columns = more.get(same_path(sample.path), {})
    crop: tuple[float, ...] = columns.get("crop", ())
    if sample.crop:
        crop = tuple(edge / sample.crop.whole[axis % 2] for axis, edge in enumerate(sample.crop.box))
    return Piece(
        sample.file, path, sample.caption, sample.class_word, sample.repeats, crop,
        sample.focus or columns.get("focus", ()), None if sample.mask == sample.file else sample.mask,
    )  # fmt: skip


def _path(census: Census, sample: Sample) -> str:
    """Where it shall lie: as it does, but a folder's name that says repeats is kept even of the root."""
    is_told = any(repeats_of_folder(part) for part in sample.path.split("/")[:-1])
    is_told_by_root = not is_told and repeats_of_folder(census.folder.name)
    return f"{census.folder.name}/{sample.path}" if is_told_by_root else sample.path


def _more_columns(folder: Path) -> Iterator[tuple[str, dict[str, tuple[float, ...]]]]:
    """Yield crops and focus points of metadata tables written by this program."""
    for table in (folder / name for name in METADATA_NAMES if (folder / name).is_file()):
        with contextlib.suppress(OSError, BadTable):  # the scan said so
            for row in table_rows(table, ("file_name", *COUNTS)):
                if isinstance(row.get("file_name"), str):
                    found = {name: _fractions(row.get(name), count) for name, count in COUNTS.items()}
                    yield same_path(row["file_name"]), {name: value for name, value in found.items() if value}


def _fractions(value: object, count: int) -> tuple[float, ...]:
    if isinstance(value, str):  # in CSV
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list) or len(value) != count:
        return ()
    is_fraction = all(isinstance(part, int | float) and 0 <= part <= 1 for part in value)
    return tuple(map(float, value)) if is_fraction else ()


def whole_file(path: Path, text: str) -> None:
    """Write a text file of a set."""
    files.write_text(path, text)
