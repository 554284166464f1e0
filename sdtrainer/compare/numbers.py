"""What is measured: one run, all runs of a contestant, and each number's meaning. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Numbers:
    """One number of several runs that differ in nothing but their seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The sample standard deviation; not a number for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def mapped(self, change: Callable[[float], float]) -> Numbers:
        return Numbers(tuple(change(value) for value in self.values))


@dataclass(frozen=True)
class Cost:
    """What a run cost. Units: bytes, seconds."""

    trainable: int
    file_bytes: int
    peak_bytes: int
    seconds_per_step: float


@dataclass(frozen=True)
class Losses:
    """Mean squared errors at fixed noise and timesteps, on pictures never trained on."""

    concept: float
    others: float


@dataclass(frozen=True)
class Named:
    """The part of the pictures that the judge names rightly, 0 to 1; `transfer` is None for whole models."""

    robots: float
    others: float
    transfer: float | None


@dataclass(frozen=True)
class Trial:
    """One run of a contestant. `failure` says why there is nothing else; `named` is None until judged."""

    rate: float
    seed: int
    folder: str
    cost: Cost | None = None
    losses: Losses | None = None
    named: Named | None = None
    failure: str = ""


@dataclass(frozen=True)
class Score:
    """All trials of a contestant: `grid` at each learning rate with the first seed, `runs` at the best."""

    name: str
    title: str
    grid: tuple[Trial, ...]
    runs: tuple[Trial, ...]

    @property
    def rate(self) -> float:
        return self.runs[0].rate

    @property
    def failure(self) -> str:
        """Why there is nothing to compare; empty if there is."""
        failures = [trial.failure for trial in (*self.grid, *self.runs) if trial.failure]
        return failures[0] if failures and not self.completed else ""

    @property
    def completed(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.runs if trial.named is not None)


def best(grid: Sequence[Trial]) -> Trial:
    """Return the trial with the lowest loss on the concept's held-out pictures; failed ones come last."""
    return min(grid, key=lambda trial: trial.losses.concept if trial.losses else math.inf)


@dataclass(frozen=True)
class Column:
    """One number of the table: where it comes from, how it and its spread are written, what it means.

    Without `spread` it is the same for every seed.
    """

    name: str
    title: str
    meaning: str
    of: Callable[[Trial, Losses], float | None]
    written: Callable[[float], str]
    spread: Callable[[float], str] | None


def _size(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def _count(value: float) -> str:
    return _size(value).removesuffix("B").strip().replace("k", "thousand").replace("M", "million")


def _change(value: float) -> str:
    return f"{100 * (value - 1):+.1f} %"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


COLUMNS: tuple[Column, ...] = (
    Column(
        "trainable", "Trained", "how many numbers are trained", lambda t, _: t.cost.trainable, _count, None
    ),
    Column("file", "File", "size of the exported file", lambda t, _: t.cost.file_bytes, _size, None),
    Column(
        "memory",
        "Memory",
        "the most main memory that the training process held, its libraries and the base model included "
        "(on a graphics card: the most of the card's memory)",
        lambda t, _: t.cost.peak_bytes,
        _size,
        _size,
    ),
    Column(
        "speed",
        "Time per step",
        "mean time of a step over the last part of the training",
        lambda t, _: t.cost.seconds_per_step,
        lambda value: f"{value:.2f} s",
        lambda spread: f"{spread:.2f}",
    ),
    Column(
        "learnt_loss",
        "Learnt: loss",
        "loss on drawings of the robot that were not trained on, against the base model's "
        "(lower is better: more was learnt)",
        lambda t, base: t.losses.concept / base.concept,
        _change,
        lambda spread: f"{100 * spread:.1f}",
    ),
    Column(
        "learnt",
        "Learnt: named",
        "part of the pictures drawn from the robot's prompts in which the judge sees the robot "
        "(higher is better)",
        lambda t, _: t.named.robots,
        _percent,
        lambda spread: f"{100 * spread:.0f}",
    ),
    Column(
        "kept_loss",
        "Kept: loss",
        "loss on pictures of other things, against the base model's (lower is better: less was forgotten)",
        lambda t, base: t.losses.others / base.others,
        _change,
        lambda spread: f"{100 * spread:.1f}",
    ),
    Column(
        "kept",
        "Kept: named",
        "part of the pictures drawn from other things' prompts in which the judge sees what was asked for "
        "(higher is better)",
        lambda t, _: t.named.others,
        _percent,
        lambda spread: f"{100 * spread:.0f}",
    ),
    Column(
        "transfer",
        "Carried over",
        "part of the robot's pictures in which the judge sees the robot when the same file is put on the "
        "second base model (higher is better; a whole model cannot be put on another)",
        lambda t, _: t.named.transfer,
        _percent,
        lambda spread: f"{100 * spread:.0f}",
    ),
)
"""Every column, in the order of the table. `of` takes a completed trial and the base model's losses."""


@dataclass(frozen=True)
class Summary:
    """A contestant's numbers by column name; a column without numbers is missing."""

    name: str
    title: str
    rate: float
    numbers: Mapping[str, Numbers] = field(default_factory=dict)

    def __getitem__(self, column: str) -> Numbers:
        return self.numbers[column]


def summary(score: Score, base: Losses) -> Summary:
    """Bring a contestant's completed trials together."""
    found = {}
    for column in COLUMNS:
        values = [column.of(trial, base) for trial in score.completed]
        known = tuple(float(value) for value in values if value is not None)
        if known and len(known) == len(values):
            found[column.name] = Numbers(known)
    return Summary(score.name, score.title, score.rate, found)
