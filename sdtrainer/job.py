"""Jobs: runs driven in child processes for the page, one at a time with a queue behind.

A child trains and writes the run's event log; whoever wants to know follows that file, so a page, a second
page and a later one see the same. Words go to the child's standard input. A child that dies takes nothing
with it: its memory comes back whole, and the log gets an honest last sentence. One child waits warm, with the
heavy imports done.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import events, workspace
from .config import Config
from .events import Event, Failed, Finished, Paused, Resumed, RunStarted, Suspended
from .section import UserError
from .workspace import RunFolder, Workspace

Status = Literal["waiting", "running", "paused", "finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True)
class JobsState:
    """Names of runs."""

    current: str | None
    waiting: tuple[str, ...]


@dataclass(frozen=True)
class _Order:
    folder: RunFolder
    more_steps: int = 0


class Jobs:
    """The queue. All methods may be called from any thread."""

    def __init__(self, home: Workspace, make_way: Callable[[], None] = lambda: None) -> None:
        """`make_way` is called before each run: whatever else is on the card has to end."""
        self._home, self._make_way = home, make_way
        self._lock = threading.Condition()
        self._queue: deque[_Order] = deque()
        self._current: _Order | None = None
        self._before: Event | None = None
        self._child: subprocess.Popen[str] | None = None
        self._warm: subprocess.Popen[str] | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def warm_up(self) -> None:
        """Start the waiting child, which does the heavy imports."""
        with self._lock:
            if self._warm is None and not self._is_closing:
                self._warm = self._spawn()

    def start(self, config: Config) -> RunFolder:
        """Make a run folder and queue it."""
        folder = workspace.create_run(self._home.runs, config)
        self._put(_Order(folder))
        return folder

    def resume(self, folder: RunFolder, more_steps: int = 0) -> None:
        """Queue a run again, from its last checkpoint. Raises UserError if it is under way."""
        folder.config()
        with self._lock:
            if folder.name in self._names():
                raise UserError(
                    f"Run '{folder.name}' is already under way.", "Wait for it, or stop it first."
                )
        self._put(_Order(folder, more_steps))

    def cancel(self, name: str) -> None:
        """Take a waiting run out of the queue; its folder stays."""
        with self._lock:
            self._queue = deque(order for order in self._queue if order.folder.name != name)

    def tell(self, name: str, word: str) -> None:
        """Pass a word (training.control.WORDS) to the running run; to any other it is nothing."""
        with self._lock:
            if self._current is None or self._current.folder.name != name or self._child is None:
                return
            assert self._child.stdin is not None
            with contextlib.suppress(OSError):  # the child is just ending
                self._child.stdin.write(word + "\n")
                self._child.stdin.flush()

    def state(self) -> JobsState:
        with self._lock:
            current = self._current.folder.name if self._current else None
            return JobsState(current, tuple(order.folder.name for order in self._queue))

    def status(self, folder: RunFolder, word: Event | None) -> Status:
        """Where a run stands, from the queue and the last word of its log (`last_word`)."""
        state = self.state()
        if folder.name in state.waiting:
            return "waiting"
        is_over = isinstance(word, _ENDINGS) and word != self._before  # its child needs a moment to end
        return status_of(folder, word, is_current=folder.name == state.current and not is_over)

    def close(self) -> None:
        """Ask the running run to save itself, and end all children."""
        with self._lock:
            self._is_closing = True
            self._queue.clear()
            children = [child for child in (self._child, self._warm) if child is not None]
            for child in children:
                assert child.stdin is not None
                with contextlib.suppress(OSError):
                    child.stdin.close()
            self._lock.notify_all()
        for child in children:
            try:
                child.wait(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()

    def _put(self, order: _Order) -> None:
        with self._lock:
            self._queue.append(order)
            self._lock.notify_all()

    def _names(self) -> list[str]:
        orders = [*self._queue, *([self._current] if self._current else [])]
        return [order.folder.name for order in orders]

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._queue or self._is_closing)
                if self._is_closing:
                    return
                order = self._queue.popleft()
                self._before, self._current = last_word(order.folder), order
                child = self._child = self._warm or self._spawn()
                self._warm = None
            self._make_way()
            self._drive(order, child)
            with self._lock:
                self._current = self._child = None
            self.warm_up()

    def _drive(self, order: _Order, child: subprocess.Popen[str]) -> None:
        """Hand the run to the child and wait for its end."""
        with contextlib.suppress(OSError):
            give(child, order.folder, self._home, order.more_steps)
        code = child.wait()
        if not self._is_closing and not isinstance(last_word(order.folder), _ENDINGS):
            events.append(order.folder.events_file, _death(code))

    def _spawn(self) -> subprocess.Popen[str]:
        log = self._home.root / "trainer.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        return start_worker(log)


def start_worker(log: Path, has_own_session: bool = False) -> subprocess.Popen[str]:
    """Start a child that waits for a run; what it says goes to the end of `log`. In a session of its own it
    hears no Ctrl-C and ends with its input.
    """
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "sdtrainer", "worker"],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            text=True,
            cwd=workspace.PROJECT,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            start_new_session=has_own_session,
        )


def give(child: subprocess.Popen[str], folder: RunFolder, home: Workspace, more_steps: int = 0) -> None:
    """Hand a run to a waiting child. Raises OSError if the child is gone."""
    assert child.stdin is not None
    task = {"run": str(folder.path), "workspace": str(home.root), "more_steps": more_steps}
    child.stdin.write(json.dumps(task) + "\n")
    child.stdin.flush()


_ENDINGS = (Finished, Failed, Suspended)


def status_of(folder: RunFolder, word: Event | None, is_current: bool) -> Status:
    """Where a run stands. One that neither ended nor is current was interrupted."""
    if is_current:
        return "paused" if isinstance(word, Paused) else "running"
    if isinstance(word, Finished):
        exists = (folder.path / word.path).exists()
        return ("stopped" if word.stopped else "finished") if exists else "failed"
    return "failed" if isinstance(word, Failed) else "interrupted"


def last_word(folder: RunFolder) -> Event | None:
    """Return the event of a run's log that says where it stands: a pause or an ending that still holds."""
    word = None
    for event, _ in events.read(folder.events_file):
        word = heard(word, event)
    return word


def heard(word: Event | None, event: Event) -> Event | None:
    """Return the last word of a log once `event` has followed."""
    if isinstance(event, RunStarted | Resumed):
        return None
    return event if isinstance(event, (Paused, *_ENDINGS)) else word


def _death(code: int) -> Failed:
    hint = "What was learnt up to the last checkpoint is kept: press Resume. Details are in trainer.log."
    if code in (-9, 137):
        return Failed("The trainer was ended by the system, most likely because memory ran out.", hint)
    return Failed(f"The trainer ended unexpectedly (code {code}).", hint)
