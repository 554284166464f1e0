"""What was found out about the files of a folder, remembered for as long as size and time of change stay.

One SQLite file per folder, in the cache: safe to delete at any time, made anew when it is damaged, and done
without where it cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from .walk import Found

VERSION = 2
"""Raise this when the same file would be told of otherwise."""
WRITTEN_EVERY_SECONDS = 5.0
BUSY_SECONDS = 10.0
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_TABLE = "CREATE TABLE IF NOT EXISTS facts (kind TEXT, folder TEXT, files TEXT, PRIMARY KEY (kind, folder))"

Rows = dict[str, list[Any]]
"""By file name: bytes, time of change in ns, and what was found out."""


def index_for(workspace: Path, folder: Path) -> Index:
    """Return the index of an image folder: the same file however the folder is written."""
    digest = hashlib.sha256(str(folder.expanduser().resolve()).encode("utf-8", "replace")).hexdigest()[:16]
    return Index(workspace / "cache" / "folders" / f"{digest}.sqlite")


class Index:
    """Facts by kind and folder: the rows of all its files as JSON. Safe to share between threads and
    processes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def recall(self, kind: str) -> dict[str, str]:
        """Return all that is known of one kind, by folder."""
        if not self.path.is_file():
            return {}
        ask = "SELECT folder, files FROM facts WHERE kind = ?"
        return self._do(lambda base: dict(base.execute(ask, (kind,))), {})

    def note(self, kind: str, folders: Mapping[str, str]) -> None:
        put = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)"
        self._do(lambda base: base.executemany(put, ((kind, *row) for row in folders.items())), None)

    def forget(self, kind: str, folders: Iterable[str]) -> None:
        drop = "DELETE FROM facts WHERE kind = ? AND folder = ?"
        self._do(lambda base: base.executemany(drop, ((kind, folder) for folder in folders)), None)

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

    Rows are spread out only for the folder that is being read and those around it; all others stay one text
    each. With `there`, the paths of all files, it forgets those that are not. Safe to share between threads.
    """

    def __init__(self, index: Index | None, kind: str, there: Collection[str] | None = None) -> None:
        self._index, self._kind, self._there = index, kind, there
        self._texts = index.recall(kind) if index else {}
        self._open: dict[str, Rows] = {}
        self._changed: set[str] = set()
        self._written_at = time.monotonic()
        self._lock = threading.RLock()

    def get(self, found: Found) -> Any:
        """Return what is known of a file as it is now, or None."""
        with self._lock:
            row = self._rows(found.folder).get(found.name)
        return row[2] if row and row[:2] == [found.num_bytes, found.mtime_ns] else None

    def put(self, found: Found, value: Any) -> None:
        if self._index is None:
            return
        with self._lock:
            self._rows(found.folder)[found.name] = [found.num_bytes, found.mtime_ns, value]
            self._changed.add(found.folder)
            if time.monotonic() - self._written_at > WRITTEN_EVERY_SECONDS:
                self._write()

    def close(self) -> None:
        """Write what is new."""
        with self._lock:
            self._write()
        if self._index and self._there is not None:
            folders = {path.rpartition("/")[0] for path in self._there}
            if gone := self._texts.keys() - folders:
                self._index.forget(self._kind, gone)

    def _rows(self, folder: str) -> Rows:
        if folder not in self._open:
            for other in [name for name in self._open if name and not folder.startswith(f"{name}/")]:
                self._fold(other)
                del self._open[other]
            self._open[folder] = self._spread(folder)
        return self._open[folder]

    def _spread(self, folder: str) -> Rows:
        try:
            rows: Rows = json.loads(self._texts.get(folder, "{}"))
        except ValueError:
            return {}
        if self._there is None:
            return rows
        start = f"{folder}/" if folder else ""
        there = {name: row for name, row in rows.items() if start + name in self._there}
        if len(there) < len(rows):
            self._changed.add(folder)
        return there

    def _fold(self, folder: str) -> None:
        if folder in self._changed and folder in self._open:
            self._texts[folder] = json.dumps(self._open[folder])

    def _write(self) -> None:
        for folder in self._changed:
            self._fold(folder)
        if self._index and self._changed:
            self._index.note(self._kind, {folder: self._texts[folder] for folder in self._changed})
        self._changed.clear()
        self._written_at = time.monotonic()
