"""Give a set of pictures to other programs. The chore `export`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import files
from ..data.overlay import overlay_for
from ..events import Event, PhaseBegan, Progress
from ..section import Section, UserError, knob
from ..workspace import Workspace
from . import embedded, imagefolder, kohya, onetrainer
from .pieces import Piece, check_room, counted, free, named_apart, of_folder, settle

To = Literal[
    "zip", "imagefolder", "imagefolder-csv", "imagefolder-parquet", "parquet", "kohya", "kohya-toml",
    "onetrainer",
]  # fmt: skip
Write = Callable[[Sequence[Piece], Path, Path], Iterator[int]]
"""Writes pieces into a folder that will at last lie at the second path; yields how many are done."""


@dataclass(frozen=True)
class Format:
    """`lacks` is what it cannot say, of crops, focus points and masks."""

    write: Write
    lacks: tuple[str, ...] = ()


FORMATS: Mapping[To, Format] = {
    "zip": Format(imagefolder.write),
    "imagefolder": Format(imagefolder.write),
    "imagefolder-csv": Format(imagefolder.write_csv),
    "imagefolder-parquet": Format(imagefolder.write_parquet),
    "parquet": Format(embedded.write),
    "kohya": Format(kohya.write_folders, ("crop", "focus", "mask")),
    "kohya-toml": Format(kohya.write_config, ("crop", "focus")),
    "onetrainer": Format(onetrainer.write, ("crop", "focus")),
}
_WORDS = {"crop": "Crops", "focus": "Focus points", "mask": "Masks"}


class Settings(Section):
    folder: str = knob(
        "", "Image folder", "The pictures to give away. Nothing in the folder is changed.", level="basic",
        is_path=True,
    )  # fmt: skip
    out: str = knob(
        "", "Write to",
        "A new folder or .zip file; nothing that is there is overwritten. Empty: into exports in the "
        "workspace.",
        level="basic", is_path=True,
    )  # fmt: skip
    to: To = knob(
        "zip", "Format",
        "For this program or Hugging Face: zip, one file with everything; imagefolder, the same as a folder, "
        "its captions in metadata.jsonl, .csv or .parquet; parquet, the pictures inside Parquet files. For "
        "kohya's trainer: kohya, folders such as 10_dog; kohya-toml, with a dataset config, which keeps "
        "masks. For OneTrainer: onetrainer, with concepts.json.",
        level="basic",
    )  # fmt: skip


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    folder = Path(settings.folder).expanduser()
    out = _place(settings, workspace)
    found = of_folder(folder, overlay_for(workspace.root, folder))
    pieces, written = named_apart(found.pieces), FORMATS[settings.to]
    yield PhaseBegan("work", "Writing")
    out.parent.mkdir(parents=True, exist_ok=True)
    check_room(pieces, out.parent)
    if settings.to == "zip":
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".packing-") as packing:
            for done in written.write(pieces, Path(packing), out):
                yield Progress(done, len(pieces), "pictures")
            yield from imagefolder.write_zip(Path(packing), out)
    else:
        with files.new_folder(out) as part:
            for done in written.write(pieces, part, out.resolve()):
                yield Progress(done, len(pieces), "pictures")
            yield from settle(part)
    notes = [*found.notes, *lost(pieces, written)]
    return {"out": str(out), "pictures": len(pieces), "notes": notes}


def _place(settings: Settings, workspace: Workspace) -> Path:
    """Return where to write. Raises UserError if something is there, or it is among the pictures."""
    folder = Path(settings.folder).expanduser().resolve()
    ending = ".zip" if settings.to == "zip" else ""
    if not settings.out.strip():
        return free(workspace.root / "exports" / f"{folder.name}{ending or f'-{settings.to}'}")
    out = Path(settings.out).expanduser()
    if ending and out.suffix.lower() != ending:
        out = out.with_name(out.name + ending)
    if out.exists():
        raise UserError(f"Write to: {out} is there already.", "Choose a new name.", "out")
    if out.resolve().is_relative_to(folder):
        raise UserError(f"Write to: {out} lies among the pictures.", "Choose a place elsewhere.", "out")
    return out


def told(answer: dict[str, Any]) -> Iterable[str]:
    yield from answer["notes"]
    yield f"{counted(answer['pictures'])} written."
    yield answer["out"]


def lost(pieces: Sequence[Piece], written: Format) -> list[str]:
    """Say what a format cannot carry."""
    counts = {name: sum(bool(getattr(piece, name)) for piece in pieces) for name in written.lacks}
    return [
        f"{_WORDS[name]} of {counted(count)} are left behind: this format cannot say them."
        for name, count in counts.items()
        if count
    ]
