"""trace RUN.toml [path=value ...] [--vram GIB]: find out what a run's activations take, and keep it.

trace --ship BASE [WORD ...] makes the tables that come with the app for a base model, of those variants whose
settings hold all the words, or for the word "classics" of the usual ways to fine-tune.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from .. import activations, classics, families, fitting, hardware, planner, presets
from .. import config as configs
from .. import workspace as workspaces
from ..__main__ import parser
from ..families import BaseSection
from ..hardware import Machine
from ..memory import structure_of
from ..plan import Plan
from ..section import UserError, override
from .train import config_of

_METHODS: tuple[dict[str, Any], ...] = (
    {"kind": "lora"},
    {"kind": "lora", "targets": "attention"},
    {"kind": "lora", "targets": "with convolutions"},
    {"kind": "lora", "train_text_encoder": True},
    {"kind": "full"},
    {"kind": "full", "train_text_encoder": True},
    {"kind": "full", "layers": "attention"},
    {"kind": "full", "layers": "cross-attention"},
    {"kind": "loha"},
    {"kind": "lokr"},
    {"kind": "textual_inversion"},
    {"kind": "hypernetwork"},
)
_TRAINING = tuple(
    {"precision": precision, "checkpointing": checkpointing}
    for precision, checkpointing in product(("bf16", "fp32"), ("on", "off"))
)


def main(argv: Sequence[str]) -> int:
    arguments = parser("trace")
    arguments.add_argument("run", type=Path, nargs="?", help="a run file (TOML)")
    arguments.add_argument("settings", nargs="*", help="path=value, laid over the run file")
    arguments.add_argument("--vram", metavar="GIB", help="for a card of this size")
    arguments.add_argument("--ship", metavar="BASE", help="make the app's own tables for this base model")
    given = arguments.parse_intermixed_args(argv)
    if given.ship:
        words = [word for word in (given.run and str(given.run), *given.settings) if word]
        for plan in variants(given.ship, words):
            for made in fitting.unknown(plan):
                learn(made, activations.SHIPPED)
        if words in ([], ["classics"]):
            for plan in classics.plans(families.recognise(BaseSection(path=given.ship))).values():
                learn(plan, activations.SHIPPED)
        return 0
    if given.run is None:
        raise UserError("trace: no run file is given.", "Write its path, as in trace run.toml.")
    config = config_of(given.run, given.settings)
    made = planner.draft(config, workspaces.default(), machine_of(given.vram)).plan
    for plan in fitting.unknown(made) or [made]:
        learn(plan)
    return 0


def machine_of(vram: str | None) -> Machine:
    """Return this machine, or one with a card of the size that --vram says. Raises UserError."""
    return hardware.detect() if vram is None else hardware.imagined(hardware.gib_of(vram, "--vram"))


def learn(plan: Plan, folder: Path | None = None) -> None:
    """Trace what is not known yet of a plan's passes, and say so."""
    from .. import trace

    began = time.perf_counter()
    for need, table in trace.learn(plan, structure_of(plan), folder):
        print(f"{need.key}  {table.about}  {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        began = time.perf_counter()


def variants(base: str, words: Sequence[str]) -> Iterator[Plan]:
    """Plans for a card: of every method with the usual settings, and of every preset."""
    usual = [{"method": method, "train": training} for method, training in product(_METHODS, _TRAINING)]
    told = {f"{values['method']} {values['train']}": values for values in usual}
    told |= {f"preset {preset.name}": presets.apply({}, preset) for preset in presets.presets()}
    own = {"base.path": base, "data.folder": "starter", "sample.prompts": ["a picture"]}
    for name, values in told.items():
        if all(word in name for word in words):
            config = configs.build(override(values, own))
            yield planner.draft(config, workspaces.default(), hardware.imagined(24)).plan
