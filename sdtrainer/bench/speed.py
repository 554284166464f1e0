"""Speed: the trainer against a bare loop over the same modules and batches, interleaved in one run."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from statistics import median
from typing import TYPE_CHECKING

from .. import events
from ..workspace import RunFolder, Workspace

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
"""What keeps a run at its steps."""


def measure(folder: RunFolder, workspace: Workspace, blocks: int) -> tuple[float, float]:
    """Return the median seconds per step of trainer and bare loop, taking turns of `BLOCK` steps."""
    from ..training.control import Control
    from ..training.loop import Loop
    from ..training.run import accelerator_of
    from ..training.setup import decide, prepare

    draft = decide(folder, workspace)
    training = returned(prepare(folder, draft, workspace, accelerator_of(draft.plan, folder)))
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


def returned(work: Generator[events.Event, None, Training]) -> Training:
    """Run a generator to its end and return what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
