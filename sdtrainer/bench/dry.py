"""A dry run in this process: a plan's own steps on its base model, with pictures of one colour. Nothing of it
is kept but what it held.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import memory, trace, workspace
from ..data.census import Census, Sample
from ..data.items import plan_items
from ..events import PhaseBegan
from ..methods import method_of
from ..plan import Plan
from ..planner import Draft
from ..training.control import Control
from ..training.looking import drawn, requests
from ..training.run import accelerator_of
from ..training.setup import Training, prepare
from ..training.shortage import ran_out
from ..workspace import Workspace
from . import cells, gauges
from .gauges import held
from .measured import Measured, largest_bucket
from .steps import Steps

DRAWING_STEPS = 2
"""More take longer and hold no more."""
Say = Callable[[str], None]


def measure(plan: Plan, say: Say) -> Measured:
    """Load the base model, take a training step at the largest pictures and draw one, where the plan draws.

    That the memory runs out is a result like any other.
    """
    found, free = Measured(), gauges.free_bytes(plan.device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _go_through(plan, Path(folder), found, say)
        except RuntimeError as error:
            if not ran_out(error):
                raise
    found.context = gauges.context_bytes(plan.device, free)
    return found


def learn(plan: Plan, say: Say) -> None:
    """Find out what the plan's passes hold, where no table has it: what is measured is held beside it."""
    say("Finding out what was to be expected")
    for _ in trace.learn(plan, memory.structure_of(plan)):
        pass


def draft(plan: Plan, folder: Path) -> Draft:
    """Return the plan with one batch of pictures of its largest bucket, drawn into `folder`, for its images.

    Class images would be further pictures of the same sizes.
    """
    size, trigger = largest_bucket(plan), plan.config.data.trigger
    cells.draw(folder, plan.batch_size, size)
    caption = " ".join([trigger, *method_of(plan.config.method.kind).words(plan.config.method), "a picture"])
    samples = tuple(
        Sample(file.name, folder, *size, caption, ".txt", "", 1, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.glob("*.png"))
    )
    run = plan.config.run.model_copy(update={"tracker": "none"})
    sides = [side for side in plan.resolutions if _bucket(samples[0], plan, side) == size]
    dry = replace(
        plan,
        config=plan.config.model_copy(update={"run": run}),
        resolutions=tuple(sides[:1]),
        buckets={"{} x {}".format(*size): len(samples)},
        num_images=len(samples),
        num_validation=0,
        num_class_images=0,
        skipped=(),
    )
    return Draft(plan.facts, Census(folder, samples, (), ""), None, None, dry)


def _bucket(sample: Sample, plan: Plan, side: int) -> tuple[int, int]:
    return plan_items([sample], plan.config.data, (side,))[0].bucket


def _go_through(plan: Plan, home: Path, found: Measured, say: Say) -> None:
    """Fill `found`; its `ended` is the phase under way, and empty at the end."""
    found.ended = "cache"
    training = _prepared(plan, home, say)
    found.ended = "train"
    say("Taking a training step")
    steps = Steps(training, Control(), 0)
    found.weights = held(steps.weights(), plan.device)
    steps.take(1)  # the optimizer's state is made; from here on a step holds the most
    found.optimizer = held(steps.state(), plan.device)
    _put(found, "train", gauges.peak_of(partial(steps.losses, 1), steps.tensors(), plan.device))
    if plan.config.sample.prompts:
        found.ended = "sample"
        say("Drawing a picture")
        _put(found, "sample", gauges.peak_of(partial(_draw, training, plan), steps.tensors(), plan.device))
    found.ended = ""


def _put(found: Measured, phase: str, peak: gauges.Peak) -> None:
    found.allocated[phase], found.reserved[phase] = peak.allocated, peak.reserved


def _prepared(plan: Plan, home: Path, say: Say) -> Training:
    """Prepare a run as always, in a folder that will be gone."""
    made = draft(plan, home / "images")
    folder = workspace.create_run(home / "runs", made.plan.config)
    work = prepare(folder, made, Workspace(home), accelerator_of(made.plan, folder))
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value
        if isinstance(event, PhaseBegan):
            say(event.what)


def _draw(training: Training, plan: Plan) -> None:
    """Draw as the run would, of its own size, the first prompt in a few steps."""
    request = dataclasses.replace(requests(plan)[0], steps=DRAWING_STEPS)
    drawn(training, request)
