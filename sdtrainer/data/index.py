"""What was found out about the files of a folder, remembered for as long as size and time of change stay.

One SQLite file per folder, in the cache: safe to delete at any time, made anew when it is damaged, and done
without where it cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from .walk import Found

VERSION = 1
"""Raise this when the same file would be told of otherwise."""
WRITTEN_AT_ONCE = 5000
BUSY_SECONDS = 10.0
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_TABLE = """CREATE TABLE IF NOT EXISTS facts (
    kind TEXT, path TEXT, num_bytes INTEGER, mtime_ns INTEGER, value TEXT, PRIMARY KEY (kind, path)
) WITHOUT ROWID"""

Row = tuple[str, int, int, str]
"""(path, bytes, time of change in ns, value as JSON)."""


def index_for(workspace: Path, folder: Path) -> Index:
    """Return the index of an image folder: the same file however the folder is written."""
    digest = hashlib.sha256(str(folder.expanduser().resolve()).encode("utf-8", "replace")).hexdigest()[:16]
    return Index(workspace / "cache" / "folders" / f"{digest}.sqlite")


class Index:
    """Facts by kind and path. Safe to share between threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def recall(self, kind: str) -> list[Row]:
        """Return all that is known of one kind."""
        if not self.path.is_file():
            return []
        ask = "SELECT path, num_bytes, mtime_ns, value FROM facts WHERE kind = ?"
        return self._do(lambda base: base.execute(ask, (kind,)).fetchall(), [])

    def note(self, kind: str, rows: Iterable[Row]) -> None:
        put = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)"
        self._do(lambda base: base.executemany(put, ((kind, *row) for row in rows)), None)

    def forget(self, kind: str, paths: Iterable[str]) -> None:
        drop = "DELETE FROM facts WHERE kind = ? AND path = ?"
        self._do(lambda base: base.executemany(drop, ((kind, path) for path in paths)), None)

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
    """One kind of fact about the files of a folder: remembered ones, and those found out now."""

    def __init__(self, index: Index | None, kind: str) -> None:
        self._index, self._kind = index, kind
        self._rows = {row[0]: row[1:] for row in index.recall(kind)} if index else {}
        self._new: list[Row] = []

    def get(self, found: Found) -> Any:
        """Return what is known of a file as it is now, or None."""
        row = self._rows.get(found.path)
        if row is None or row[:2] != (found.num_bytes, found.mtime_ns):
            return None
        try:
            return json.loads(row[2])
        except ValueError:
            return None

    def put(self, found: Found, value: Any) -> None:
        if self._index:
            self._new.append((found.path, found.num_bytes, found.mtime_ns, json.dumps(value)))
            if len(self._new) >= WRITTEN_AT_ONCE:
                self._write()

    def close(self, there: Collection[str] | None = None) -> None:
        """Write what is new; with `there`, forget the files that are not."""
        self._write()
        if self._index and there is not None and (gone := self._rows.keys() - set(there)):
            self._index.forget(self._kind, gone)

    def _write(self) -> None:
        if self._index and self._new:
            self._index.note(self._kind, self._new)
        self._new = []
