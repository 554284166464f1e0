"""What settings were found to cost: the rows, and what they say of three usual claims. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

MIXED = ("bf16", "fp16")
HALF = (0.35, 0.65)
"""What may be called about half."""
NOISE = 0.05
"""Times that are nearer to each other are not told apart, nor are those within their spreads together."""
EXACT = 0.01
"""Memory is the same in every step."""


@dataclass(frozen=True)
class Outcome:
    """What a setting cost. Units: seconds, bytes, images. `spread` is by how much the time of a step varied,
    up and down; `loss` is the mean of the later half of the steps, None where none was a number. With a
    `failure` there are no numbers.
    """

    seconds_per_step: float = 0.0
    spread: float = 0.0
    images_per_second: float = 0.0
    peak_bytes: int = 0
    loss: float | None = None
    images: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Setting:
    """What is compared, of one run."""

    precision: str
    resolution: int
    checkpointing: bool
    optimizer: str
    cached: bool

    @property
    def name(self) -> str:
        words = [self.precision, f"{self.resolution} px", *(["checkpointing"] if self.checkpointing else [])]
        return ", ".join([*words, self.optimizer, *([] if self.cached else ["nothing cached"])])


@dataclass(frozen=True)
class Tried:
    setting: Setting
    outcome: Outcome


Decision = Literal["confirmed", "contradicted", "not measurable here"]


@dataclass(frozen=True)
class Conclusion:
    """A claim, what the rows say of it, and the numbers or the reason in words."""

    text: str
    decision: Decision
    words: tuple[str, ...]


@dataclass(frozen=True)
class _Claim:
    """`axis` is what differs between two rows and `is_more` which of its values is the costly one; `saves`
    says by which numbers the other is to be better, and between which parts that must lie.
    """

    text: str
    axis: str
    is_more: Callable[[Any, Any], bool]
    saves: Mapping[str, tuple[float, float]]
    missing: str


CLAIMS: tuple[_Claim, ...] = (
    _Claim(
        "Mixed precision saves about half of time and memory",
        "precision",
        lambda one, other: one == "fp32" and other in MIXED,
        {"seconds_per_step": HALF, "peak_bytes": HALF},
        "no run in fp32 and the same in bf16 or fp16 went well",
    ),
    _Claim(
        "Gradient checkpointing saves memory",
        "checkpointing",
        lambda one, other: not one and other,
        {"peak_bytes": (EXACT, 1.0)},
        "no run with and without checkpointing went well",
    ),
    _Claim(
        "A lower resolution saves time",
        "resolution",
        lambda one, other: one > other,
        {"seconds_per_step": (NOISE, 1.0)},
        "no run at two resolutions went well",
    ),
)


def conclusions(rows: Sequence[Tried]) -> tuple[Conclusion, ...]:
    """Decide the usual claims from the rows."""
    return tuple(_concluded(claim, rows) for claim in CLAIMS)


def _concluded(claim: _Claim, rows: Sequence[Tried]) -> Conclusion:
    """Confirmed if every pair of rows that differ in nothing else says so, contradicted if one says no."""
    found = [verdict for one, other in _pairs(claim, rows) for verdict in _verdicts(claim, one, other)]
    if not found:
        failures = [f"{row.setting.name}: {row.outcome.failure}" for row in rows if row.outcome.failure]
        return Conclusion(claim.text, "not measurable here", (f"{claim.missing}", *failures))
    decisions = {decision for decision, _ in found}
    order: tuple[Decision, ...] = ("contradicted", "not measurable here", "confirmed")
    return Conclusion(
        claim.text, next(d for d in order if d in decisions), tuple(words for _, words in found)
    )


def _pairs(claim: _Claim, rows: Sequence[Tried]) -> Iterator[tuple[Tried, Tried]]:
    """The costly row and the other of all that went well and differ in the claim's axis alone."""
    good = [row for row in rows if not row.outcome.failure]
    for one in good:
        for other in good:
            mine, its = getattr(one.setting, claim.axis), getattr(other.setting, claim.axis)
            is_alike = replace(other.setting, **{claim.axis: mine}) == one.setting
            if is_alike and claim.is_more(mine, its):
                yield one, other


def _verdicts(claim: _Claim, one: Tried, other: Tried) -> Iterator[tuple[Decision, str]]:
    for number, (low, high) in claim.saves.items():
        before, after = getattr(one.outcome, number), getattr(other.outcome, number)
        saved = 1 - after / before
        is_time = number == "seconds_per_step"
        what = "time" if is_time else "memory"
        noise = max(NOISE, (one.outcome.spread + other.outcome.spread) / before) if is_time else 0.0
        way = "less" if saved >= 0 else "more"
        words = f"{other.setting.name} took {100 * abs(saved):.0f} % {way} {what} than {one.setting.name}"
        if abs(saved) < noise:
            yield "not measurable here", f"{words}, which chance alone may do"
        else:
            yield ("confirmed" if low <= saved <= high else "contradicted"), words


@dataclass(frozen=True)
class Comparison:
    """All that was found on one machine with one run's settings; `counted` says how memory was measured."""

    machine: str
    date: str
    counted: str
    rows: tuple[Tried, ...] = field(default_factory=tuple)


def as_text(comparison: Comparison) -> str:
    """The table and the conclusions, for a console."""
    lines = [f"{'setting':48} {'s/step':>16} {'images/s':>9} {'memory':>10} {'loss':>8}"]
    for row in comparison.rows:
        one = row.outcome
        if one.failure:
            lines.append(f"{row.setting.name:48} {one.failure}")
            continue
        loss = "-" if one.loss is None else f"{one.loss:.4f}"
        time = f"{one.seconds_per_step:8.3f} ± {one.spread:5.3f} {one.images_per_second:9.2f}"
        lines.append(f"{row.setting.name:48} {time} {one.peak_bytes / 2**30:6.2f} GiB {loss:>8}")
    lines += [f"Memory: {comparison.counted}.", ""]
    for conclusion in conclusions(comparison.rows):
        lines.append(f"{conclusion.text}: {conclusion.decision}.")
        lines += [f"  {words}" for words in conclusion.words]
    return "\n".join(lines)


def as_json(comparison: Comparison) -> str:
    """Rows and conclusions, for programs."""
    told = asdict(comparison) | {"conclusions": [asdict(one) for one in conclusions(comparison.rows)]}
    return json.dumps(told, indent=1)


def times(comparison: Comparison) -> list[tuple[str, float, str]]:
    """Name, seconds per step and the same in words, of the runs that went well, for a bar chart."""
    good = [row for row in comparison.rows if not row.outcome.failure]
    return [(r.setting.name, r.outcome.seconds_per_step, f"{r.outcome.seconds_per_step:.3f} s") for r in good]
