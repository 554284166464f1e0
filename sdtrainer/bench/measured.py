"""What plans were measured to hold on a card, beside what was estimated, and kept for those that come back.

One file for each card and base model. Imports no torch: the page asks it at every look.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from .. import files
from ..hardware import Machine
from ..plan import Plan
from ..workspace import Workspace

if TYPE_CHECKING:
    from ..memory import Ledger

WEIGHTS = "weights"
_MATTERS = (
    "device", "processes", "precision", "optimizer", "checkpointing", "cache_latents", "cache_text", "chunks",
    "batch_size", "trained_as", "fused_backward", "batch_parts", "frozen_as", "offloaded",
    "t5_as", "draws_in_turn",
)  # fmt: skip
"""Fields of a plan on which its memory depends. Length, learning rate and images do not matter."""


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

    def held(self, phase: str) -> int:
        """Return what a phase takes at most: from the card, if that is known, else for its tensors."""
        return self.reserved[phase] + self.context if self.context else self.allocated[phase]


@dataclass(frozen=True)
class Line:
    """Bytes of one thing: WEIGHTS or a phase. `estimated` is None where nothing is known."""

    what: str
    measured: int
    estimated: int | None

    @property
    def error(self) -> float:
        """How much too large the estimate is, as a part of the truth."""
        return (self.estimated or 0) / self.measured - 1


@dataclass(frozen=True)
class Measurement:
    """One plan measured: the day, what it was in words, and what was estimated then."""

    date: str
    plan: str
    measured: Measured
    lines: tuple[Line, ...]

    @property
    def peak(self) -> Line | None:
        """The phase that takes the most; None if the memory ran out before any was whole."""
        return max(
            (line for line in self.lines if line.what != WEIGHTS), key=lambda x: x.measured, default=None
        )


@dataclass(frozen=True)
class Kept:
    """All measurements of a base model on a card, by what matters of their plans."""

    card: str
    model: str
    found: dict[str, Measurement] = field(default_factory=dict)

    def of(self, plan: Plan) -> Measurement | None:
        return self.found.get(key(plan))

    @property
    def errors(self) -> list[float]:
        """How far the estimate of each measured plan was off."""
        peaks = [one.peak for one in self.found.values() if not one.measured.ended]
        return [peak.error for peak in peaks if peak and peak.estimated]


_KEPT = TypeAdapter(Kept)


def key(plan: Plan) -> str:
    """Return what tells a plan from others, as far as memory goes."""
    config, sample = plan.config, plan.config.sample
    told: dict[str, Any] = {name: getattr(plan, name) for name in _MATTERS}
    told |= {"method": config.method.model_dump(), "bucket": largest_bucket(plan), "ema": config.optim.ema}
    told |= {"accumulates": plan.accumulation > 1, "clip_skip": config.base.clip_skip}
    told |= {"draws": bool(sample.prompts) and [max(plan.resolutions), sample.width, sample.height]}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def largest_bucket(plan: Plan) -> tuple[int, int]:
    """Return width and height of the largest pictures trained at, in pixels."""
    sizes = [tuple(map(int, bucket.split(" x "))) for bucket in plan.buckets]
    return max(((w, h) for w, h in sizes), key=lambda size: size[0] * size[1])


def card_name(machine: Machine) -> str:
    return machine.card.name if machine.device == "cuda" and machine.card else "this computer's processor"


def load(plan: Plan, machine: Machine, home: Workspace) -> Kept:
    """Return what was measured with the plan's base model on this card."""
    file = file_for(plan, machine, home)
    if file.exists():
        try:
            return _KEPT.validate_json(file.read_bytes())
        except ValidationError:  # of another version of the app: measured again, it is overwritten
            pass
    return Kept(card_name(machine), plan.facts.path)


def keep(plan: Plan, machine: Machine, home: Workspace, measured: Measured, ledger: Ledger) -> Measurement:
    """Add a measurement to what is known; returns it."""
    kept = load(plan, machine, home)
    made = Measurement(time.strftime("%Y-%m-%d"), words_of(plan), measured, lines(measured, ledger))
    kept.found[key(plan)] = made
    files.write_text(file_for(plan, machine, home), _KEPT.dump_json(kept, indent=1).decode())
    return made


def file_for(plan: Plan, machine: Machine, home: Workspace) -> Path:
    card = card_name(machine)
    digest = hashlib.sha256(json.dumps([card, plan.facts.path, repr(plan.facts.config)]).encode())
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return home.measurements / f"memory-{name}-{digest.hexdigest()[:12]}.json"


def words_of(plan: Plan) -> str:
    """Say which plan it was."""
    width, height = largest_bucket(plan)
    words = [plan.config.method.kind, f"{width} x {height} px", f"batch {plan.batch_size}", plan.precision]
    words += [plan.optimizer, *(["checkpointing"] if plan.checkpointing else [])]
    return ", ".join(words)


def lines(measured: Measured, ledger: Ledger) -> tuple[Line, ...]:
    """Put beside each measured number what was estimated of it."""
    found = [Line(WEIGHTS, measured.weights, _sum(ledger, "train", WEIGHTS))] if measured.weights else []
    for phase in measured.allocated:
        left_out = "" if measured.context else "overhead"
        estimated = None if phase in ledger.unknown else _sum(ledger, phase, without=left_out)
        found.append(Line(phase, measured.held(phase), estimated))
    return tuple(found)


def _sum(ledger: Ledger, phase: str, what: str = "", without: str = "") -> int:
    rows = (row for row in ledger.rows if row.phase == phase and row.what != without)
    return sum(row.bytes for row in rows if not what or row.what == what)


def trust(kept: Kept) -> str:
    """Say how far the estimate can be trusted, by what was measured; empty if nothing was."""
    if not kept.errors:
        return ""
    worst, count = max(kept.errors, key=abs), len(kept.errors)
    plans = "one plan" if count == 1 else f"{count} plans"
    return f"Measured on {kept.card} with {plans} of this model: the estimate was {_off(worst, count)}."


def _off(error: float, count: int) -> str:
    most = "" if count == 1 else "at most "
    part = round(100 * abs(error))
    return f"{most}{part} % {'too high' if error > 0 else 'too low'}" if part else "right to within 1 %"
