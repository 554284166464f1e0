"""Memory: what a plan holds, counted on the real modules with the real method attached, without weights.

Exact: weights, gradients, optimizer state, the running average, the exported file. Activations come from
traces of the real passes. What CUDA takes beside is assumed, and was not measured: the sum for a card may be
15 % off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch

from . import activations, anatomy, families, optim
from .activations import Structure
from .anatomy import Block
from .diffusion import Schedule
from .frozen import FrozenAs, Held, measure
from .methods import method_of
from .plan import PHASES, Phase, Placement, Plan
from .seams import BYTES, DENOISER, T5, VAE, Facts, LearningRates, Parts
from .section import Section

What = Literal["weights", "gradients", "optimizer", "average", "activations", "temporary", "overhead"]
CONTEXT_BYTES = 450 * 2**20
"""CUDA's own: context, kernels, and work spaces of cuBLAS and cuDNN. Assumed; 300 to 600 MB are usual."""
SLACK = 0.03
"""The part that torch's allocator holds beyond what is asked of it. Assumed."""


@dataclass(frozen=True)
class Row:
    """`bytes` held on the training device by `part` in `phase`."""

    part: str
    phase: Phase
    what: What
    bytes: int


@dataclass(frozen=True)
class Ledger:
    """`loaded` counts the parameters of each part of the base, `trained` the trainable ones, `blocks` says
    where they are; `exported_bytes` is the size of the file; `waiting_bytes` are layers in main memory. In
    the `unknown` phases a pass was never traced:
    their activations are missing.
    """

    rows: tuple[Row, ...]
    trained: int
    exported_bytes: int
    blocks: tuple[Block, ...]
    unknown: tuple[Phase, ...]
    loaded: dict[str, int]
    waiting_bytes: int = 0

    def held(self, phase: Phase) -> int:
        """The most bytes held at once in a phase."""
        return sum(row.bytes for row in self.rows if row.phase == phase)

    def sums(self, phase: Phase) -> dict[What, int]:
        """The bytes held at once in a phase, by what they are; what there is none of is left out."""
        found = {
            what: sum(row.bytes for row in self.rows if (row.phase, row.what) == (phase, what))
            for what in get_args(What)
        }
        return {what: size for what, size in found.items() if size}

    @property
    def peak_phase(self) -> Phase:
        return max(PHASES, key=self.held)


def estimate(plan: Plan) -> Ledger:
    """Sum the plan's placements. A few milliseconds after the first call for a base model and method."""
    counts = _count(_Subject(plan.facts, plan.config.method))
    rows = []
    for place in plan.placements:
        if place.device == plan.device:
            rows.append(Row(place.part, place.phase, "weights", _weights(counts, place, plan)))
            rows += _passing(counts, place, plan)
    rows += _gradients(counts, plan)
    for part, shapes in counts.trained.items():
        rows += _kept(part, shapes, plan)
    held = activations.estimate(plan, counts.structure)
    rows += [Row(h.part, h.phase, h.what, h.bytes) for h in held]
    readers = set(plan.facts.encoders)
    if plan.device != "cpu":
        rows = _at_work(rows, "cache", [{VAE}, readers])
    if plan.draws_in_turn:
        rows = _at_work(rows, "sample", [{DENOISER}, {VAE}, readers])
    rows += _overhead(rows) if plan.device == "cuda" else []
    exported = counts.exported[plan.config.export.precision] * len(plan.config.export.formats)
    unknown = {need.phase for need in activations.missing(plan, counts.structure)}
    unknown_phases = tuple(phase for phase in PHASES if phase in unknown)
    precision = plan.place(DENOISER, "train").precision
    waiting = counts.held[DENOISER][plan.frozen_as].waiting(plan.offloaded, precision)
    trained = counts.structure.trained
    return Ledger(tuple(rows), trained, exported, counts.blocks, unknown_phases, counts.base, waiting)


def structure_of(plan: Plan) -> Structure:
    """Return what the plan's model and method look like, by which traces are found."""
    return _count(_Subject(plan.facts, plan.config.method)).structure


@dataclass(frozen=True)
class _Counts:
    """`base` is the number of parameters of each part as loaded, `frozen` of those that the method leaves as
    they are; `trained` the shapes of the trained tensors, be they beside the base's or in their place;
    `held` what the base's own denoiser and T5 hold in each kind of storage.
    """

    base: dict[str, int]
    frozen: dict[str, int]
    held: dict[str, dict[FrozenAs, Held]]
    trained: dict[str, tuple[tuple[int, ...], ...]]
    exported: dict[str, int]
    blocks: tuple[Block, ...]
    structure: Structure


class _Subject:
    """A base model and a method's settings: what a count depends on, and hashable by just that."""

    def __init__(self, facts: Facts, section: Section) -> None:
        self.facts, self.section = facts, section
        self._identity = (facts.family, facts.encoders, repr(facts.config), section.model_dump_json())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Subject) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


