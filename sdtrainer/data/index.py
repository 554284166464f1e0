"""What was found out about the files of a folder, remembered for as long as size and time of change stay.

One SQLite file per folder, in the cache: safe to delete at any time, made anew when it is damaged, and done
without where it cannot be written.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .walk import Files, Found

VERSION = 3
"""Raise this when the same file would be told of otherwise."""
WRITTEN_EVERY_SECONDS = 5.0
WRITTEN_EVERY_FACTS = 5000
ASKED_AT_ONCE = 900
"""SQLite before 3.32 takes up to 999 values in a question."""
BUSY_SECONDS = 10.0
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_TABLE = """CREATE TABLE IF NOT EXISTS facts (
    kind TEXT, path TEXT, bytes INTEGER, mtime_ns INTEGER, fact TEXT, PRIMARY KEY (kind, path)
) WITHOUT ROWID"""

Fact = tuple[int, int, str]
"""Bytes and time of change of a file, and what was found out about it, as JSON."""


def index_for(workspace: Path, folder: Path) -> Index:
    """Return the index of an image folder: the same file however the folder is written."""
    digest = hashlib.sha256(str(folder.expanduser().resolve()).encode("utf-8", "replace")).hexdigest()[:16]
    return Index(workspace / "cache" / "folders" / f"{digest}.sqlite")


class Index:
    """Facts by kind and path. Safe to share between threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def recall(self, kind: str, paths: Sequence[str]) -> dict[str, Fact]:
        """Return what is known about at most ASKED_AT_ONCE files."""
        if not self.path.is_file():
            return {}
        marks = ", ".join("?" * len(paths))
        ask = f"SELECT path, bytes, mtime_ns, fact FROM facts WHERE kind = ? AND path IN ({marks})"
        rows = self._do(lambda base: base.execute(ask, (kind, *paths)).fetchall(), ())
        return {path: (num_bytes, mtime_ns, fact) for path, num_bytes, mtime_ns, fact in rows}

    def note(self, kind: str, facts: Iterable[tuple[str, Fact]]) -> None:
        put = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)"
        self._do(lambda base: base.executemany(put, ((kind, path, *fact) for path, fact in facts)), None)

    def count(self, kind: str) -> int:
        """Return about how many files something is known."""
        ask = "SELECT count(*) FROM facts WHERE kind = ?"
        return int(self._do(lambda base: base.execute(ask, (kind,)).fetchone()[0], 0))

    def forget_others(self, kind: str, there: Collection[str]) -> None:
        """Forget the files that are not there."""
        ask, drop = "SELECT path FROM facts WHERE kind = ?", "DELETE FROM facts WHERE kind = ? AND path = ?"

        def forget(base: sqlite3.Connection) -> None:
            gone = [(kind, path) for (path,) in base.execute(ask, (kind,)) if path not in there]
            base.executemany(drop, gone)

        self._do(forget, None)

    def _do(self, work: Callable[[sqlite3.Connection], Any], otherwise: Any) -> Any:
        """Work in one transaction; what another process holds, or cannot be opened, is gone without."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as base, base:
                self._prepare(base)
                return work(base)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in _BUSY:
                self._start_anew()
        except OSError:
            pass
        return otherwise

    @staticmethod
    def _prepare(base: sqlite3.Connection) -> None:
        if base.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            base.execute("DROP TABLE IF EXISTS facts")
            base.execute(f"PRAGMA user_version = {VERSION}")
        base.execute(_TABLE)

    def _start_anew(self) -> None:
        for name in (self.path.name, f"{self.path.name}-journal"):
            try:
                self.path.with_name(name).unlink(missing_ok=True)
            except OSError:
                return


class Known:
    """One kind of fact about the files of a folder: remembered ones, and those found out now.

    Those of the files last expected are held; others are asked for one by one. Safe to share between threads.
    """

    def __init__(self, index: Index | None, kind: str) -> None:
        self._index, self._kind = index, kind
        self._held: dict[str, Fact | None] = {}
        self._new: dict[str, Fact] = {}
        self._num_there = 0
        self._written_at = time.monotonic()
        self._lock = threading.RLock()

    def expect(self, files: Sequence[Found]) -> None:
        """Recall what is known about these, as they are looked at next."""
        if self._index is None:
            return
        with self._lock:
            self._held = {}
            for start in range(0, len(files), ASKED_AT_ONCE):
                paths = [found.path for found in files[start : start + ASKED_AT_ONCE]]
                self._held |= self._recalled(self._index, paths)

    def get(self, found: Found) -> Any:
        """Return what is known of a file as it is now, or None. It is shared: not to be changed."""
        if self._index is None:
            return None
        with self._lock:
            held = self._held if found.path in self._held else self._recalled(self._index, [found.path])
            fact = held[found.path]
            if fact is None or fact[:2] != (found.num_bytes, found.mtime_ns):
                return None
            self._num_there += 1
        return _value(fact[2])

    def put(self, found: Found, value: Any) -> None:
        if self._index is None:
            return
        fact = (found.num_bytes, found.mtime_ns, json.dumps(value))
        with self._lock:
            self._num_there += 1
            self._new[found.path] = fact
            if found.path in self._held:
                self._held[found.path] = fact
            is_due = time.monotonic() - self._written_at > WRITTEN_EVERY_SECONDS
            if is_due or len(self._new) >= WRITTEN_EVERY_FACTS:
                self._write()

    def close(self) -> None:
        """Write what is new."""
        with self._lock:
            self._write()

    def forget_others(self, files: Files) -> None:
        """Write what is new, and forget all but these files; each was asked for or found out once."""
        self.close()
        if self._index and self._index.count(self._kind) != self._num_there:
            self._index.forget_others(self._kind, {found.path for found in files})

    def _recalled(self, index: Index, paths: Sequence[str]) -> dict[str, Fact | None]:
        new = {path: self._new[path] for path in paths if path in self._new}
        return {**dict.fromkeys(paths), **index.recall(self._kind, paths), **new}

    def _write(self) -> None:
        if self._index and self._new:
            self._index.note(self._kind, self._new.items())
        self._new = {}
        self._written_at = time.monotonic()


@functools.lru_cache(1024)
def _value(text: str) -> Any:
    """Read a fact; equal ones, such as the headers of pictures of one camera, share their memory."""
    try:
        return json.loads(text)
    except ValueError:
        return None
