"""What the checks exchange: a `Case` (all that is known of a set), and each `Finding` with its fixes.

A fix is data: values by image path for one table of the overlay. So it changes no file of the user's, and the
overlay's undo takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ..config import Config
from ..data.captions import compose
from ..data.census import Census, Problem, Sample
from ..data.images import Header
from ..data.items import Item, plan_items
from ..data.overlay import CAPTIONS, Table
from ..decisions import with_trigger
from ..section import UserError
from .look import Look

Level = Literal["bad", "warn", "note"]
LEVELS: tuple[Level, ...] = ("bad", "warn", "note")


@dataclass(frozen=True)
class Fix:
    """`label` is on its button; `values` by image path are laid into `table`."""

    label: str
    table: Literal["captions"] | Table
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """`files` are relative to the folder, the one that it is about first; empty for the whole set."""

    files: tuple[str, ...]
    sentence: str
    fixes: tuple[Fix, ...] = ()


@dataclass(frozen=True)
class Case:
    """`headers` and `looks` by path; looks only where pixels were looked at, `held_out_looks` of validation.

    `problems` are what reading the folder found, those of pixels that cannot be decoded among them.
    """

    config: Config
    census: Census
    validation: Census | None
    problems: Sequence[Problem]
    headers: Mapping[str, Header] = field(default_factory=dict)
    looks: Mapping[str, Look] = field(default_factory=dict)
    held_out_looks: Mapping[str, Look] = field(default_factory=dict)

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return {sample.path: sample for sample in self.census.samples}

    @cached_property
    def items(self) -> Sequence[Item]:
        return plan_items(self.census.samples, self.config.data, self.config.train.resolutions)

    @cached_property
    def trained_as(self) -> Mapping[str, str]:
        """By path: what the model is told, without chance."""
        try:
            data = with_trigger(self.config, self.census).data
        except UserError:  # said where the run is planned
            data = self.config.data
        return {s.path: compose(s.caption, data, None, s.class_word) for s in self.census.samples}


Find = Callable[[Case], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """`about` says what it means for training, and what helps."""

    name: str
    title: str
    level: Level
    about: str
    find: Find


def leave_out(*paths: str) -> Fix:
    return Fix("Leave out", "left_out", dict.fromkeys(paths, True))


def caption(label: str, path: str, text: str) -> Fix:
    return Fix(label, CAPTIONS, {path: text})
