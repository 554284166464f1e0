"""Tables that remember: values by name, and what was done to them, so that it can be undone after a restart.

One file of JSON lines. The first holds the tables as they once were, each further one what happened since: a
change, an undo, a redo. A change is one appended line, so that it costs the same however much there is, and a
line cut off by a crash did not happen. Several processes may write; each sees what the others did.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from .. import files
from ..section import UserError

SCHEMA = 3
JOIN_SECONDS = 60.0
"""A change in the same words that comes so soon after the last continues it: a sentence is one change."""
MAX_CHANGES, MAX_BYTES = 500, 16 * 2**20
"""Of the history; beyond it the oldest changes can no longer be undone."""

Tables = dict[str, dict[str, Any]]
Record = dict[str, Any]


@dataclass
class Change:
    """`values` by name are what was there before and what came after, None for nothing. `files` by name are a
    file's path and its text before and after.
    """

    what: str
    at: float
    table: str
    values: dict[str, tuple[Any, Any]]
    files: dict[str, tuple[str, str | None, str]] = field(default_factory=dict)

    def without(self, names: Collection[str]) -> Change:
        values = {name: both for name, both in self.values.items() if name not in names}
        kept = {name: entry for name, entry in self.files.items() if name not in names}
        return Change(self.what, self.at, self.table, values, kept)

    def record(self, joins: bool) -> Record:
        return {**vars(self), "joins": joins}


class Story:
    """The tables as they are now; the changes that led here, and those that were undone."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.done: list[Change] = []
        self.undone: list[Change] = []

    def take(self, record: Record) -> None:
        """Let happen what a line tells."""
        if "undo" in record:
            change = self.done.pop().without(record["undo"])
            self._put(change, 0)
            self.undone.append(change)
        elif "redo" in record:
            change = self.undone.pop().without(record["redo"])
            self._put(change, 1)
            self.done.append(change)
        else:
            fields = {**record}
            joins = fields.pop("joins")
            change = Change(**fields)
            self._put(change, 1)
            self.undone.clear()
            if joins:
                change = _joined(self.done.pop(), change)
            if change.values or change.files:
                self.done.append(change)

    def is_continued_by(self, change: Change) -> bool:
        if not self.done or self.undone:
            return False
        last = self.done[-1]
        return (last.what, last.table) == (change.what, change.table) and change.at - last.at < JOIN_SECONDS

    def records(self) -> Iterator[Record]:
        """The story told anew: where it begins, then all that can still be undone or redone."""
        later = [*self.done, *reversed(self.undone)]
        tables = {name: dict(values) for name, values in self.tables.items()}
        for change in reversed(self.done):
            _set(tables.setdefault(change.table, {}), change, 0)
        yield {"schema": SCHEMA, "tables": tables}
        yield from (change.record(False) for change in later)
        yield from ({"undo": []} for _ in self.undone)

    def _put(self, change: Change, side: int) -> None:
        _set(self.tables.setdefault(change.table, {}), change, side)


class Journal:
    """A story in its file. `version` grows whenever the story does, whoever wrote it."""

    def __init__(self, path: Path, begin: Callable[[], list[Record]]) -> None:
        """`begin` tells the story where there is no file yet."""
        self.path, self._begin = path, begin
        self.version = 0
        self._inode, self._read, self._told = 0, -1, 0
        self.story = Story({})
        self.refresh()

    def refresh(self) -> None:
        """Read what others wrote meanwhile. Raises UserError if it cannot be read."""
        with _alone_here:
            self._catch_up()

    def write(self, make: Callable[[Story], Record | None]) -> Record | None:
        """Let `make` see the story as it is, and note what it returns; nobody else writes meanwhile."""
        with _alone(self.path):
            self._catch_up()
            record = make(self.story)
            if record is None:
                return None
            if not self.path.exists() or self._is_long():
                self._tell_anew()
            self._append(record)
            self._take(record)
            return record

    def _catch_up(self) -> None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            if self._read != 0:
                self._restart(self._begin())
            return
        if stat.st_ino == self._inode and stat.st_size == self._read:
            return
        if stat.st_ino != self._inode or stat.st_size < self._read:
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            self._restart(self._parsed(whole))
            self._inode, self._read, self._told = stat.st_ino, len(whole), whole.find(b"\n")
        else:
            with self.path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            for record in self._parsed(whole):
                self._take(record)
            self._read += len(whole)

    def _restart(self, records: list[Record]) -> None:
        if not records:
            raise unreadable(self.path, "it is empty")
        base, *later = records
        if base.get("schema") != SCHEMA:
            raise unknown_schema(self.path)
        self.story = Story(base["tables"])
        for record in later:
            self.story.take(record)
        self._inode, self._read = 0, 0
        self.version += 1

    def _parsed(self, lines: bytes) -> list[Record]:
        try:
            records = [json.loads(line) for line in lines.splitlines()]
        except ValueError as error:
            raise unreadable(self.path, error) from error
        if not all(isinstance(record, dict) for record in records):
            raise unreadable(self.path, "it holds something else")
        return records

    def _take(self, record: Record) -> None:
        self.story.take(record)
        self.version += 1

    def _append(self, record: Record) -> None:
        line = _line(record)
        with self.path.open("r+b") as file:
            file.truncate(self._read)  # what a crash cut off did not happen
            file.seek(self._read)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._read += len(line)

    def _is_long(self) -> bool:
        return len(self.story.done) > MAX_CHANGES or self._read > self._told + MAX_BYTES

    def _tell_anew(self) -> None:
        """Write the story whole, without its oldest part where it has become long."""
        story = self.story
        del story.done[: max(0, len(story.done) - MAX_CHANGES // 2)]
        while True:
            lines = [_line(record) for record in story.records()]
            if sum(map(len, lines[1:])) <= MAX_BYTES // 2 or len(story.done) < 2:
                break
            del story.done[: (len(story.done) + 1) // 2]
        files.write_bytes(self.path, b"".join(lines))
        stat = self.path.stat()
        self._inode, self._read, self._told = stat.st_ino, stat.st_size, stat.st_size


_alone_here = threading.RLock()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other threads and processes from writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_here, FileLock(path.parent / ".lock"):
        yield


def unreadable(path: Path, error: object) -> UserError:
    what = f"The edited captions in {path} cannot be read ({error})."
    return UserError(what, "Repair the file, or rename it to start anew.", "data.folder")


def unknown_schema(path: Path) -> UserError:
    what = f"The edited captions in {path} were written by another version of this program."
    return UserError(what, "Use that version, or rename the file to start anew.", "data.folder")


def change(what: str, table: str, values: Mapping[str, Any], tables: Tables) -> Change:
    """Return what it would be to give `table` these values, None for none; names that keep theirs are out."""
    now = tables.get(table, {})
    changed = {name: (now.get(name), new) for name, new in values.items() if now.get(name) != new}
    return Change(what, time.time(), table, changed)


def _joined(first: Change, then: Change) -> Change:
    """Return two changes as one. What came back to where it began is no change."""
    values = dict(first.values)
    for name, (before, after) in then.values.items():
        values[name] = (values[name][0] if name in values else before, after)
    values = {name: both for name, both in values.items() if both[0] != both[1]}
    return Change(then.what, then.at, then.table, values, first.files | then.files)


def _set(values: dict[str, Any], change: Change, side: int) -> None:
    for name, both in change.values.items():
        if both[side] is None:
            values.pop(name, None)
        else:
            values[name] = both[side]


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
