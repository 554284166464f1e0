"""What the page shows of a run: `RunView`, grown event by event. Pure: no files, no clock, no gradio."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Literal

from .. import events
from ..events import Event
from ..job import heard
from . import words

MAX_POINTS = 500
LOG_LINES = 400
SMOOTHING = 0.97
SETTLED_POINTS = 20
"""So many points of the loss say more of the learning than of the noise that single steps drew."""

State = Literal["new", "running", "paused", "finished", "stopped", "suspended", "failed"]


class Curve:
    """At most MAX_POINTS points, each the mean of `stride` steps; the stride doubles as the curve grows."""

    def __init__(self) -> None:
        self.stride = 1
        self._points: list[tuple[int, int, float, int]] = []  # bucket, last step in it, sum, count

    @property
    def points(self) -> list[tuple[int, float]]:
        return [(step, total / n) for _, step, total, n in self._points]

    @property
    def last(self) -> float | None:
        return self._points[-1][2] / self._points[-1][3] if self._points else None

    def add(self, step: int, value: float) -> None:
        bucket = step // self.stride
        if self._points and self._points[-1][0] == bucket:
            _, _, total, n = self._points[-1]
            self._points[-1] = (bucket, step, total + value, n + 1)
            return
        self._points.append((bucket, step, value, 1))
        if len(self._points) > MAX_POINTS:
            self._halve()

    def cut(self, step: int) -> None:
        """Forget what came after `step`."""
        self._points = [p for p in self._points if p[1] <= step]

    def _halve(self) -> None:
        self.stride *= 2
        merged: list[tuple[int, int, float, int]] = []
        for _, step, total, n in self._points:
            bucket = step // self.stride
            if merged and merged[-1][0] == bucket:
                total, n = total + merged[-1][2], n + merged[-1][3]
                merged.pop()
            merged.append((bucket, step, total, n))
        self._points = merged


@dataclass(frozen=True)
class Sample:
    step: int
    index: int
    prompt: str
    seed: int
    path: str


@dataclass
class RunView:
    """Everything shown of one run. `version` grows with every event; `word` says where the run stands."""

    version: int = 0
    word: Event | None = None
    name: str = ""
    state: State = "new"
    phase: str = ""
    doing: str = ""
    done: int = 0
    of: int = 0
    unit: str = ""
    step: int = 0
    total: int = 0
    started_at: float = 0.0
    seconds_left: float | None = None
    seconds_per_step: float | None = None
    images_seen: int = 0
    memory_bytes: int = 0
    loss: Curve = field(default_factory=Curve)
    smooth: Curve = field(default_factory=Curve)
    validation: Curve = field(default_factory=Curve)
    lr: dict[str, Curve] = field(default_factory=dict)
    samples: dict[tuple[int, int], Sample] = field(default_factory=dict)
    log: list[tuple[float, str, str]] = field(default_factory=list)
    outcome: str = ""
    problem: str = ""
    hint: str = ""
    _smoothed: float | None = None

    @property
    def sample_steps(self) -> list[int]:
        return sorted({step for step, _ in self.samples})

    @property
    def prompts(self) -> dict[int, str]:
        """Prompts by their number."""
        return {s.index: s.prompt for _, s in sorted(self.samples.items())}

    def newest_samples(self) -> list[Sample]:
        steps = self.sample_steps
        return [s for key, s in sorted(self.samples.items()) if steps and key[0] == steps[-1]]


def reduce(view: RunView, event: Event) -> RunView:
    """Take one event in. Returns the same view, changed."""
    _TAKE[type(event)](view, event)
    view.word = heard(view.word, event)
    view.version += 1
    return view


def sentence(view: RunView) -> str:
    """Say in plain language what the run is doing or how it ended."""
    left = f" About {words.duration(view.seconds_left)} left." if (view.seconds_left or 0) >= 1 else ""
    match view.state:
        case "new":
            return "The trainer is starting."
        case "paused":
            return (
                f"Paused at step {view.step:,} of {view.total:,}. Nothing is lost; go on whenever you like."
            )
        case "finished":
            return f"Finished: {words.count(view.step, 'step')}. The result is {view.outcome}."
        case "stopped":
            return f"Stopped at step {view.step:,} of {view.total:,}. What was learnt is in {view.outcome}."
        case "suspended":
            return f"Saved at step {view.step:,} of {view.total:,}. Resume it under Runs."
        case "failed":
            return f"{view.problem} {view.hint}".strip()
    if view.phase == "look":
        return f"Step {view.step:,} of {view.total:,}. {view.doing}"
    if view.phase == "train":
        return f"Training: step {view.step:,} of {view.total:,}.{left}{_health(view)}"
    progress = f" {view.done:,} of {view.of:,} {view.unit}." if view.of else ""
    return f"{view.doing.rstrip('.')}.{progress}{left}"


def part_done(view: RunView) -> float:
    """Return how much of the run's steps is done, 0 to 1."""
    return min(1.0, view.step / view.total) if view.total else 0.0


