"""Work in a process of its own, which gives all its memory back: asked and answered in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from .. import workspace
from ..hardware import Machine
from ..workspace import Workspace
from .cells import Cell

_CELL, _MACHINE = TypeAdapter(Cell), TypeAdapter(Machine)
TIMEOUT = 300.0
"""Seconds that a process may take."""


class Failed(Exception):
    """A process ended without an answer; the text says how."""


def look() -> dict[str, Any]:
    """Return what this machine is: the fields of a Machine, and the version of CUDA."""
    return _asked({"work": "look"}, TIMEOUT)


def measure(cell: Cell, machine: Machine, timeout: float = TIMEOUT) -> dict[str, Any]:
    return _asked({"work": "measure", "cell": asdict(cell), "machine": asdict(machine)}, timeout)


def predict(cell: Cell, machine: Machine, timeout: float = TIMEOUT) -> dict[str, Any]:
    return _asked({"work": "predict", "cell": asdict(cell), "machine": asdict(machine)}, timeout)


def setting(values: dict[str, Any], images: int, home: Path, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Train with these settings for so many images, and say what it took."""
    return _asked({"work": "setting", "values": values, "images": images, "home": str(home)}, timeout)


def machine_of(seen: dict[str, Any]) -> Machine:
    """Return the machine as it is written in an answer or a file."""
    return _MACHINE.validate_python({k: v for k, v in seen.items() if k in Machine.__annotations__})


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Do in this process what was asked of it."""
    from . import cell, setting

    if question["work"] == "look":
        return cell.look()
    if question["work"] == "setting":
        return setting.measure(question["values"], question["images"], Workspace(Path(question["home"])))
    work = {"measure": cell.measure, "predict": cell.predict}[question["work"]]
    with tempfile.TemporaryDirectory() as home:
        return work(_CELL.validate_python(question["cell"]), Path(home), machine_of(question["machine"]))


def _asked(question: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Ask a new process. Raises Failed."""
    words = [sys.executable, "-m", "sdtrainer", "bench", "cell"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            words, input=json.dumps(question), capture_output=True, text=True, encoding="utf-8",
            timeout=timeout, cwd=workspace.PROJECT, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed(f"took more than {timeout:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        raise Failed(said[-1][:200])
    return json.loads(done.stdout.splitlines()[-1])
