"""Which rank a layer gets: a fixed one, or what keeps so much of its change, or of its singular values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..methods.targets import MAX_RANK
from ..section import UserError, knob


@dataclass(frozen=True)
class Wanted:
    """At least `least` and at most `most`; with `energy` the fewest singular values whose squares make up
    that part of all, with `threshold` those above that part of the largest; with neither as many as allowed.
    """

    most: int
    least: int = 1
    energy: float = 0.0
    threshold: float = 0.0

    @property
    def is_fixed(self) -> bool:
        return not (self.energy or self.threshold)

    def rank(self, values: Sequence[float], total: float) -> int:
        """Return the rank for a layer's singular values, largest first; `total` is the sum of all squares,
        also of those that are not known.
        """
        rank = len(values)
        if self.threshold:
            rank = sum(value >= self.threshold * values[0] for value in values)
        elif self.energy:
            kept = 0.0
            for rank, value in enumerate(values, 1):  # noqa: B007 - the last rank counts
                kept += value * value
                if kept >= self.energy * total:
                    break
        return max(1, min(max(rank, self.least), self.most, len(values)))


class Ranks(Protocol):
    """What Settings declare that choose a rank, by the functions below."""

    @property
    def rank(self) -> int: ...

    @property
    def min_rank(self) -> int: ...

    @property
    def energy(self) -> float: ...

    @property
    def threshold(self) -> float: ...


def rank_knob(default: int, help: str) -> Any:
    return knob(default, "Rank", help, level="basic", ge=0 if default == 0 else 1, le=MAX_RANK)


def energy_knob() -> Any:
    return knob(
        0.0,
        "Keep of the change",
        "0.95 gives each layer the smallest rank that keeps 95 % of its change (of the sum of squares); Rank "
        "is then the most. 0: every layer has the rank above.",
        level="basic",
        ge=0,
        lt=1,
    )


def threshold_knob() -> Any:
    return knob(
        0.0,
        "Smallest singular value",
        "0.1 drops in each layer what is weaker than a tenth of its strongest direction; Rank is then the "
        "most. 0: off.",
        ge=0,
        lt=1,
    )


def min_rank_knob() -> Any:
    return knob(1, "Least rank", "No layer gets less, where ranks differ.", ge=1, le=MAX_RANK)


def wanted(settings: Ranks, most: int) -> Wanted:
    """Return the choice of rank, with this rank or the largest one.

    Raises:
        UserError: two ways of choosing are given at once, or the least rank is above the largest.
    """
    if settings.energy and settings.threshold:
        raise UserError(
            f"Keep of the change ({settings.energy:g}) and Smallest singular value ({settings.threshold:g}) "
            "choose the rank both.",
            "Set one of them to 0.",
            "threshold",
        )
    if settings.min_rank > most:
        raise UserError(
            f"Least rank is {settings.min_rank}, above the rank {most}.", "Give a smaller one.", "min_rank"
        )
    return Wanted(most, settings.min_rank, settings.energy, settings.threshold)
