"""The base model before anything learns: loaded as the plan says, moved where it is needed, ready to draw."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..events import Event, PhaseBegan, Said
from ..families import remote
from ..plan import Phase, Plan
from ..sample import Sampler
from ..seams import DENOISER, Family, Parts
from . import asking, waiting
from .quantized import quantise

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """`plan` knows what the model predicts, even if only the loaded one could tell."""

    plan: Plan
    parts: Parts
    sampler: Sampler
    autocast: torch.dtype | None


def load(plan: Plan, family: Family) -> Generator[Event, None, Base]:
    """Fetch what is missing, and load. Yields events and returns the Base."""
    yield from remote.fetch(plan.facts)
    yield PhaseBegan("load", f"Loading {plan.facts.title}")
    if plan.facts.note:
        yield Said("info", plan.facts.note)
    parts = loaded(plan, family)
    waiting.arm(parts.denoiser, plan.offloaded, plan.device)
    autocast = None if plan.precision == "fp32" else DTYPES[plan.precision]
    if plan.facts.is_undecided:
        plan, said = asking.settled(plan, family, parts, autocast, partial(bring_only, parts, plan))
        yield from said
    if plan.config.noise.zero_terminal_snr:
        parts.schedule = parts.schedule.rescaled()
    parts.schedule = parts.schedule.to(plan.device)
    return Base(plan, parts, Sampler(family, parts, plan.device, autocast), autocast)


def loaded(plan: Plan, family: Family) -> Parts:
    """Return the model in main memory, in the formats of the plan."""
    dtypes = {part: DTYPES[plan.place(part, "train").precision] for part in plan.facts.parts}
    parts = family.load(plan.facts, plan.facts.parts, dtypes)
    parts.facts = plan.facts
    for part, module in parts.modules.items():
        quantise(module, plan.kept_as(part), plan.device)
    return parts


def move_to(parts: Parts, plan: Plan, phase: Phase) -> None:
    """Put every part where the plan wants it in this phase."""
    for part in parts.modules:
        _move(parts, plan, part, plan.place(part, phase).device)


def bring_only(parts: Parts, plan: Plan, names: Sequence[str]) -> None:
    """Have these parts on the card and no other: the others leave it first."""
    for part in sorted(parts.modules, key=lambda part: part in names):
        _move(parts, plan, part, plan.device if part in names else "cpu")


def _move(parts: Parts, plan: Plan, part: str, device: str) -> None:
    if part == DENOISER and plan.offloaded:
        waiting.move(parts.denoiser, plan.offloaded, device)
    else:
        parts.modules[part].to(device)
