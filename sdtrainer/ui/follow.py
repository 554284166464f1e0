"""Follow the event logs of runs, whoever started them. One view per run, shared by all open pages."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from .. import events
from ..workspace import RunFolder
from .view import RunView, reduce


@dataclass
class _Followed:
    identity: tuple[int, int] = (0, 0)
    offset: int = 0
    view: RunView = field(default_factory=RunView)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Followers:
    """Views of runs by name, each read on from where it was left."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}
        self._lock = threading.Lock()

    def view(self, run: RunFolder) -> RunView:
        """Return what the run's log says by now. The view is shared: read it, do not change it."""
        with self._lock:
            followed = self._followed.setdefault(run.name, _Followed())
        with followed.lock:
            self._catch_up(followed, run)
        return followed.view

    def _catch_up(self, followed: _Followed, run: RunFolder) -> None:
        if not run.events_file.exists():
            return
        stat = run.events_file.stat()
        identity = (stat.st_dev, stat.st_ino)
        if identity != followed.identity or stat.st_size < followed.offset:  # another run took the name
            followed.identity, followed.offset, followed.view = identity, 0, RunView()
        if stat.st_size > followed.offset:
            for event, offset in events.read(run.events_file, followed.offset):
                reduce(followed.view, event)
                followed.offset = offset
