"""What is kept about pictures outside the user's files: edited captions, crops, focus points, masks.

It lives in the workspace, not beside the images, until the user writes captions there. Every change can be
undone and redone, also after a restart.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from .. import files
from .census import Census, Sample
from .journal import SCHEMA, Change, Journal, Record, Story, change, unknown_schema, unreadable
from .texts import one_line

CAPTIONS: Literal["captions"] = "captions"
Table = Literal["crops", "focus", "masks", "left_out", "backgrounds", "ignored"]
TABLES: tuple[Table, ...] = get_args(Table)
"""Besides captions. By image path: a crop is [left, top, right, bottom] and a focus point [x, y], both in
fractions of the upright image; a mask is the name of a file in `masks`. What is left out is True, and not
trained on; a background is the colour behind a transparent picture; ignored are the names of checks whose
findings nobody wants to hear of again.
"""
_WORDS = {
    "crops": "Crop",
    "focus": "Focus point",
    "masks": "Mask",
    "left_out": "Left out",
    "backgrounds": "Background",
    "ignored": "Ignored",
}
WRITTEN = "Written into the folder"
_journals: dict[Path, Journal] = {}
Found = TypeVar("Found")
Doing = Generator[tuple[int, int], None, Found]
"""Says how many text files are done, and of how many; it may be closed at any moment."""


def overlay_for(workspace: Path, folder: Path) -> Overlay:
    """Return the overlay of an image folder: the same file however the folder is written."""
    folder = folder.resolve()
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Overlay(workspace / "captions" / f"{digest}.jsonl", folder)


@dataclass(frozen=True)
class Step:
    """What was undone or redone, in the words of the change; `left` are files that somebody changed since,
    which stay as they are.
    """

    what: str
    names: tuple[str, ...]
    left: tuple[Path, ...] = ()


class Overlay:
    """Tables of values by image path (relative to the folder, forward slashes); captions are one of them.

    The page and a captioning process may both write: each change is made to what is there then.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        if path not in _journals:
            _journals[path] = Journal(path, lambda: _begin(path.with_suffix(".json")))
        self._journal = _journals[path]
        self._journal.refresh()

    @property
    def version(self) -> int:
        """Grows with every change, within this process."""
        return self._journal.version

    def caption(self, path: str) -> str | None:
        """Return the edited caption, None if there is none; an empty one is a caption."""
        return self._story.tables.get(CAPTIONS, {}).get(path)

    @property
    def captions(self) -> Mapping[str, str]:
        return dict(self._story.tables.get(CAPTIONS, {}))

    def entry(self, table: Table, path: str) -> Any:
        """Return what a table says of an image, None if nothing."""
        return self._story.tables.get(table, {}).get(path)

    def entries(self, table: Table) -> Mapping[str, Any]:
        return dict(self._story.tables.get(table, {}))

    def lay(self, table: Table, entries: Mapping[str, Any]) -> None:
        """Set what a table says of images; None takes it away."""
        of = next(iter(entries)) if len(entries) == 1 else f"{len(entries):,} pictures"
        self.apply(f"{_WORDS[table]} of {of}", entries, table)

    @property
    def masks(self) -> Path:
        """The folder of the masks made in the app."""
        return self.path.parents[1] / "masks" / self.path.stem

    def apply(
        self,
        what: str,
        values: Mapping[str, Any],
        table: Literal["captions"] | Table = CAPTIONS,
        joins: bool = False,
    ) -> int:
        """Set values by image path; None forgets one, so that the caption beside the image counts again.

        `what` was done, in words for the undo button: "Tags removed: blurry". With `joins` it continues the
        change before it, if that was the same a moment ago: what is typed, or captions made one by one.
        Returns how many values are new.
        """
        if table == CAPTIONS:
            values = {path: None if text is None else one_line(text) for path, text in values.items()}

        def record(story: Story) -> Record | None:
            made = change(what, table, values, story.tables)
            return made.record(joins and story.is_continued_by(made)) if made.values else None

        written = self._write(record)
        return len(written["values"]) if written else 0

    @property
    def undoable(self) -> str | None:
        """What `undo` would take back, in words."""
        return self._story.done[-1].what if self._story.done else None

    @property
    def redoable(self) -> str | None:
        return self._story.undone[-1].what if self._story.undone else None

    @property
    def num_files(self) -> tuple[int, int]:
        """How many text files `undo` and `redo` would write or remove."""
        done, undone = self._story.done, self._story.undone
        return len(done[-1].files) if done else 0, len(undone[-1].files) if undone else 0

    @property
    def history(self) -> list[tuple[float, str]]:
        """When what was done, the latest first; seconds since 1970."""
        return [(done.at, done.what) for done in reversed(self._story.done)]

    def undo(self) -> Step | None:
        """Take the last change back; None if there is none.

        Text files that it wrote get their old bytes again. One that was changed since is left alone: newer
        work is never lost.
        """
        return _done(self.undoing())

    def redo(self) -> Step | None:
        """Do again what was undone last; None if there is none."""
        return _done(self.redoing())

    def write_into_folder(self, census: Census) -> list[Path]:
        """Write the edited captions as UTF-8 text files beside the images; return the files written.

        What was there is kept first, so that `undo` can put it back. The edits are forgotten at last: the
        files now say it.
        """
        return _done(self.writing(census))

    def undoing(self) -> Doing[Step | None]:
        """Do what `undo` does, file by file. Closed early, it is still what `undo` would do next."""
        return self._step("undo", lambda story: story.done, 0)

    def redoing(self) -> Doing[Step | None]:
        return self._step("redo", lambda story: story.undone, 1)

    def writing(self, census: Census) -> Doing[list[Path]]:
        """Do what `write_into_folder` does, file by file. Closed early, all edits are kept, and `undo` puts
        back what was written.
        """
        stems = Counter(_stem(sample) for sample in census.samples)
        edited = [sample for sample in census.samples if self.caption(sample.path) is not None]
        texts = {
            sample.path: (_text_file(sample, stems), self.caption(sample.path) or "") for sample in edited
        }
        if not texts:
            return []
        entries = {path: self._entry(file, text) for path, (file, text) in texts.items()}
        kept = Change(f"{WRITTEN}: {len(texts):,}", time.time(), CAPTIONS, {}, entries)
        self._write(lambda story: kept.record(False))
        for done, (file, text) in enumerate(texts.values(), 1):
            files.write_bytes(file, text.encode())
            yield done, len(texts)
        self._write(lambda story: _forget(texts, kept, story))
        return [file for file, _ in texts.values()]

    @property
    def _story(self) -> Story:
        return self._journal.story

    def _write(self, make: Callable[[Story], Record | None]) -> Record | None:
        written = self._journal.write(make)
        if written:
            self.path.with_suffix(".json").unlink(missing_ok=True)
        return written

    def _step(self, word: str, stack: Callable[[Story], list[Change]], side: int) -> Doing[Step | None]:
        """Text files first: a step that a crash cut off is taken again, and finds them as they should be."""
        if not stack(self._story):
            return None
        last = stack(self._story)[-1]
        left = []
        for done, name in enumerate(last.files, 1):
            if not self._put_back(last.files[name], side):
                left.append(name)
            yield done, len(last.files)

        def record(story: Story) -> Record | None:
            is_last = bool(stack(story)) and stack(story)[-1].at == last.at
            return {word: left} if is_last else None

        if self._write(record) is None:
            return None
        where = tuple(self.folder / last.files[name][0] for name in left)
        names = tuple(name for name in {**last.values, **last.files} if name not in left)
        return Step(last.what, names, where)

    def _entry(self, file: Path, text: str) -> tuple[str, str | None, str]:
        """Note a text file's path, what it holds and what it will hold."""
        return file.relative_to(self.folder).as_posix(), _held(file), text

    def _put_back(self, entry: tuple[str, str | None, str], side: int) -> bool:
        """Give a text file the text of before (`side` 0) or after (1), unless somebody changed it since."""
        name, *texts = entry
        file, wanted = self.folder / name, texts[side]
        held = _held(file)
        if held in texts and held != wanted:
            if wanted is None:
                file.unlink()
            else:
                files.write_bytes(file, wanted.encode("utf-8", "surrogateescape"))
        return held in texts


