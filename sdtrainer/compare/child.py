"""A run in a process of its own, so that its memory is its own: the page's worker, watched from outside."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from .. import events, job
from ..events import Failed, Finished, Stepped
from ..workspace import RunFolder, Workspace

LOOK_EVERY = 0.1
"""Seconds between two looks at the process."""

Tell = Callable[[float], None]


def train(folder: RunFolder, home: Workspace, tell: Tell) -> int:
    """Train a run from wherever it stands, telling which part of it is done; how it ended is in its log.

    Returns the most bytes that it held: of main memory, or of the card's.
    """
    offset = folder.events_file.stat().st_size if folder.events_file.exists() else 0
    peak, on_card = 0, 0
    with _worker(folder.log_file) as child:
        job.give(child, folder, home)
        while child.poll() is None:
            time.sleep(LOOK_EVERY)
            peak = max(peak, _held(child.pid))
            for event, after in events.read(folder.events_file, offset):
                offset = after
                if isinstance(event, Stepped):
                    on_card = max(on_card, event.memory_bytes)
                    tell(event.step / event.total)
    return on_card if _is_on_card() else peak


def ending(folder: RunFolder) -> Finished | Failed:
    """Return how a run ended."""
    told = [event for event, _ in events.read(folder.events_file) if isinstance(event, Finished | Failed)]
    lost = Failed("The run ended without a word.", f"See {folder.log_file}.")
    return told[-1] if told else lost


@contextmanager
def _worker(log: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a worker; if this process is interrupted or ends, it saves a checkpoint and ends too."""
    child = job.start_worker(log, has_own_session=True)
    try:
        yield child
    finally:
        assert child.stdin is not None
        with suppress(OSError):
            child.stdin.close()
        child.wait()


def _held(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0  # it has just ended


def _is_on_card() -> bool:
    import torch

    return torch.cuda.is_available()
