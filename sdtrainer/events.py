"""Everything that a run can say. Frozen, flat, JSON-safe: log, history and what a reloaded page replays.

Owns the list of events and their JSON-lines form. An event never carries a tensor.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Event:
    """`at` is seconds since 1970."""

    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class RunStarted(Event):
    """A run began, or went on at `step` of `total`. Events of an earlier try with a later step are void."""

    name: str
    step: int
    total: int


@dataclass(frozen=True)
class PhaseBegan(Event):
    """load, prior (drawing class images), cache, train, sample or export of a run, or other work; `what` is a
    sentence to show.
    """

    phase: Literal["load", "prior", "cache", "train", "sample", "export", "work"]
    what: str


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` units of the current phase; `seconds_left` is None while unknown."""

    done: int
    total: int
    unit: str
    seconds_left: float | None = None


@dataclass(frozen=True)
class Stepped(Event):
    """Optimizer steps since the last such event; `step` is the last of them, lists are one value per step."""

    step: int
    total: int
    losses: list[float]
    grad_norms: list[float]
    lr: dict[str, float]
    seconds_per_step: float
    seconds_left: float | None
    images_seen: int
    memory_bytes: int


@dataclass(frozen=True)
class Validated(Event):
    """Mean loss over the held-out images at fixed noise and timesteps."""

    step: int
    loss: float


@dataclass(frozen=True)
class Looking(Event):
    """What the run does between two steps: `what` is a sentence to show, empty when it is done."""

    step: int
    what: str


@dataclass(frozen=True)
class Sampled(Event):
    """One sample picture, relative to the run folder."""

    step: int
    index: int
    prompt: str
    seed: int
    path: str


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint or an export lies complete at `path`, relative to the run folder."""

    step: int
    what: Literal["checkpoint", "export"]
    path: str
    bytes: int


@dataclass(frozen=True)
class Said(Event):
    """A sentence for the user."""

    level: Literal["info", "warning"]
    text: str


@dataclass(frozen=True)
class Revised(Event):
    """The plan was changed while running: from `step` on, revision `revision` holds."""

    step: int
    revision: int
    why: str


@dataclass(frozen=True)
class RolledBack(Event):
    """A loss that was no number, or a step that broke off: the run went back from `step` to `to_step`."""

    step: int
    to_step: int
    why: str


@dataclass(frozen=True)
class Paused(Event):
    step: int


@dataclass(frozen=True)
class Resumed(Event):
    step: int


@dataclass(frozen=True)
class Suspended(Event):
    """The process ended by order at `step`, after a checkpoint; the run is to be resumed."""

    step: int


@dataclass(frozen=True)
class Finished(Event):
    """The run ended well at `step`; `stopped`: early, by order.

    `path`, relative to the run folder, exists and was loaded once.
    """

    step: int
    path: str
    stopped: bool


@dataclass(frozen=True)
class Failed(Event):
    """The run ended badly: `what` happened, `hint` says what to do; the traceback is in the run folder."""

    what: str
    hint: str
    path: str = ""


EVENTS: tuple[type[Event], ...] = (
    RunStarted, PhaseBegan, Progress, Stepped, Looking, Validated, Sampled, Saved, Said, Revised, RolledBack,
    Paused, Resumed, Suspended, Finished, Failed,
)  # fmt: skip
_BY_NAME = {e.__name__: e for e in EVENTS}


def to_json(event: Event) -> str:
    """Return one line of JSON. Non-finite numbers become null, which no reader of JSON refuses."""
    return json.dumps(
        {"event": type(event).__name__} | _finite(dataclasses.asdict(event)), ensure_ascii=False
    )


def from_json(line: str) -> Event:
    """Rebuild an event. Raises ValueError on a torn or foreign line."""
    try:
        values = json.loads(line)
        return _BY_NAME[values.pop("event")](**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event: {line[:80]!r}") from error


def append(path: Path, event: Event) -> None:
    """Append an event to a log; a killed run's torn last line is closed first and costs only itself."""
    with path.open("ab+") as file:
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")
        file.write(to_json(event).encode() + b"\n")


def read(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield (event, offset after it) of a log from `offset`, without torn lines and an unfinished last."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = from_json(line.decode(errors="replace"))
            except ValueError:
                continue
            yield event, offset


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