def _health(view: RunView) -> str:
    """Say where the loss goes, if its last third differs from its first by more than the noise of single
    steps (Welch's t).
    """
    losses = [loss for _, loss in view.loss.points]
    third = len(losses) // 3
    if third < SETTLED_POINTS:
        return ""
    first, last = losses[:third], losses[-third:]
    change = fmean(last) - fmean(first)
    noise = math.sqrt((variance(first) + variance(last)) / third)
    if change < -2 * noise:
        return " The loss is falling."
    is_rising = change > 4 * noise and fmean(last) > 1.1 * fmean(first)
    return " The loss is rising: the learning rate may be too high." if is_rising else " The loss is level."


def _say(view: RunView, event: Event, text: str, level: str = "info") -> None:
    view.log.append((event.at, level, text))
    del view.log[:-LOG_LINES]


def _run_started(view: RunView, e: events.RunStarted) -> None:
    view.name, view.step, view.total, view.state = e.name, e.step, e.total, "running"
    view.started_at = view.started_at or e.at
    view.outcome = view.problem = view.hint = ""
    _cut(view, e.step)
    _say(view, e, "The run began." if e.step == 0 else f"The run went on at step {e.step:,}.")


def _cut(view: RunView, step: int) -> None:
    for curve in (view.loss, view.smooth, view.validation, *view.lr.values()):
        curve.cut(step)
    view.samples = {key: s for key, s in view.samples.items() if key[0] <= step}
    view._smoothed = view.smooth.last


def _phase_began(view: RunView, e: events.PhaseBegan) -> None:
    view.phase, view.doing, view.done, view.of, view.seconds_left = e.phase, e.what, 0, 0, None
    view.state = "running"
    _say(view, e, e.what)


def _progress(view: RunView, e: events.Progress) -> None:
    view.done, view.of, view.unit, view.seconds_left = e.done, e.total, e.unit, e.seconds_left


def _stepped(view: RunView, e: events.Stepped) -> None:
    view.state, view.phase, view.step, view.total = "running", "train", e.step, e.total
    view.seconds_left, view.seconds_per_step = e.seconds_left, e.seconds_per_step
    view.images_seen, view.memory_bytes = e.images_seen, e.memory_bytes
    for step, loss in enumerate(e.losses, e.step - len(e.losses) + 1):
        if loss is None:
            continue
        view.loss.add(step, loss)
        weight = min(SMOOTHING, step / (step + 10))
        view._smoothed = loss if view._smoothed is None else weight * view._smoothed + (1 - weight) * loss
        view.smooth.add(step, view._smoothed)
    for name, lr in e.lr.items():
        view.lr.setdefault(name, Curve()).add(e.step, lr)


def _looking(view: RunView, e: events.Looking) -> None:
    view.state, view.doing, view.phase = "running", e.what, "look" if e.what else "train"
    view.step, view.of = e.step, 0


def _validated(view: RunView, e: events.Validated) -> None:
    if e.loss is not None:
        view.validation.add(e.step, e.loss)
        _say(view, e, f"Validation loss {e.loss:.4f} at step {e.step:,}.")


def _sampled(view: RunView, e: events.Sampled) -> None:
    view.samples[(e.step, e.index)] = Sample(e.step, e.index, e.prompt, e.seed, e.path)


def _saved(view: RunView, e: events.Saved) -> None:
    if e.what == "export":
        view.outcome = e.path
    _say(view, e, f"Saved the {e.what} of step {e.step:,}: {e.path}, {words.size(e.bytes)}.")


def _said(view: RunView, e: events.Said) -> None:
    _say(view, e, e.text, e.level)


def _revised(view: RunView, e: events.Revised) -> None:
    _say(view, e, f"The plan was changed at step {e.step:,}: {e.why}", "warning")


def _rolled_back(view: RunView, e: events.RolledBack) -> None:
    _cut(view, e.to_step)
    view.step = e.to_step
    _say(view, e, f"Went back from step {e.step:,} to {e.to_step:,}: {e.why}", "warning")


def _paused(view: RunView, e: events.Paused) -> None:
    view.state, view.step, view.seconds_left = "paused", e.step, None
    _say(view, e, f"Paused at step {e.step:,}.")


def _resumed(view: RunView, e: events.Resumed) -> None:
    view.state = "running"
    _say(view, e, "Going on.")


def _finished(view: RunView, e: events.Finished) -> None:
    view.state = "stopped" if e.stopped else "finished"
    view.step, view.outcome, view.seconds_left = e.step, e.path, None
    _say(view, e, sentence(view))


def _suspended(view: RunView, e: events.Suspended) -> None:
    view.state, view.step, view.seconds_left = "suspended", e.step, None
    _say(view, e, f"Saved at step {e.step:,}, to be resumed.")


def _failed(view: RunView, e: events.Failed) -> None:
    view.state, view.problem, view.hint, view.seconds_left = "failed", e.what, e.hint, None
    _say(view, e, f"{e.what} {e.hint}", "warning")


_TAKE = {
    events.RunStarted: _run_started,
    events.PhaseBegan: _phase_began,
    events.Progress: _progress,
    events.Stepped: _stepped,
    events.Looking: _looking,
    events.Validated: _validated,
    events.Sampled: _sampled,
    events.Saved: _saved,
    events.Said: _said,
    events.Revised: _revised,
    events.RolledBack: _rolled_back,
    events.Paused: _paused,
    events.Resumed: _resumed,
    events.Finished: _finished,
    events.Suspended: _suspended,
    events.Failed: _failed,
}
