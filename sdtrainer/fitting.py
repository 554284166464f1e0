"""Fitting: the fastest plan that fits the card, and what would make one fit where none does.

Every way to save memory is an `Option` of an `Axis`. Axes that the user left to "auto" are tried in all legal
combinations, from the fastest on, each summed by the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from . import activations, planner, storage
from .axes import AXES, Axis, Option
from .config import Config
from .hardware import GIB, Machine
from .memory import Ledger, estimate, structure_of
from .plan import Choice, Plan
from .planner import Draft
from .seams import T5
from .section import UserError, override
from .workspace import Workspace

MARGIN = 0.05
"""The part of the free memory that is left free: the ledger is not exact."""


@dataclass(frozen=True)
class Change:
    """One setting that would save `bytes` of the peak; `fits` says whether that is enough."""

    path: str
    value: Any
    bytes: int
    fits: bool


@dataclass(frozen=True)
class Fit:
    """A plan for a card of which `room` bytes may be used (None: there is no card). `fits` is None where
    nothing is known of the activations.
    """

    plan: Plan
    ledger: Ledger
    room: int | None
    fits: bool | None


def room_of(machine: Machine) -> int | None:
    """Return the bytes of the card that a run may use; None without an NVIDIA card."""
    if machine.device != "cuda" or machine.card is None:
        return None
    return round((1 - MARGIN) * machine.card.free_bytes)


def draft(
    config: Config, workspace: Workspace, machine: Machine, count_tokens: Callable[[str], int] | None = None
) -> tuple[Draft, Fit]:
    """Look, decide and fit. Raises UserError as `planner.draft` does."""
    made = planner.draft(config, workspace, machine, count_tokens)
    found = fit(made.plan, machine)
    return replace(made, facts=found.plan.facts, plan=found.plan), found


def fit(plan: Plan, machine: Machine, axes: Sequence[Axis] = AXES) -> Fit:
    """Return the fastest plan that fits, of those that differ in these axes; where none fits card and main
    memory, one without T5, if it may be left out; else the leanest. Where too little is known to tell, the
    plan as it is.
    """
    found = _fit(plan, machine, axes)
    if T5 in plan.facts.encoders and plan.config.base.t5 == "auto":
        less = _fit(plan.without_t5(), machine, axes)
        if why := _why_without_t5(found, less, machine):
            choices = (*less.plan.choices, Choice("base.t5", "off", f"T5 is left out: with it {why}"))
            advice = tuple(a for a in less.plan.advice if "base.t5" not in a.fix)
            return replace(less, plan=replace(less.plan, choices=choices, advice=advice))
    return found


def _why_without_t5(whole: Fit, less: Fit, machine: Machine) -> str:
    """What is too small for T5 and large enough without; empty if nothing is."""
    if whole.fits is False and less.fits:
        return f"{_gib(peak(whole.ledger))} would be needed at least"
    needed = [storage.memory_needed(found.plan, found.ledger) for found in (whole, less)]
    free = storage.memory_free(machine)
    return f"it needs {storage.lack(needed[0], free)}" if needed[1] <= free < needed[0] else ""


def _fit(plan: Plan, machine: Machine, axes: Sequence[Axis]) -> Fit:
    room = room_of(machine)
    if room is None:
        return Fit(plan, estimate(plan), None, True)
    axes = [axis for axis in axes if axis.is_free(plan)]
    tried = _first_that_fits(plan, axes, room)
    if tried is None:
        return Fit(plan, estimate(plan), room, None)
    fitted, ledger = tried
    fits = peak(ledger) <= room
    return Fit(_explained(fitted, axes, ledger, fits), ledger, room, fits)


def peak(ledger: Ledger) -> int:
    return ledger.held(ledger.peak_phase)


def combinations(plan: Plan, axes: Sequence[Axis]) -> Iterator[Plan]:
    """Yield every legal plan that differs in these axes only, the fastest first."""
    picks = product(*(axis.options(plan) for axis in axes))
    ordered = sorted(picks, key=lambda options: prod(o.slower for o in options))
    return (made for options in ordered if (made := _put(plan, options)) is not None)


def unknown(plan: Plan) -> list[Plan]:
    """Return the plans among which `fit` would choose whose activations are not known, each kind once."""
    found: dict[tuple[str, ...], Plan] = {}
    for made in combinations(plan, [axis for axis in AXES if axis.is_free(plan)]):
        if missing := activations.missing(made, structure_of(made)):
            found.setdefault(tuple(need.key for need in missing), made)
    return list(found.values())


def leaner(plan: Plan) -> tuple[Plan, str] | None:
    """Return the next leaner plan by which a running training can go on, as a revision, and what changes, in
    words; None if there is none.

    What costs least comes first; settings that the user has fixed come last, as they change no result.
    """
    steps = [(axis, *step) for axis in AXES if axis.is_live and (step := _step_down(axis, plan))]
    if not steps:
        return None
    _, cost, option = min(steps, key=lambda step: (not step[0].is_free(plan), step[1]))
    return option.put(plan.revised()), f"{option.does}, {_cost(cost)}"


def _step_down(axis: Axis, plan: Plan) -> tuple[float, Option] | None:
    """Return the next leaner option of an axis that is legal, and how much slower it makes the plan."""
    options = list(axis.options(plan))
    now = next(number for number, option in enumerate(options) if option.put(plan) == plan)
    for option in options[now + 1 :]:
        if not option.why_not(option.put(plan)):
            return option.slower / options[now].slower, option
    return None


def unknown_keys(plan: Plan) -> frozenset[str]:
    """Return the names of the tables that are missing."""
    plans = unknown(plan)
    return frozenset(need.key for made in plans for need in activations.missing(made, structure_of(made)))


def _put(plan: Plan, options: Sequence[Option]) -> Plan | None:
    for option in options:
        plan = option.put(plan)
    return None if any(option.why_not(plan) for option in options) else plan


def _first_that_fits(plan: Plan, axes: Sequence[Axis], room: int) -> tuple[Plan, Ledger] | None:
    """Return plan and ledger; the leanest if none fits, None if nothing can be told."""
    leanest: tuple[Plan, Ledger] | None = None
    for made in combinations(plan, axes):
        ledger = estimate(made)
        if ledger.unknown:
            continue
        if peak(ledger) <= room:
            return made, ledger
        if leanest is None or peak(ledger) < peak(leanest[1]):
            leanest = made, ledger
    return leanest


def _explained(plan: Plan, axes: Sequence[Axis], ledger: Ledger, fits: bool) -> Plan:
    """Say of every free axis why it was decided so."""
    kept = [choice for choice in plan.choices if choice.path not in {axis.path for axis in axes}]
    made = [_choice(plan, axis, peak(ledger), fits) for axis in axes]
    return replace(plan, choices=(*kept, *(choice for choice in made if choice)))


def _choice(plan: Plan, axis: Axis, held: int, fits: bool) -> Choice | None:
    """Return the choice with its reason; None where there is only one way."""
    options = [option for option in axis.options(plan) if _put(plan, [option])]
    chosen = next((option for option in options if option.put(plan) == plan), None)
    if chosen is None or len(options) == 1:
        return None
    if chosen is options[0]:
        why = "there is room for it" if fits else "less would not help here"
        return Choice(axis.path, chosen.value, f"{chosen.does}: {why}")
    fastest = estimate(options[0].put(plan))
    if fastest.unknown:
        return Choice(axis.path, chosen.value, f"{chosen.does}: what it takes otherwise is not known")
    without = peak(fastest)
    if without - held < GIB / 20:
        return Choice(axis.path, chosen.value, f"{chosen.does}, for every byte counts here")
    saves = f"{_gib(held)} instead of {_gib(without)}"
    return Choice(axis.path, chosen.value, f"{chosen.does}: {saves}, and {_cost(chosen.slower)}")


def _cost(slower: float) -> str:
    return f"about {slower - 1:.0%} slower" if slower > 1.05 else "hardly slower"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GB"


# -- what a person could change ----------------------------------------------------------------------

Replan = Callable[[Config], Plan]


def changes(found: Fit, machine: Machine, replan: Replan) -> Iterator[Change]:
    """Yield single settings that would save memory, those first that would be enough.

    `replan` makes the plan of a changed config; it may raise UserError, and that change is left out.
    """
    now = peak(found.ledger)
    tried = []
    for path, value in _ideas(found.plan):
        try:
            config = type(found.plan.config).model_validate(
                override(found.plan.config.values(), {path: value})
            )
            other = fit(replan(config), machine)
        except (UserError, ValueError):
            continue
        if other.fits is not None and (saved := now - peak(other.ledger)) > 0.01 * now:
            tried.append(Change(path, value, saved, other.fits))
    yield from sorted(tried, key=lambda change: (not change.fits, -change.bytes))


def _ideas(plan: Plan) -> Iterator[tuple[str, Any]]:
    config = plan.config
    for axis in AXES:
        if not axis.is_free(plan):
            yield axis.path, "auto"
    smaller = [side for side in (1024, 768, 640, 512, 384, 256) if side < max(plan.resolutions)]
    yield from (("train.resolution", side) for side in smaller[:2])
    if plan.batch_size > 1:
        yield "train.batch_size", 1
    if config.optim.ema:
        yield "optim.ema", False
    if not plan.cache_latents and config.data.cache_latents == "off":
        yield "data.cache_latents", "auto"
    if T5 in plan.facts.encoders:
        yield "base.t5", "off"
    if getattr(config.method, "train_text_encoder", False):
        yield "method.train_text_encoder", False
    if getattr(config.method, "layers", None) == "all":
        yield "method.layers", "attention"
    if config.method.kind == "full":
        yield "method.kind", "lora"
    if config.sample.prompts:
        yield "sample.prompts", []
