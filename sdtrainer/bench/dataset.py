"""How long a folder of many images takes: read the first time, read again, and planned for.

Memory grows by the list of images that the app works with, about 400 bytes each for path, caption, size and
date, and hardly while it is read: files are held packed, facts about them some hundreds at a time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .. import config as configs
from .. import families, hardware, planner
from ..presets import preset
from ..section import override
from ..workspace import Workspace

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measured:
    """Seconds of the clock and of the processor. The process held `peak_bytes` at most while it read,
    `planned_bytes` while it planned as well, and `start_bytes` before it began.
    """

    num_images: int
    scan: tuple[float, float]
    rescan: tuple[float, float]
    plan: tuple[float, float]
    start_bytes: int
    peak_bytes: int
    planned_bytes: int

    @property
    def ratio(self) -> float:
        """How many times as quick the second reading is."""
        return self.scan[0] / self.rescan[0]


def measure(folder: Path, workspace: Workspace) -> Measured:
    """Read `folder` twice in this process, and plan a run of the starter model with it."""
    values = override(preset("starter").values, {"data.folder": str(folder), "data.validation_folder": ""})
    config, machine = configs.build(values), hardware.quick()
    facts, start = families.recognise(config.base), _peak_bytes()
    scan, num_images = _timed(lambda: len(planner.look(config, workspace).census.samples))
    rescan, found = _timed(lambda: planner.look(config, workspace))
    peak = _peak_bytes()
    plan, _ = _timed(lambda: planner.decide(config, facts, found, workspace, machine))
    return Measured(num_images, scan, rescan, plan, start, peak, _peak_bytes())


def as_text(measured: Measured) -> str:
    rows = (("first reading", measured.scan), ("second reading", measured.rescan), ("plan", measured.plan))
    lines = [f"{measured.num_images:,} images"]
    lines += [f"{name:15} {clock:7.2f} s  ({busy:.2f} s of a core)" for name, (clock, busy) in rows]
    start = measured.start_bytes
    for name, peak in (("reading", measured.peak_bytes), ("with the plan", measured.planned_bytes)):
        each = (peak - start) / measured.num_images
        lines += [
            f"{name:15} {peak / 2**20:7.0f} MB ({start / 2**20:.0f} MB before; {each:.0f} bytes an image)"
        ]
    return "\n".join([*lines, f"ratio           {measured.ratio:7.1f}"])


def _timed(work: Callable[[], Result]) -> tuple[tuple[float, float], Result]:
    clock, busy = time.perf_counter(), time.process_time()
    found = work()
    return (time.perf_counter() - clock, time.process_time() - busy), found


def _peak_bytes() -> int:
    """The most main memory that this process has held so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
