"""One cell in this process: a run as it always is, on weights made by chance, measured phase by phase."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import families, hardware, memory, trace, workspace
from ..events import Event, PhaseBegan
from ..hardware import Machine
from ..plan import Phase
from ..planner import Draft
from ..training.control import Control
from ..training.looking import requests
from ..training.run import accelerator_of
from ..training.setup import Training, move_to, prepare
from ..training.shortage import ran_out
from ..workspace import Workspace
from . import gauges, models
from .cells import Cell
from .gauges import Gauge
from .steps import Steps, held

MEASURED: tuple[Phase, ...] = ("cache", "train", "sample")
"""Exporting holds what sampling holds, or less."""


@dataclass
class Measured:
    """Bytes by phase: `allocated` for tensors, `reserved` by torch for them. `weights` and `optimizer` are
    those tensors after the last step, `context` what CUDA holds beside torch (0 where it is not known).
    `ended` is empty or the phase in which the memory ran out.
    """

    allocated: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    optimizer: int = 0
    context: int = 0
    ended: str = ""


def look() -> dict[str, Any]:
    """Return what this machine is, for those that stay off the card themselves."""
    return asdict(hardware.detect()) | {"cuda": torch.version.cuda or ""}


def measure(cell: Cell, home: Path, machine: Machine) -> dict[str, Any]:
    """Train a few steps of a cell and draw a picture; returns a Measured as plain values."""
    measured, free = Measured(), _free_bytes(machine)
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
    if machine.device == "cuda":
        gone = free - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
        measured.context = max(0, gone)
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
    measured.optimizer = held(steps.state(), plan.device)
    measured.weights = held(steps.tensors(), plan.device) - measured.optimizer
    move_to(training.parts, plan, "sample")
    gauge.begin()
    training.sampler.draw(requests(plan)[0])
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


def _free_bytes(machine: Machine) -> int:
    """What is free on the card before this process uses it, as the driver says; 0 without a card."""
    card = hardware.quick().card if machine.device == "cuda" else None
    return card.free_bytes if card else 0
