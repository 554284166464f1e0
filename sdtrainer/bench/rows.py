"""What a memory bench found: rows of predicted against measured bytes, and how far apart they are. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

WANTED = 0.05
"""The error that an estimate may have."""
PHASES = ("cache", "train", "sample")
ON_THE_CARD = "on the card"
"""Everything: what torch reserved, and what CUDA takes beside it."""


@dataclass(frozen=True)
class Row:
    """One number of one cell. `kind` is a phase, `weights`, `optimizer` or `ON_THE_CARD`."""

    cell: str
    kind: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """How much too large the estimate is, as a part of the truth."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Summary:
    kind: str
    count: int
    within: int
    median: float
    worst: Row


def rows(cells: Mapping[str, Any]) -> tuple[Row, ...]:
    """Every pair of numbers of the cells that were measured and estimated, where there is something to hold.

    A phase that was not measured, as the memory ran out, or not estimated whole has no row.
    """
    found = [
        row for name, one in cells.items() if one["measured"] and one["predicted"] for row in _of(name, one)
    ]
    return tuple(row for row in found if row.measured)


def _of(name: str, one: Mapping[str, Any]) -> Iterator[Row]:
    measured, predicted = one["measured"], one["predicted"]
    for phase in PHASES:
        if phase in measured["allocated"] and phase not in predicted["unknown"]:
            yield Row(name, phase, _bytes(predicted, phase, without="overhead"), measured["allocated"][phase])
    if "train" not in measured["allocated"]:
        return
    for what in ("weights", "optimizer"):
        yield Row(name, what, _bytes(predicted, "train", what), measured[what])
    if measured["context"] and "train" not in predicted["unknown"]:
        held = measured["reserved"]["train"] + measured["context"]
        yield Row(name, ON_THE_CARD, _bytes(predicted, "train"), held)


def _bytes(predicted: Mapping[str, Any], phase: str, what: str = "", without: str = "") -> int:
    """The sum of a phase's rows: of all, of one sort, or of all but one."""
    return sum(
        row["bytes"]
        for row in predicted["rows"]
        if row["phase"] == phase and (not what or row["what"] == what) and row["what"] != without
    )


def summaries(found: Sequence[Row]) -> tuple[Summary, ...]:
    """How good the estimate is, for each kind of number."""
    made = []
    for kind in (*PHASES, "weights", "optimizer", ON_THE_CARD):
        own = [row for row in found if row.kind == kind]
        if own:
            errors = [abs(row.error) for row in own]
            within = sum(error <= WANTED for error in errors)
            worst = max(own, key=lambda row: abs(row.error))
            made.append(Summary(kind, len(own), within, median(errors), worst))
    return tuple(made)
