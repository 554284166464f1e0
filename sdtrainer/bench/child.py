"""Work in a process of its own, which gives all its memory back: asked and answered in lines of JSON.

A process ends with its input: when the one that asked is gone, nothing goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from .. import workspace
from ..hardware import Machine
from ..plan import Plan
from ..workspace import Workspace
from .cells import Cell
from .measured import Measured

_CELL, _MACHINE, _PLAN = TypeAdapter(Cell), TypeAdapter(Machine), TypeAdapter(Plan)
_MEASURED = TypeAdapter(Measured)
TIMEOUT = 300.0
"""Seconds that a process may take."""
LONG = 3600.0
"""Seconds that a person may wait who can stop it."""
_SAID, _ANSWER = "said", "answer"


class Failed(Exception):
    """A process ended without an answer; the text says how."""


class Stopped(Failed):
    """A process was ended by `Hand.stop`."""


class Hand:
    """A hold on the process that works now: `hear` gets what it says of its progress, `stop` ends it."""

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
                self._process.kill()


def look() -> dict[str, Any]:
    """Return what this machine is: the fields of a Machine, and the version of CUDA."""
    return _asked({"work": "look"}, TIMEOUT)


def measure(cell: Cell, machine: Machine, timeout: float = TIMEOUT) -> dict[str, Any]:
    return _asked({"work": "measure", "cell": asdict(cell), "machine": asdict(machine)}, timeout)


def predict(cell: Cell, machine: Machine, timeout: float = TIMEOUT) -> dict[str, Any]:
    return _asked({"work": "predict", "cell": asdict(cell), "machine": asdict(machine)}, timeout)


def setting(
    values: dict[str, Any], images: int, home: Path, hand: Hand | None = None, timeout: float = TIMEOUT
) -> dict[str, Any]:
    """Train with these settings for so many images, and say what it took."""
    question = {"work": "setting", "values": values, "images": images, "home": str(home)}
    return _asked(question, timeout, hand)


def dry(plan: Plan, hand: Hand | None = None, timeout: float = LONG) -> Measured:
    """Take a step of a plan and say what it held. Raises Failed; Stopped if the hand stopped it."""
    question = {"work": "dry", "plan": _PLAN.dump_python(plan, mode="json")}
    return _MEASURED.validate_python(_asked(question, timeout, hand))


def machine_of(seen: dict[str, Any]) -> Machine:
    """Return the machine as it is written in an answer or a file."""
    return _MACHINE.validate_python({k: v for k, v in seen.items() if k in Machine.__annotations__})


def answer(question: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Do in this process what was asked of it."""
    from . import cell, dry, setting

    if question["work"] == "look":
        return cell.look()
    if question["work"] == "setting":
        return setting.measure(question["values"], question["images"], Workspace(Path(question["home"])))
    if question["work"] == "dry":
        plan = _PLAN.validate_python(question["plan"])
        found = dry.measure(plan, say)
        dry.learn(plan, say)
        return asdict(found)
    work = {"measure": cell.measure, "predict": cell.predict}[question["work"]]
    with tempfile.TemporaryDirectory() as home:
        return work(_CELL.validate_python(question["cell"]), Path(home), machine_of(question["machine"]))


def serve() -> None:
    """Be such a process: read a question from standard input, and write what is said and the answer."""
    question, out = json.loads(sys.stdin.readline()), os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    threading.Thread(target=_end_with_input, daemon=True).start()

    def write(what: str, value: Any) -> None:
        os.write(out, (json.dumps({what: value}) + "\n").encode())

    write(_ANSWER, answer(question, lambda words: write(_SAID, words)))


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def _asked(question: dict[str, Any], timeout: float, hand: Hand | None = None) -> dict[str, Any]:
    """Ask a new process. Raises Failed."""
    hand, found, late = hand or Hand(), {}, threading.Event()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "sdtrainer", "bench", "cell"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8",
            cwd=workspace.PROJECT, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        hand.take(process)
        timer = threading.Timer(timeout, lambda: (late.set(), process.kill()))
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


def _heard(process: subprocess.Popen[str], question: dict[str, Any], hand: Hand) -> dict[str, Any]:
    """Ask, and hear what is said until the answer is there or the process has ended; its input stays open
    for as long.
    """
    assert process.stdin and process.stdout
    try:
        print(json.dumps(question), file=process.stdin, flush=True)
    except OSError:  # it is gone already
        return {}
    for line in process.stdout:
        told = json.loads(line)
        if _ANSWER in told:
            return told
        hand.hear(told[_SAID])
    return {}
