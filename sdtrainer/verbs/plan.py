"""plan RUN.toml [path=value ...] [--json]: what a run would do, without doing it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from .. import workspace as workspaces
from ..__main__ import parser
from ..memory import Ledger, estimate
from ..plan import PHASES, Plan, output_names
from ..planner import draft
from .train import config_of


def main(argv: Sequence[str]) -> int:
    arguments = parser("plan")
    arguments.add_argument("run", type=Path, help="a run file (TOML)")
    arguments.add_argument("settings", nargs="*", help="path=value, laid over the run file")
    arguments.add_argument("--json", action="store_true", help="for programs")
    given = arguments.parse_intermixed_args(argv)
    from ..hardware import detect

    plan = draft(config_of(given.run, given.settings), workspaces.default(), detect()).plan
    print(as_json(plan, estimate(plan)) if given.json else as_text(plan, estimate(plan)))
    return 0


def as_text(plan: Plan, ledger: Ledger) -> str:
    images = plan.batch_size * plan.accumulation * plan.processes
    lines = [
        f"{plan.facts.title} ({plan.facts.why}), {plan.facts.prediction_type}, {plan.facts.resolution} px",
        f"{plan.num_images} images, {plan.images_per_epoch} shown per epoch, {plan.num_validation} held out"
        + (f", {plan.num_class_images} class images" if plan.num_class_images else ""),
        f"{plan.total_steps:,} steps of {images} images = {plan.epochs:.1f} epochs",
        f"{ledger.trained:,} trained parameters",
        f"{', '.join(output_names(plan))}: {ledger.exported_bytes / 2**20:.1f} MB",
        f"holds {ledger.held('train') / 2**30:.2f} GiB while training{_without(ledger)}",
    ]
    lines += [f"  {choice.path} = {choice.value}: {choice.why}" for choice in plan.choices]
    return "\n".join(lines + [f"  Note: {advice.text}" for advice in plan.advice])


def _without(ledger: Ledger) -> str:
    return ", activations not counted: the verb trace finds them" if "train" in ledger.unknown else ""


def as_json(plan: Plan, ledger: Ledger) -> str:
    return json.dumps(
        {
            "rows": [dataclasses.asdict(row) for row in ledger.rows],
            "peaks": {phase: ledger.held(phase) for phase in PHASES},
            "choices": {choice.path: {"value": choice.value, "why": choice.why} for choice in plan.choices},
            "steps": plan.total_steps,
            "images": plan.num_images,
            "exported_bytes": ledger.exported_bytes,
            "advice": [advice.text for advice in plan.advice],
        },
        indent=1,
    )
