"""What benchmarks and measurements ask of processes of their own, and what those answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..child import LONG, TIMEOUT, Failed, Hand, Stopped, ask
from ..child import serve as serving
from ..hardware import Machine
from ..plan import Plan
from ..workspace import Workspace
from .cells import Cell
from .measured import Measured

__all__ = ["LONG", "TIMEOUT", "Failed", "Hand", "Stopped"]

_CELL, _MACHINE, _PLAN = TypeAdapter(Cell), TypeAdapter(Machine), TypeAdapter(Plan)
_MEASURED = TypeAdapter(Measured)


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
    """Be such a process."""
    serving(answer)


def _asked(question: dict[str, Any], timeout: float, hand: Hand | None = None) -> dict[str, Any]:
    return ask(["bench", "cell"], question, hand, timeout)
