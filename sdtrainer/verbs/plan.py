"""plan RUN.toml [path=value ...] [--vram GIB] [--classics] [--json]: what a run would do."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import classics, fitting, planner, storage
from .. import workspace as workspaces
from ..__main__ import parser
from ..fitting import Change, Fit
from ..hardware import GIB
from ..memory import Ledger
from ..plan import PHASES, Plan, output_names
from .trace import learn, machine_of
from .train import config_of


def main(argv: Sequence[str]) -> int:
    arguments = parser("plan")
    arguments.add_argument("run", type=Path, help="a run file (TOML)")
    arguments.add_argument("settings", nargs="*", help="path=value, laid over the run file")
    arguments.add_argument("--vram", metavar="GIB", help="plan for a card of this size")
    arguments.add_argument("--classics", action="store_true", help="beside it, the usual ways to fine-tune")
    arguments.add_argument("--json", action="store_true", help="for programs")
    given = arguments.parse_intermixed_args(argv)
    config, workspace = config_of(given.run, given.settings), workspaces.default()
    machine = machine_of(given.vram)
    made, found = fitting.draft(config, workspace, machine)
    if found.fits is None:
        print("Finding out what activations take; this is done once for a model.", file=sys.stderr)
        for plan in fitting.unknown(made.plan):
            learn(plan)
        made, found = fitting.draft(config, workspace, machine)
    ideas: list[Change] = []
    if found.fits is False:
        ideas = list(fitting.changes(found, machine, lambda c: planner.draft(c, workspace, machine).plan))
    drawn = classics.drawn(made.facts) if given.classics else ()
    print((as_json if given.json else as_text)(made.plan, found, ideas, drawn))
    return 0


def as_text(
    plan: Plan, found: Fit, ideas: Sequence[Change] = (), drawn: Sequence[classics.Drawn] = ()
) -> str:
    ledger = found.ledger
    images = plan.batch_size * plan.accumulation * plan.processes
    lines = [
        f"{plan.facts.title} ({plan.facts.why}), {plan.facts.prediction_type}, {plan.facts.resolution} px",
        *_download(plan),
        f"{plan.num_images} images, {plan.images_per_epoch} shown per epoch, {plan.num_validation} held out"
        + (f", {plan.num_class_images} class images" if plan.num_class_images else ""),
        f"{plan.total_steps:,} steps of {images} images = {plan.epochs:.1f} epochs",
        f"{ledger.trained:,} trained parameters",
        f"{', '.join(output_names(plan))}: {ledger.exported_bytes / 2**20:.1f} MB",
        f"holds {ledger.held('train') / GIB:.2f} GiB while training{_without(ledger)}",
    ]
    lines += [f"  {choice.path} = {choice.value}: {choice.why}" for choice in plan.choices]
    lines += [f"  Note: {advice.text}" for advice in plan.advice]
    told = [*_verdict(found), *(_idea(change) for change in ideas), *(_classic(one) for one in drawn)]
    return "\n".join([*lines, *told])


def _download(plan: Plan) -> list[str]:
    size = plan.facts.download_bytes
    return [f"downloaded from the hub first, once: {size / 2**30:.1f} GiB"] if size else []


def _verdict(found: Fit) -> list[str]:
    if found.room is None:
        return []
    need = f"{fitting.peak(found.ledger) / GIB:.2f} of {found.room / GIB:.2f} GiB"
    if found.fits is None:
        return ["whether it fits is not known, for activations are not counted"]
    return [f"fits: {need}"] if found.fits else [f"does not fit: {need}"]


def _idea(change: Change) -> str:
    enough = "which would fit" if change.fits else "which is not enough alone"
    return f"  {change.path} = {change.value} would save {change.bytes / GIB:.1f} GiB, {enough}"


def _without(ledger: Ledger) -> str:
    return ", activations not counted: the verb trace finds them" if "train" in ledger.unknown else ""


def _classic(one: classics.Drawn) -> str:
    sums = ", ".join(f"{what} {size / GIB:.2f}" for what, size in one.sums.items())
    fits = {True: "fits", False: "does not fit", None: "not known whether it fits"}[one.fits]
    total = f"{one.bytes / GIB:.2f} GiB: {fits} {classics.CARD_GIB} GiB"
    return f"  {one.classic.title}: {sums}; {total}. {one.classic.says}"


def as_json(
    plan: Plan, found: Fit, ideas: Sequence[Change] = (), drawn: Sequence[classics.Drawn] = ()
) -> str:
    """`fits` is null where activations are not known, true without a card; sizes are bytes."""
    ledger = found.ledger
    return json.dumps(
        {
            "rows": [dataclasses.asdict(row) for row in ledger.rows],
            "peaks": {phase: ledger.held(phase) for phase in PHASES},
            "unknown": ledger.unknown,
            "room": found.room,
            "fits": found.fits,
            "changes": [dataclasses.asdict(change) for change in ideas],
            "computer": [dataclasses.asdict(need) for need in storage.needs(plan, ledger)],
            "choices": {choice.path: {"value": choice.value, "why": choice.why} for choice in plan.choices},
            "steps": plan.total_steps,
            "images": plan.num_images,
            "exported_bytes": ledger.exported_bytes,
            "advice": [advice.text for advice in plan.advice],
            "classics": {one.classic.name: {"fits": one.fits, **one.sums} for one in drawn},
        },
        indent=1,
    )
