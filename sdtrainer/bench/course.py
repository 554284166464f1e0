"""The course of a memory bench: each cell measured and estimated in processes of their own, and kept.

What is in the file already is not done again, so that a broken bench goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__, files
from ..hardware import Machine
from . import child
from .cells import Cell

Work = Callable[[Cell, Machine], dict[str, Any]]
Kept = dict[str, Any]
"""{"circumstances": ..., "cells": {name: {"measured", "predicted", "failed"}}}, as in the file."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")


def circumstances(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return when, where and with what it is measured; `seen` is what `child.look` saw."""
    versions = {"sdtrainer": __version__, "Python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in LIBRARIES}
    driver = _driver() if seen["device"] == "cuda" else ""
    return {"date": time.strftime("%Y-%m-%d"), "machine": dict(seen), "driver": driver, "versions": versions}


def read(file: Path) -> Kept:
    """Return what was kept, or nothing."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"cells": {}}


def write(file: Path, kept: Kept) -> None:
    files.write_text(file, json.dumps(kept, indent=1))


def run(cells: Sequence[Cell], kept: Kept, again: bool, measure: Work, predict: Work) -> Iterator[str]:
    """Measure and estimate what is missing in `kept`, and put it there; yields a name whenever one is whole.

    One cell at a time is on the card; estimates are made beside it.
    """
    machine = child.machine_of(kept["circumstances"]["machine"])
    found = kept["cells"]
    todo = [cell for cell in cells if again or not is_whole(found.get(cell.name, {}))]
    workers = max(1, (os.cpu_count() or 1) // 4)
    with ThreadPoolExecutor(workers) as pool:
        estimates = {cell.name: pool.submit(_answer, "predicted", predict, cell, machine) for cell in todo}
        try:
            for cell in todo:
                measured = _answer("measured", measure, cell, machine)
                found[cell.name] = _joined(measured, estimates[cell.name].result())
                yield cell.name
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def estimate(cells: Sequence[Cell], kept: Kept, predict: Work) -> Iterator[str]:
    """Estimate anew what was measured before, for that card."""
    machine = child.machine_of(kept["circumstances"]["machine"])
    for cell in cells:
        if cell.name in kept["cells"]:
            kept["cells"][cell.name] |= _answer("predicted", predict, cell, machine)
            yield cell.name


def is_whole(one: Mapping[str, Any]) -> bool:
    return bool(one.get("measured") and one.get("predicted"))


def _answer(what: str, work: Work, cell: Cell, machine: Machine) -> dict[str, Any]:
    try:
        return {what: work(cell, machine), "failed": ""}
    except child.Failed as error:
        return {what: None, "failed": f"{what}: {error}"}


def _joined(measured: dict[str, Any], predicted: dict[str, Any]) -> dict[str, Any]:
    return predicted | measured | {"failed": measured["failed"] or predicted["failed"]}


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"
