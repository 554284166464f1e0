"""Finding out what a step holds, while the page is open: a child process of low priority, one at a time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from .. import activations, workspace
from .. import config as configs
from ..config import Config

PATIENCE_SECONDS = 3.0
"""How long settings are looked at before the work is begun."""
LAST_LINES = 20


@dataclass(frozen=True)
class Task:
    """Passes, by the keys of their tables, that these settings make on a card of `gib` GiB."""

    keys: frozenset[str]
    config: Config
    gib: float


@dataclass(frozen=True)
class Progress:
    """`done` of `total` passes are known; `has_failed`: the rest cannot be found out."""

    done: int
    total: int
    has_failed: bool


class Tracer:
    """`news` is called at every step forward. A pass that failed is not tried again."""

    def __init__(self, news: Callable[[], None], log: Callable[[str], None]) -> None:
        self._news, self._log = news, log
        self._lock = threading.Condition()
        self._wanted: Task | None = None
        self._failed: frozenset[str] = frozenset()
        self._child: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def want(self, task: Task | None) -> Progress | None:
        """Say what is looked at now; returns how far it is known. None: nothing to find out."""
        with self._lock:
            if not task or not task.keys <= _keys(self._wanted):  # fewer are what is left of the same
                self._wanted = task
                self._lock.notify_all()
            task = self._wanted
            if task and self._thread is None and not self._is_closing:
                self._thread = threading.Thread(target=self._work, name="tracer", daemon=True)
                self._thread.start()
            failed = self._failed
        if task is None:
            return None
        return Progress(
            len(task.keys) - len(_left(task)), len(task.keys), has_failed=bool(_left(task) & failed)
        )

    def close(self) -> None:
        """End the child and start no other."""
        with self._lock:
            self._is_closing = True
            self._lock.notify_all()
        if self._thread:
            self._thread.join(10)

    def _work(self) -> None:
        while task := self._next():
            was_cut = self._trace(task)
            with self._lock:
                self._failed |= frozenset() if was_cut else _left(task)
            self._news()

    def _next(self) -> Task | None:
        """Wait for settings that are looked at for a while; None when the app closes."""
        with self._lock:
            while not self._is_closing:
                task = self._wanted
                if task is None or not _left(task) or _left(task) & self._failed:
                    self._lock.wait()
                elif not self._lock.wait_for(lambda t=task: self._is_left(t), PATIENCE_SECONDS):
                    return task
        return None

    def _is_left(self, task: Task) -> bool:
        """Whether other settings are looked at by now, or none."""
        return self._is_closing or _keys(self._wanted) != task.keys

    def _trace(self, task: Task) -> bool:
        """Run the child to its end. Returns whether it was cut short, because other settings are looked at by
        then; what it found stays.
        """
        was_cut = threading.Event()
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run.toml"
            configs.save(task.config, run)
            with self._lock:
                if self._is_closing:
                    return True
                child = self._child = start_child(run, task.gib)
            watch = threading.Thread(target=self._watch, args=(task, child, was_cut), daemon=True)
            watch.start()
            said = self._hear(child)
            code = child.wait()
            with self._lock:
                self._child = None
                self._lock.notify_all()
            watch.join()
        if code and not was_cut.is_set():
            self._log("\n".join(["Finding out what a step holds failed.", *said]))
        return was_cut.is_set()

    def _hear(self, child: subprocess.Popen[str]) -> list[str]:
        """Follow what the child says, a line for every pass; returns the last lines."""
        said: list[str] = []
        assert child.stdout
        for line in child.stdout:
            said = [*said, line.rstrip()][-LAST_LINES:]
            self._news()
        return said

    def _watch(self, task: Task, child: subprocess.Popen[str], was_cut: threading.Event) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._child is not child or self._is_left(task))
            if self._child is child:
                was_cut.set()
                child.kill()


def start_child(run: Path, gib: float) -> subprocess.Popen[str]:
    """Start `trace` for a run file. It sees no card: it needs none, and what is there may be in use."""
    child = subprocess.Popen(
        [sys.executable, "-m", "sdtrainer", "trace", str(run), "--vram", f"{gib:g}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=workspace.PROJECT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""},
    )
    lowest = psutil.BELOW_NORMAL_PRIORITY_CLASS if psutil.WINDOWS else 15
    with contextlib.suppress(psutil.Error):  # it has just ended
        psutil.Process(child.pid).nice(lowest)
    return child


def _keys(task: Task | None) -> frozenset[str]:
    return task.keys if task else frozenset()


def _left(task: Task) -> frozenset[str]:
    return frozenset(key for key in task.keys if activations.look_up(key) is None)
