"""bench [--steps N]: the trainer against a bare loop over the same modules and batches, interleaved in one
run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from .. import config as configs
from .. import events
from ..__main__ import parser
from ..presets import preset
from ..section import override
from ..workspace import RunFolder, Workspace, create_run

if TYPE_CHECKING:
    from ..training.loop import Loop
    from ..training.setup import Training

BLOCK = 10
QUIET = {
    "train.steps": "1000000",
    "train.validate_every": "0",
    "sample.prompts": [],
    "checkpoint.every": "0",
    "data.validation_folder": "",
}


def main(argv: Sequence[str]) -> int:
    arguments = parser("bench")
    arguments.add_argument("--steps", type=int, default=200, help="of each of the two")
    arguments.add_argument(
        "--preset", default="starter", help="what to train; the small starter shows overhead best"
    )
    arguments.add_argument("settings", nargs="*", help="path=value, laid over the preset")
    given = arguments.parse_intermixed_args(argv)
    values = configs.with_changes(override(preset(given.preset).values, QUIET), given.settings)
    with tempfile.TemporaryDirectory() as home:
        workspace = Workspace(Path(home))
        ours, bare = measure(
            create_run(workspace.runs, configs.build(values)), workspace, given.steps // BLOCK
        )
    print(f"trainer   {1 / ours:.2f} steps/s\nbare loop {1 / bare:.2f} steps/s\nratio     {bare / ours:.3f}")
    return 0


def measure(folder: RunFolder, workspace: Workspace, blocks: int) -> tuple[float, float]:
    """Return the median seconds per step of trainer and bare loop, taking turns of `BLOCK` steps."""
    from ..training.control import Control
    from ..training.loop import Loop
    from ..training.run import accelerator_of
    from ..training.setup import decide, prepare

    draft = decide(folder, workspace)
    training = _returned(prepare(folder, draft, workspace, accelerator_of(draft.plan, folder)))
    loop, bare = Loop(training, Control(), 0), bare_loop(training)
    happenings = loop.run()
    ours: list[float] = []
    theirs: list[float] = []
    for block in range(blocks + 1):
        seconds, steps = _advance(loop, happenings)
        began = time.perf_counter()
        for _ in range(steps):
            next(bare)
        if block:  # the first block warms up
            ours.append(seconds / steps)
            theirs.append((time.perf_counter() - began) / steps)
    return median(ours), median(theirs)


def bare_loop(training: Training) -> Iterator[None]:
    """Yield after each step of the plainest loop: same modules, same cached tensors, no accelerate, no
    events.
    """
    import torch

    parts, family, plan = training.parts, training.family, training.plan
    parameters = list(training.trained.weights().values())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    batches, number = [training.feed.batch(index) for index in range(plan.micro_batches)], 0
    while True:
        batch, number = batches[number % len(batches)], number + 1
        noised = family.noise(parts, batch.latents.sample(None), torch.default_generator, plan.config.noise)
        error = (family.predict(parts, noised, batch.conditioning) - noised.target).square().mean((1, 2, 3))
        (noised.weight * error).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


def _advance(loop: Loop, happenings: Iterator[events.Event]) -> tuple[float, int]:
    """Run the real loop for at least `BLOCK` steps, events logged as in a run; return seconds and steps."""
    first, began = loop.step, time.perf_counter()
    while loop.step < first + BLOCK:
        events.append(loop.training.folder.events_file, next(happenings))
    return time.perf_counter() - began, loop.step - first


def _returned(work: Generator[events.Event, None, Training]) -> Training:
    """Run a generator to its end and return what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