def _done(doing: Doing[Found]) -> Found:
    while True:
        try:
            next(doing)
        except StopIteration as end:
            return end.value


def _forget(texts: Mapping[str, tuple[Path, str]], kept: Change, story: Story) -> Record | None:
    """Drop the captions that were written, but none that was changed again meanwhile."""
    now = story.tables.get(CAPTIONS, {})
    written = {path: None for path, (_, text) in texts.items() if now.get(path) == text}
    forgotten = change(kept.what, CAPTIONS, written, story.tables)
    return forgotten.record(bool(story.done) and story.done[-1].at == kept.at) if written else None


def _begin(old: Path) -> list[Record]:
    """Where the story begins: with nothing, or with what earlier versions of this program kept."""
    if not old.is_file():
        return [{"schema": SCHEMA, "tables": {}}]
    try:
        data = json.loads(old.read_text("utf-8"))
    except ValueError as error:
        raise unreadable(old, error) from error
    if not isinstance(data, dict) or data.get("schema") not in (1, 2):
        raise unknown_schema(old)
    tables = {name: data[name] for name in (CAPTIONS, *TABLES) if name in data}
    base = {"schema": SCHEMA, "tables": tables}
    replaced = {name: (name, both["before"], both["after"]) for name, both in data["replaced"].items()}
    if not replaced:
        return [base]
    return [base, Change(f"{WRITTEN}: {len(replaced):,}", 0.0, CAPTIONS, {}, replaced).record(False)]


def _held(file: Path) -> str | None:
    """Return what a text file holds, from which its very bytes can be had again; None if there is none."""
    if not file.is_file() or file.is_symlink():
        return None
    return file.read_bytes().decode("utf-8", "surrogateescape")


def _text_file(sample: Sample, stems: Counter[Path]) -> Path:
    """Return the caption file of an image: a.txt, or a.png.txt where a.jpg lies beside a.png."""
    stem = _stem(sample)
    return stem.with_name((sample.file.name if stems[stem] > 1 else stem.name) + ".txt")


def _stem(sample: Sample) -> Path:
    return sample.file.with_suffix("")
