"""Measures an exported file from outside, as whoever downloads it would use it: put on the base, or on
another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .. import files, memory, methods, planner, verdict
from ..data.census import Sample
from ..data.items import fixed_batches, plan_items
from ..data.loading import Loader
from ..data.scan import scan
from ..data.section import DataSection
from ..events import Stepped, read
from ..families import BaseSection
from ..plan import Plan
from ..result import sampler
from ..sample import Sampler
from ..seams import Batch
from ..starter.prompts import ROBOT_PROMPTS, WORLD_PROMPTS, Prompt
from ..training.step import TrainStep
from ..training.validate import fixed_loss
from ..workspace import RunFolder, Workspace
from .numbers import Cost, Losses, Named

BATCH = 8
SHOWN_ROBOTS, SHOWN_OTHERS, SHOWN_CARRIED = 3, 4, 2
"""How many pictures of each kind are kept for the sheet."""


def cost(folder: RunFolder, file: Path, peak_bytes: int) -> Cost:
    """Return what a finished run cost."""
    steps = [event for event, _ in read(folder.events_file) if isinstance(event, Stepped)]
    trained = memory.estimate(_plan(folder)).trained
    return Cost(trained, files.size_of(file), peak_bytes, steps[-1].seconds_per_step)


def losses(folder: RunFolder, file: Path | None, others: Path, home: Workspace) -> Losses:
    """Return the losses with a run's file on its base, or of the base alone, on pictures never trained on."""
    plan = _plan(folder)
    drawing = sampler(plan.config.base, file)
    held_out = planner.look(plan.config, home)[1]
    assert held_out is not None
    concept = _batches(held_out.samples, plan.config.data, plan, drawing)
    world = _batches(scan(others, DataSection()).samples, DataSection(), plan, drawing)
    step = TrainStep(drawing.family, drawing.parts, plan)
    device = torch.device(drawing.device).type
    with torch.autocast(device, drawing.autocast, enabled=drawing.autocast is not None):
        return Losses(fixed_loss(step, concept), fixed_loss(step, world))


class Eyes:
    """Has the judge name pictures: of the first prompts, in so many sampling steps."""

    def __init__(self, base: str, num_robots: int, num_others: int, steps: int) -> None:
        self.base, self.steps = base, steps
        self.robots, self.others = ROBOT_PROMPTS[:num_robots], WORLD_PROMPTS[:num_others]

    def named(self, file: Path | None, second: Path | None, kept: Path) -> Named:
        """Judge a file on the base and, with `second` on the base before it, on the second base.

        The pictures for the sheet are written into the folder `kept`.
        """
        drawing = sampler(BaseSection(path=self.base), file)
        robots, others = self._look(self.robots, drawing), self._look(self.others, drawing)
        carried = self._look(self.robots, self._second(file, second)) if second else None
        shown = [*robots.images[:SHOWN_ROBOTS], *others.images[:SHOWN_OTHERS]]
        shown += carried.images[:SHOWN_CARRIED] if carried else []
        for number, image in enumerate(shown):
            files.write(kept / f"{number:02d}.png", lambda part, image=image: image.save(part, format="PNG"))
        return Named(robots.part, others.part, carried.part if carried else None)

    def shown_prompts(self) -> tuple[str, ...]:
        """Return what the pictures for the sheet show, in order."""
        robots = [prompt.text for prompt in self.robots]
        carried = [f"{text} (second base)" for text in robots[:SHOWN_CARRIED]]
        others = [prompt.text for prompt in self.others[:SHOWN_OTHERS]]
        return (*robots[:SHOWN_ROBOTS], *others, *carried)

    def _look(self, prompts: Sequence[Prompt], drawing: Sampler) -> verdict.Seen:
        return verdict.look(prompts, drawing, self.steps)

    def _second(self, file: Path | None, second: Path) -> Sampler:
        drawing = sampler(BaseSection(path=self.base), second)
        if file is not None:
            methods.recognise(file).put_on(drawing.parts, file, 1.0)
        return Sampler(drawing.family, drawing.parts, drawing.device, drawing.autocast)


def _plan(folder: RunFolder) -> Plan:
    draft = planner.load(folder)
    assert draft is not None
    return draft.plan


def _batches(samples: Sequence[Sample], section: DataSection, plan: Plan, drawing: Sampler) -> list[Batch]:
    """The pictures in fixed order, from pixels, with tokens as this model reads the captions."""
    items = plan_items(samples, section, plan.resolutions)
    loader = Loader(items, tokenize=lambda texts: drawing.family.tokenize(drawing.parts, texts, plan.chunks))
    return [loader.batch(draws) for draws in fixed_batches(items, BATCH)]