@lru_cache(maxsize=32)
def _count(subject: _Subject) -> _Counts:
    facts, section = subject.facts, subject.section
    modules = families.family_of(facts).skeleton(facts)
    parts = Parts(facts, modules, {}, Schedule(torch.empty(0)))
    base = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    whole = anatomy.count(modules)
    for module in modules.values():
        module.requires_grad_(False)
    held = {part: measure(modules[part]) for part in (DENOISER, T5) if part in modules}
    signs = activations.digests(modules)
    method = method_of(section.kind)
    with torch.device("meta"):
        method.attach(parts, section, LearningRates(1.0, 1.0))
    trained = {
        part: tuple(tuple(p.shape) for p in module.parameters() if p.requires_grad)
        for part, module in modules.items()
    }
    frozen = {
        part: sum(p.numel() for p in module.parameters() if not p.requires_grad)
        for part, module in modules.items()
    }
    sizes = {precision: method.exported_bytes(parts, section, precision) for precision in BYTES}
    blocks = anatomy.blocks(whole, anatomy.count(modules, trained_only=True))
    num_trained = sum(_count_of(shapes) for shapes in trained.values())
    attached = activations.digests(modules, "rank" in type(section).model_fields)
    largest = max(math.prod(shape) for shapes in trained.values() for shape in shapes)
    structure = Structure(signs, attached, num_trained, largest)
    return _Counts(base, frozen, held, trained, sizes, blocks, structure)


def _at_work(rows: list[Row], phase: Phase, teams: list[set[str]]) -> list[Row]:
    """Leave out of a phase all that waits elsewhere when the parts are at work that take the most."""
    moved = [row for row in rows if row.phase == phase and row.what in ("weights", "temporary")]
    most = max(teams, key=lambda team: sum(row.bytes for row in moved if row.part in team))
    return [row for row in rows if row not in moved or row.part in most]


def _overhead(rows: list[Row]) -> list[Row]:
    """What CUDA and torch's allocator take in each phase."""
    sums = {phase: sum(row.bytes for row in rows if row.phase == phase) for phase in PHASES}
    return [Row("", phase, "overhead", CONTEXT_BYTES + round(SLACK * held)) for phase, held in sums.items()]


def _weights(counts: _Counts, place: Placement, plan: Plan) -> int:
    """Trained weights have their own format from when the method is attached, after the caches are filled."""
    width = 0 if place.phase == "cache" else BYTES[plan.trained_as]
    trained = width * _count_of(counts.trained[place.part])
    waiting = plan.offloaded if place.part == DENOISER else 0.0
    if plan.kept_as(place.part) != "plain" or waiting or place.part == T5:
        held = counts.held[place.part][plan.kept_as(place.part)]
        here = held.whole.bytes(place.precision) - held.waiting(waiting, place.precision)
        return here + trained
    kept = counts.base if place.phase == "cache" else counts.frozen
    return kept[place.part] * BYTES[place.precision] + trained


def _passing(counts: _Counts, place: Placement, plan: Plan) -> list[Row]:
    """What comes for a moment while denoiser or T5 runs: a unit from main memory, a weight made whole."""
    if place.part not in counts.held or place.phase == "export":
        return []
    waiting = plan.offloaded if place.part == DENOISER else 0.0
    held = counts.held[place.part][plan.kept_as(place.part)]
    size = held.passing(waiting, place.precision, plan.precision)
    return [Row(place.part, place.phase, "temporary", size)] if size else []


def _gradients(counts: _Counts, plan: Plan) -> list[Row]:
    """Those of a step: all of them, or with fused backward the largest, whichever part it is of."""
    held = {part: _count_of(shapes) for part, shapes in counts.trained.items() if shapes}
    if plan.fused_backward:
        sizes = {part: max(map(math.prod, counts.trained[part])) for part in held}
        largest = max(sizes, key=lambda part: sizes[part])
        held = {largest: sizes[largest]}
    return [Row(part, "train", "gradients", BYTES[plan.trained_as] * n) for part, n in held.items()]


def _kept(part: str, shapes: tuple[tuple[int, ...], ...], plan: Plan) -> list[Row]:
    """What stays from the first step on, in fp32 whatever the weights are."""
    trained = _count_of(shapes)
    if not trained:
        return []
    kept: dict[What, int] = {"optimizer": optim.state_bytes(optim.find(plan.optimizer), shapes)}
    if plan.config.optim.ema:
        kept["average"] = 4 * trained
    phases: tuple[Phase, ...] = ("train", "sample", "export")
    return [Row(part, phase, what, size) for phase in phases for what, size in kept.items()]


def _count_of(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(map(math.prod, shapes))
