"""Bring a set of pictures into the workspace. The chore `import`."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import files
from ..data.images import EXTENSIONS
from ..data.overlay import overlay_for
from ..events import Event, PhaseBegan, Progress
from ..section import Section, UserError, knob
from ..workspace import Workspace
from . import archives, kohya, onetrainer, shards
from .pieces import (
    Set,
    check_room,
    counted,
    free,
    keep_apart,
    named_apart,
    of_folder,
    settle,
    write_captions,
    write_pictures,
)

KINDS = "a ZIP archive, a folder, a .parquet or .toml file, or concepts.json"
UNPACKED, UPLOADED = "unpacked", "uploaded"
"""Folders in the workspace's cache. What was uploaded is gone once it is imported."""


class Settings(Section):
    source: str = knob(
        "", "What to import",
        "A ZIP archive, a folder of pictures, a Parquet file or a folder of them, a dataset config of "
        "kohya's trainer (.toml), or concepts.json of OneTrainer. It is copied, and not changed.",
        level="basic", is_path=True,
    )  # fmt: skip
    name: str = knob(
        "", "Name", "What the new folder in the workspace is called; empty for the name it has.",
        level="basic", max_length=80,
    )  # fmt: skip
    caption_column: str = knob(
        "", "Caption column",
        "Which column of Parquet files holds the captions; empty for text, caption, prompt or what else is "
        "usual.",
        max_length=200,
    )  # fmt: skip


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    source = Path(settings.source).expanduser()
    if not settings.source.strip() or not source.exists():
        what = f"'{settings.source}' is not there." if settings.source.strip() else "it is empty."
        raise UserError(f"What to import: {what}", f"Choose {KINDS}.", "source")
    unpacked = workspace.cache / UNPACKED
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        found = yield from _found(source, settings.caption_column, workspace)
        return (
            yield from _bring(found, plain_name(settings.name or _title(source)) or "imported", workspace)
        )
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        _forget_upload(source, workspace.cache / UPLOADED)


def _forget_upload(source: Path, uploads: Path) -> None:
    if source.is_relative_to(uploads) and source != uploads:
        upload = uploads / source.relative_to(uploads).parts[0]
        shutil.rmtree(upload) if upload.is_dir() else upload.unlink(missing_ok=True)


def told(answer: dict[str, Any]) -> Iterable[str]:
    yield from answer["notes"]
    yield f"{counted(answer['pictures'])} imported."
    yield answer["folder"]


def read(source: Path, within: Path | None = None) -> Set:
    """Read a set by what it is; what it names lies `within`. Raises UserError."""
    if source.is_dir():
        config = _config(source)
        return read(config, within) if config else of_folder(source)
    readers = {".toml": kohya.of_config, ".json": onetrainer.of_concepts}
    reader = readers.get(source.suffix.lower())
    if reader is None:
        hints = {
            **dict.fromkeys(archives.PACKED, archives.UNPACK),
            **dict.fromkeys(EXTENSIONS, "Import its folder."),
        }
        hint = hints.get(source.suffix.lower(), f"Choose {KINDS}.")
        raise UserError(f"{source.name} is nothing that can be imported.", hint, "source")
    return reader(source, within)


def is_for_import(folder: Path) -> bool:
    """Whether a folder cannot be trained on as it is: its pictures are packed, or a config names some."""
    return bool(shards.listed(folder)) or _config(folder) is not None


def plain_name(text: str) -> str:
    """Return what of a name any disk takes."""
    return "".join(c for c in text if c.isalnum() or c in " ._-").strip(" .")[:80]


def _config(folder: Path) -> Path | None:
    """Return the config of another trainer that a folder holds."""
    listed = folder / onetrainer.CONCEPTS
    configs = [path for path in sorted(folder.glob("*.toml")) if kohya.subset_count(path)]
    return listed if listed.is_file() else next(iter(configs), None)


def _found(source: Path, column: str, workspace: Workspace) -> Generator[Event, None, Set]:
    """Read a set, after it was taken out of what it is packed in."""
    unpacked = workspace.cache / UNPACKED
    within = workspace.root if workspace.contains(source) else None
    if source.suffix.lower() == ".zip" and source.is_file():
        archived = unpacked / "archive"
        archived.mkdir(parents=True)
        yield PhaseBegan("work", f"Unpacking {source.name}")
        for done, total in archives.unpack(source, archived):
            yield Progress(done, total, "files")
        try:
            return (yield from _found_in(_inner(archived), archived, column, unpacked))
        except UserError as error:  # of a folder that nobody knows
            what = error.what.replace(str(_inner(archived)), source.name)
            raise UserError(what, error.hint, error.path) from error
    return (yield from _found_in(source, within, column, unpacked))


def _found_in(source: Path, within: Path | None, column: str, unpacked: Path) -> Generator[Event, None, Set]:
    if paths := shards.listed(source):
        unpacked.mkdir(parents=True, exist_ok=True)
        root, pictures = source if source.is_dir() else source.parent, unpacked / "pictures"
        notes = yield from shards.unpack(paths, root, pictures, column)
        found = of_folder(pictures)
        return replace(found, notes=(*notes, *found.notes))
    if column:
        what = f"Caption column: only Parquet files have columns, and {source.name} is none."
        raise UserError(what, "Leave it empty.", "caption_column")
    return read(source, within)


def _bring(found: Set, name: str, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    pieces = named_apart(found.pieces)
    if not pieces:
        why = " ".join(found.notes[:3])
        raise UserError(f"There are no pictures to import. {why}", "Choose another set.", "source")
    workspace.uploads.mkdir(parents=True, exist_ok=True)
    check_room(pieces, workspace.uploads)
    target = free(workspace.uploads / name)
    yield PhaseBegan("work", "Copying")
    with files.new_folder(target) as folder:
        for done in write_pictures(pieces, folder):
            yield Progress(done, len(pieces), "pictures")
        write_captions(pieces, folder, lambda piece: piece.caption)
        yield from settle(folder)
    keep_apart(pieces, overlay_for(workspace.root, target))
    return {"folder": str(target), "pictures": len(pieces), "notes": list(found.notes)}


def _inner(folder: Path) -> Path:
    """Return the one folder that an archive holds, if that is all."""
    inside = list(folder.iterdir())
    is_kohya = len(inside) == 1 and inside[0].name.partition("_")[0].isdecimal()
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and not is_kohya else folder


def _title(source: Path) -> str:
    return source.resolve().name if source.is_dir() else source.stem
