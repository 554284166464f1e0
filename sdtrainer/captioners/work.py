"""The chore: captions for the pictures of a folder, each kept as soon as it is written."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import hardware, hub
from ..data.census import Census, Sample
from ..data.images import BadImage, open_rgb
from ..data.overlay import overlay_for
from ..data.scan import scan
from ..data.section import DataSection
from ..data.sources import FROM_FILE_NAME, FROM_FOLDER_NAME
from ..events import Event, PhaseBegan, Progress, Said
from ..section import UserError, fields
from ..workspace import Workspace
from . import Captioner, Captioning, Picture, captioner
from .record import Record
from .room import Room, room
from .rules import words_of_folder, words_of_name
from .section import Settings
from .writing import CAPTION, FOLDER, NAME, TRIGGER, check_template, filled, joined

__all__ = ["Settings", "told", "work"]

_ALL_READ = (
    "folder", "captioner", "template", "trigger", "overwrite", "mode", "pictures", "dry_run", "write_files"
)  # fmt: skip
_AT_ONCE, _SEEN_AT_ONCE = 200, 8
"""Captions kept at once where they cost nothing to write, and where pictures are opened."""
_SHOWN = 3


@dataclass
class Tally:
    """What came of it: captions, and pictures left out with the reason. `seconds` are those of captioning."""

    texts: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    """Caption a folder; see `chores`.

    Raises:
        UserError: a setting is wrong or without effect; the model cannot be had, or fits nowhere.
    """
    by = captioner(settings.captioner)
    check(settings, by)
    yield PhaseBegan("work", "Reading the folder")
    census = _scanned(settings, workspace)
    asked = _asked(census, settings)
    record = Record(workspace.root, census.folder)
    done = frozenset() if settings.dry_run else record.begin(_question(settings), by.title)
    left = [sample for sample in _wanted(asked, settings) if sample.path not in done]
    num_done = sum(sample.path in done for sample in asked)
    tally, where = Tally(), ""
    if not settings.pictures:
        tally.skipped |= {problem.file: problem.sentence for problem in census.skipped}
    if left:
        place = (yield from _place(settings, by)) if by.download else None
        found = _room(settings, by, place)
        where = found.words() if by.looks else ""
        if by.download:
            yield PhaseBegan("work", f"Loading {by.title} {where}".strip())
        caption = by.load(place, found.device, found.precision, settings)
        yield PhaseBegan("work", f"Captioning {_count(len(left), 'picture')}: {by.title}")
        began = time.monotonic()
        yield from _caption(left, caption, by, found, settings, tally, record)
        tally.seconds = time.monotonic() - began
    written = _finish(settings, workspace, census, record)
    return {
        "folder": str(census.folder),
        "captioner": by.title,
        "where": where,
        "is_try": settings.dry_run,
        "written": len(tally.texts),
        "done": num_done,
        "kept": len(asked) - len(left) - num_done,
        "skipped": tally.skipped,
        "seconds": tally.seconds,
        "files": written,
        "captions": dict(list(tally.texts.items())[: None if settings.dry_run else _SHOWN]),
    }


def told(answer: Mapping[str, Any]) -> Iterable[str]:
    written, kept, done = answer["written"], answer["kept"], answer["done"]
    where = f" {answer['where']}" if answer["where"] else ""
    what = "tried and not kept" if answer["is_try"] else "written"
    yield f"{answer['captioner']}{where}: {_count(written, 'caption')} {what}."
    if done:
        yield f"{_count(done, 'caption')} had been written before it was broken off."
    if kept:
        them = (
            "has a caption and was left alone; --overwrite captions it"
            if kept == 1
            else ("have a caption and were left alone; --overwrite captions them")
        )
        yield f"{_count(kept, 'picture')} {them}, too."
    if written > len(answer["captions"]):
        yield "Some of them:"
    yield from (f"  {path}: {text}" for path, text in answer["captions"].items())
    yield from (f"Skipped {_once(path, why)}" for path, why in answer["skipped"].items())
    if written and not answer["is_try"] and not answer["files"]:
        yield "They are kept in the workspace; --write-files writes them beside the pictures, too."
    yield from answer["files"]


def _count(number: int, word: str) -> str:
    return f"{number:,} {word if number == 1 else word + 's'}"


def _once(path: str, why: str) -> str:
    """What is wrong with a picture, its name said once."""
    return why if why.startswith(path) else f"{path}: {why}"


def reads(by: Captioner) -> frozenset[str]:
    """Return the names of the settings that have an effect with this captioner."""
    return frozenset((*_ALL_READ, *by.reads))


def check(settings: Settings, by: Captioner) -> None:
    """Raise UserError where a setting has no effect with this captioner, or two contradict each other."""
    heeded = reads(by)
    for name, knob in fields(Settings).items():
        if name not in heeded and getattr(settings, name) != knob.default:
            what = f"{knob.title} ({name}) is set, and {by.title} has no use for it."
            raise UserError(what, "Leave it out, or choose another captioner.", name)
    if settings.mode != "replace" and not settings.overwrite:
        what = f"mode is '{settings.mode}', and pictures that have a caption are left alone."
        raise UserError(what, "Turn on overwrite, too.", "mode")
    if settings.write_files and settings.dry_run:
        raise UserError("Only try is on, and Write text files too.", "Choose one of them.", "write_files")
    check_template(settings.template, settings.trigger, must_caption=not by.only_fills)


def _scanned(settings: Settings, workspace: Workspace) -> Census:
    folder = Path(settings.folder).expanduser()
    overlay = overlay_for(workspace.root, folder) if settings.folder.strip() else None
    return scan(folder, DataSection(folder=settings.folder), overlay)


def _asked(census: Census, settings: Settings) -> list[Sample]:
    """Return the pictures that the user means.

    Raises:
        UserError: one is not there.
    """
    if not settings.pictures:
        return list(census.samples)
    known = {sample.path: sample for sample in census.samples}
    missing = [path for path in settings.pictures if path not in known]
    if missing:
        what = f"Only these pictures: there is no usable picture '{missing[0]}' in {census.folder}."
        raise UserError(what, "Write paths as they are inside the folder.", "pictures")
    return [known[path] for path in dict.fromkeys(settings.pictures)]


def _wanted(asked: Sequence[Sample], settings: Settings) -> Sequence[Sample]:
    """Return those of them that are to be captioned."""
    return asked if settings.overwrite or settings.dry_run else [s for s in asked if not existing(s)]


def existing(sample: Sample) -> str:
    """Return the caption that somebody wrote; names of files and folders are nobody's."""
    return "" if sample.caption_from in (FROM_FILE_NAME, FROM_FOLDER_NAME) else sample.caption


