"""One cell in this process: a run as it always is, on weights made by chance, measured phase by phase."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import families, hardware, memory, trace, workspace
from ..events import Event, PhaseBegan
from ..hardware import Machine
from ..plan import Phase
from ..planner import Draft
from ..training.control import Control
from ..training.looking import drawn, requests
from ..training.run import accelerator_of
from ..training.setup import Training, prepare
from ..training.shortage import ran_out
from ..workspace import Workspace
from . import gauges, models
from .cells import Cell
from .gauges import Gauge, held
from .measured import Measured
from .steps import Steps

MEASURED: tuple[Phase, ...] = ("cache", "train", "sample")
"""Exporting holds what sampling holds, or less."""


def look() -> dict[str, Any]:
    """Return what this machine is, for those that stay off the card themselves."""
    return asdict(hardware.detect()) | {"cuda": torch.version.cuda or ""}


def measure(cell: Cell, home: Path, machine: Machine) -> dict[str, Any]:
    """Train a few steps of a cell and draw a picture; returns a Measured as plain values."""
    measured, free = Measured(), gauges.free_bytes(machine.device)
    draft = cell.draft(home, machine)
    try:
        with gauges.of(machine.device) as gauge:
            for phase in _phases(draft, home, gauge, measured):
                peak = gauge.peak()
                measured.allocated[phase], measured.reserved[phase] = peak.allocated, peak.reserved
    except RuntimeError as error:
        if not ran_out(error):
            raise
        measured.ended = MEASURED[len(measured.allocated)]
    measured.context = gauges.context_bytes(machine.device, free)
    return asdict(measured)


def predict(cell: Cell, home: Path, machine: Machine) -> dict[str, Any]:
    """Return the ledger of a cell as plain values, its passes traced where no table has them."""
    plan = cell.draft(home, machine).plan
    for _ in trace.learn(plan, memory.structure_of(plan)):
        pass
    ledger = memory.estimate(plan)
    return {"rows": [asdict(row) for row in ledger.rows], "unknown": list(ledger.unknown)}


def _phases(draft: Draft, home: Path, gauge: Gauge, measured: Measured) -> Iterator[Phase]:
    """Go through the run; yields each phase when it is done."""
    folder = workspace.create_run(home / "runs", draft.plan.config)
    plan = draft.plan
    family = models.with_random_weights(families.family_of(plan.facts), plan.device)
    training = yield from _prepared(
        prepare(folder, draft, Workspace(home), accelerator_of(plan, folder), family), gauge
    )
    gauge.begin()
    steps = Steps(training, Control(), 0)
    steps.take()
    yield "train"
    measured.optimizer, measured.weights = (held(t, plan.device) for t in (steps.state(), steps.weights()))
    gauge.begin()
    drawn(training, requests(plan)[0])
    yield "sample"


def _prepared(happenings: Generator[Event, None, Training], gauge: Gauge) -> Generator[Phase, None, Training]:
    """Prepare a run; yields when the caches are filled."""
    while True:
        try:
            event = next(happenings)
        except StopIteration as end:
            return end.value
        if isinstance(event, PhaseBegan) and event.phase == "cache":
            gauge.begin()
        elif isinstance(event, PhaseBegan) and event.phase == "train":
            yield "cache"
