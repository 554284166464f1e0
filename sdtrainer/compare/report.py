"""What a comparison writes: compare.md to be read, compare.json with every number. Pure but for `save`."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__, files
from ..hardware import GIB, Machine
from .claims import Decided, decide
from .course import Outcome, Scale
from .numbers import COLUMNS, Column, Numbers, Score, Summary, Trial, summary

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class Circumstances:
    """When, where and with what it was measured."""

    date: str
    machine: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    scale: Scale


def circumstances(machine: Machine, settings: Mapping[str, Any], scale: Scale) -> Circumstances:
    """Return those of now and here."""
    versions = {"sdtrainer": __version__, "Python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in LIBRARIES}
    card = f"{machine.card.name}, " if machine.card else ""
    described = (
        f"{card}{os.cpu_count()} processor cores, {machine.ram_bytes / GIB:.0f} GB of memory, "
        f"{platform.system()} {platform.machine()}"
    )
    return Circumstances(time.strftime("%Y-%m-%d"), described, versions, settings, scale)


def save(folder: Path, outcome: Outcome, now: Circumstances) -> None:
    """Write compare.md and compare.json."""
    files.write_text(folder / "compare.json", json.dumps(as_json(outcome, now), indent=1))
    files.write_text(folder / "compare.md", as_markdown(outcome, now))


def as_json(outcome: Outcome, now: Circumstances) -> dict[str, Any]:
    """Every number: of each run, of each contestant, and what the claims rest on."""
    summaries = _summaries(outcome)
    return {
        "circumstances": dataclasses.asdict(now),
        "base": {
            "losses": dataclasses.asdict(outcome.base_losses),
            "named": dataclasses.asdict(outcome.base_named),
            "second_named": dataclasses.asdict(outcome.second_named),
        },
        "contestants": {
            score.name: {
                "title": score.title,
                "failure": score.failure,
                "numbers": {name: _described(n) for name, n in summaries[score.name].numbers.items()},
                "grid": [dataclasses.asdict(trial) for trial in score.grid],
                "runs": [dataclasses.asdict(trial) for trial in score.runs],
            }
            for score in outcome.scores
        },
        "claims": [dataclasses.asdict(decided) for decided in decide(summaries)],
    }


def as_markdown(outcome: Outcome, now: Circumstances) -> str:
    """The comparison to be read, from its table to how it was measured."""
    parts = (
        _table(outcome),
        _failures(outcome.scores),
        ["What the columns mean:"],
        [f"- **{column.title}**: {column.meaning}." for column in COLUMNS],
        ["**Common claims, decided from these numbers**"],
        _claims(decide(_summaries(outcome))),
        ["**Learning rates**"],
        _grid(outcome),
        ["**How it was measured**"],
        _method(outcome, now),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _summaries(outcome: Outcome) -> dict[str, Summary]:
    return {score.name: summary(score, outcome.base_losses) for score in outcome.scores}


def _described(numbers: Numbers) -> dict[str, Any]:
    spread = numbers.spread if len(numbers.values) > 1 else None
    values = list(numbers.values)
    return {"mean": numbers.mean, "spread": spread, "min": min(values), "max": max(values), "values": values}


def _table(outcome: Outcome) -> list[str]:
    """A row for each contestant; mean and spread where several seeds were run."""
    head = ["Method", *(column.title for column in COLUMNS)]
    named = outcome.base_named
    alone = {"learnt_loss": 1.0, "learnt": named.robots, "kept_loss": 1.0, "kept": named.others}
    alone["transfer"] = outcome.second_named.robots
    base = [column.written(alone[column.name]) if column.name in alone else "–" for column in COLUMNS]
    rows = [["the base model alone", *base]]
    for one in _summaries(outcome).values():
        rows.append([one.title, *(_cell(one, column) for column in COLUMNS)])
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _cell(one: Summary, column: Column) -> str:
    if column.name not in one.numbers:
        return "–"
    numbers = one[column.name]
    mean = column.written(numbers.mean)
    is_varied = column.spread is not None and len(numbers.values) > 1
    return f"{mean} ± {column.spread(numbers.spread)}" if is_varied else mean


def _failures(scores: Sequence[Score]) -> list[str]:
    return [f"{score.title} failed: {score.failure}" for score in scores if score.failure]


def _claims(claims: Sequence[Decided]) -> list[str]:
    """Each claim, what the numbers say of it, and the comparisons that it rests on."""
    lines = []
    for claim in claims:
        lines.append(f"- {claim.text}: **{claim.decision}**.")
        lines += [f"  - {finding.words}: {finding.decision}." for finding in claim.findings]
    return lines


def _grid(outcome: Outcome) -> list[str]:
    """The loss at each learning rate with the first seed; the one that was taken is marked."""
    rows = []
    for score in outcome.scores:
        cells = [_tried(trial, score, outcome) for trial in score.grid]
        rows.append(_row([score.title, *cells]))
    width = max((len(score.grid) for score in outcome.scores), default=0)
    head = ["Method", *(["lower", "usual", "higher"] if width == 3 else ["usual"])]
    return [_row(head), _row(["---"] * len(head)), *rows]


def _tried(trial: Trial, score: Score, outcome: Outcome) -> str:
    loss = "failed"
    if trial.losses:
        loss = f"{100 * (trial.losses.concept / outcome.base_losses.concept - 1):+.1f} %"
    text = f"{trial.rate:g}: {loss}"
    return f"**{text}**" if trial.rate == score.rate and not score.failure else text


def _method(outcome: Outcome, now: Circumstances) -> list[str]:
    return list(_sentences(outcome, now))


def _sentences(outcome: Outcome, now: Circumstances) -> Iterator[str]:
    scale = now.scale
    versions = ", ".join(f"{name} {version}" for name, version in now.versions.items())
    yield (
        f"Every method saw the same number of images: {outcome.steps * outcome.batch_size:,} "
        f"({outcome.steps:,} steps of {outcome.batch_size}; with prior preservation half of them are class "
        "images), on the starter model and its robot."
    )
    if scale.has_grid:
        yield (
            "Each was trained at three learning rates with one seed; the one with the lowest loss on "
            f"drawings not trained on (bold above) was then trained with {scale.seeds} seeds in all. Where "
            "that is the lowest or highest of the three, one still lower or higher might do better."
        )
    if scale.seeds > 1:
        yield (
            "Numbers are means over the seeds ± the sample standard deviation. Two methods are told apart "
            "where their means differ by more than both deviations together; with three seeds chance alone "
            "does that once in twelve times."
        )
    else:
        yield "One seed says nothing of chance, so no claim can be decided."
    yield (
        "Losses are mean squared errors at fixed noise in four bands of timesteps, the same for all. The "
        f"pictures of other things were drawn by the base model from {scale.num_others} prompts, with other "
        "seeds than those that are judged."
    )
    yield (
        f"A classifier that ships with the starter names {scale.num_robots} pictures of the robot and "
        f"{scale.num_others} of other things, drawn in {scale.drawing_steps} steps."
    )
    yield (
        "The second base model is the starter, trained further on brownish pictures; alone it draws "
        f"{100 * outcome.second_named.others:.0f} % of the other things so that they are named rightly."
    )
    yield f"Measured on {now.date}: {now.machine}; {versions}."


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