def _question(settings: Settings) -> dict[str, Any]:
    """What makes two captionings the same: neither how fast they are, nor what is done afterwards."""
    return settings.model_dump(mode="json", exclude={"batch_size", "precision", "write_files", "dry_run"})


def _place(settings: Settings, by: Captioner) -> Generator[Event, None, Path]:
    """Return the folder with the model's files, fetched from the hub if need be."""
    assert by.download
    folder = Path(settings.model).expanduser()
    if settings.model and (folder.is_dir() or not hub.is_id(settings.model)):
        if lacking := by.download.lacking(folder):
            what = f"Other model: '{settings.model}' has no {' and no '.join(lacking)}."
            raise UserError(what, f"Choose a folder with a model for {by.title}, or an id.", "model")
        return folder
    return (yield from hub.fetch(by.download.wanted(settings.model)))


def _room(settings: Settings, by: Captioner, place: Path | None) -> Room:
    if place is None or "precision" not in by.reads:
        return Room("cpu", "fp32", _SEEN_AT_ONCE if by.looks else _AT_ONCE)
    machine = hardware.detect()
    return room(settings, lambda kind: by.memory(place, kind), machine, by.title, by.is_wide)


def _caption(
    left: Sequence[Sample], caption: Captioning, by: Captioner, found: Room, settings: Settings,
    tally: Tally, record: Record,
) -> Iterator[Event]:  # fmt: skip
    yield Progress(0, len(left), "pictures")
    done, size = 0, found.batch_size
    while done < len(left):
        batch = left[done : done + size]
        pictures = list(_opened(batch, by, tally))
        texts = _attempt(caption, pictures)
        if texts is None:
            if size == 1:
                raise UserError(
                    f"The card's memory ran out while {by.title} looked at a single picture.",
                    "Choose precision int8 or a smaller captioner, or end other programs.",
                    "precision",
                )
            size = max(1, size // 2)
            yield Said("warning", f"The card's memory ran out; from here on {size} at once.")
            continue
        written = dict(_composed(pictures, texts, by, settings, tally))
        tally.texts |= written
        if written and not settings.dry_run:
            record.write(written)
        done += len(batch)
        yield Progress(done, len(left), "pictures")


def _opened(batch: Sequence[Sample], by: Captioner, tally: Tally) -> Iterator[Picture]:
    for sample in batch:
        try:
            yield Picture(sample, open_rgb(sample.file, "white") if by.looks else None)
        except BadImage as error:
            tally.skipped[sample.path] = str(error)


def _attempt(caption: Captioning, pictures: Sequence[Picture]) -> list[str] | None:
    """Return a text for each picture; None if the card's memory ran out, which is then free again."""
    if not pictures:
        return []
    try:
        return caption(pictures)
    except RuntimeError as error:
        from ..training.shortage import ran_out

        if not ran_out(error):
            raise
    from ..training.shortage import free

    free()
    return None


def _composed(
    pictures: Sequence[Picture], texts: Sequence[str], by: Captioner, settings: Settings, tally: Tally
) -> Iterator[tuple[str, str]]:
    """Yield (path, caption): the words in the template, joined to what was there."""
    for picture, text in zip(pictures, texts, strict=True):
        sample = picture.sample
        values = {
            CAPTION: text, TRIGGER: settings.trigger.strip(), NAME: words_of_name(sample),
            FOLDER: words_of_folder(sample),
        }  # fmt: skip
        whole = filled(settings.template, values) if text or by.only_fills else ""
        if whole:
            yield sample.path, joined(existing(sample), whole, settings.mode, by.writes_tags)
        else:
            silent = f"{by.title} said nothing." if by.looks else "Its name tells nothing to caption it with."
            tally.skipped[sample.path] = silent


def _finish(settings: Settings, workspace: Workspace, census: Census, record: Record) -> list[str]:
    """Close the record, and write the captions beside the pictures if that is wanted; return those files."""
    if settings.dry_run:
        return []
    record.end()
    if not settings.write_files:
        return []
    return [str(file) for file in overlay_for(workspace.root, census.folder).write_into_folder(census)]
