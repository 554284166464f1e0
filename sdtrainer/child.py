"""Work in a process of its own, which gives all its memory back: asked and answered in lines of JSON.

A process ends with its input: when the one that asked is gone, nothing goes on.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
TIMEOUT = 300.0
"""Seconds that a process may take."""
LONG = 3600.0
"""Seconds that a person may wait who can stop it."""
HEAR_SECONDS, CLEAR_SECONDS = 3.0, 60.0
"""So long a process may take to hear that it shall end, and then to clear away what is half done."""
_SAID, _ANSWER = "said", "answer"


class Failed(Exception):
    """A process ended without an answer; the text says how."""


class Stopped(Failed):
    """A process was ended by `Hand.stop`."""


class Hand:
    """A hold on the process that works now: `hear` gets what it says of its progress, `stop` ends it, once it
    has cleared away what is half done.
    """

    def __init__(self, hear: Callable[[str], None] = lambda words: None) -> None:
        self.hear = hear
        self.is_stopped = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def take(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._process = process
            if self.is_stopped:
                process.kill()

    def stop(self) -> None:
        """End the process, and every later one at its start. From any thread."""
        with self._lock:
            self.is_stopped = True
            if self._process is not None:
                _ask_to_end(self._process)


def ask(
    words: Sequence[str],
    question: Mapping[str, Any],
    hand: Hand | None = None,
    timeout: float | None = TIMEOUT,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Ask a new process, `python -m sdtrainer WORDS`, and return its answer.

    Raises:
        Failed: it ended without an answer, or took more seconds than `timeout`.
        Stopped: the hand stopped it.
    """
    hand, found, late = hand or Hand(), {}, threading.Event()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "sdtrainer", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8",
            cwd=PROJECT, env=os.environ | {"PYTHONIOENCODING": "utf-8"} | (environment or {}),
        )  # fmt: skip
        hand.take(process)
        timer = threading.Timer(timeout or threading.TIMEOUT_MAX, lambda: (late.set(), process.kill()))
        timer.daemon = True
        timer.start()
        with process:
            found = _heard(process, question, hand)
            code = process.poll()
        timer.cancel()
        if _ANSWER in found:
            return found[_ANSWER]
        if hand.is_stopped:
            raise Stopped("was stopped")
        if late.is_set():
            raise Failed(f"took more than {timeout:.0f} s")
        said.seek(0)
        last = said.read().strip().splitlines() or [f"ended with code {code}"]
        raise Failed(last[-1][:200])


def serve(answer: Callable[[dict[str, Any], Callable[[str], None]], Any]) -> None:
    """Be such a process: read a question from standard input, and write what is said and the answer."""
    question, out = json.loads(sys.stdin.readline()), os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    _end_with_input()

    def write(what: str, value: Any) -> None:
        line = memoryview((json.dumps({what: value}) + "\n").encode())
        while line:  # a pipe takes what fits
            line = line[os.write(out, line) :]

    write(_ANSWER, answer(question, lambda words: write(_SAID, words)))


def _ask_to_end(process: subprocess.Popen[str]) -> None:
    """Let it end with its input, and kill it if it does not."""
    assert process.stdin
    with contextlib.suppress(OSError):  # it is gone already
        process.stdin.close()
    timer = threading.Timer(CLEAR_SECONDS, process.kill)
    timer.daemon = True
    timer.start()


def _end_with_input() -> None:
    """Interrupt the work when the input ends, and end in any case if that is not heard: then it is deep in
    foreign code.
    """
    is_heard = threading.Event()

    def interrupt(*_: object) -> None:
        is_heard.set()
        raise KeyboardInterrupt

    def watch() -> None:
        while os.read(0, 1024):
            pass
        _thread.interrupt_main()
        if is_heard.wait(HEAR_SECONDS):
            time.sleep(CLEAR_SECONDS)
        os._exit(1)

    signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=watch, daemon=True).start()


def _heard(process: subprocess.Popen[str], question: Mapping[str, Any], hand: Hand) -> dict[str, Any]:
    """Ask, and hear what is said until the answer is there or the process has ended; its input stays open
    for as long.
    """
    assert process.stdin and process.stdout
    try:
        print(json.dumps(question), file=process.stdin, flush=True)
    except (OSError, ValueError):  # it is gone already, or was asked to end
        return {}
    for line in process.stdout:
        told = json.loads(line)
        if _ANSWER in told:
            return told
        hand.hear(told[_SAID])
    return {}
