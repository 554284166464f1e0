"""Settings compared on the user's own model and machine: which are tried, and what is kept of it.

`compare` is a generator for the console and the page. Imports no torch: every run has a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from .. import config as configs
from .. import files
from ..config import Config
from ..frozen import PARTS
from ..hardware import Machine
from ..plan import Plan
from ..seams import T5
from ..section import UserError, override
from ..workspace import Workspace
from . import child
from .outcomes import MIXED, Comparison, Outcome, Setting, Tried

IMAGES = 32
"""What each run is shown."""
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor")
_QUIET = {
    "train.steps": "1000", "train.validate_every": "0", "data.validation_folder": "",
    "data.validation_split": 0.0, "sample.prompts": [], "checkpoint.every": "0", "run.tracker": "none",
}  # fmt: skip
_COUNTED = {
    "cuda": "the most that torch allocated on the card in a step (max_memory_allocated)",
    "cpu": "weights, the optimizer's state and what a step makes, counted as it is made and freed",
}
_COMPARISON = TypeAdapter(Comparison)
_OUTCOME = TypeAdapter(Outcome)
Run = Callable[[dict[str, Any], int, Path], dict[str, Any]]


@dataclass(frozen=True)
class Progress:
    """`done` of `total` runs are done; `now` is the next, `seconds_left` is None before anything is known."""

    done: int
    total: int
    now: str
    seconds_left: float | None
    found: Comparison


def settings(plan: Plan, machine: Machine) -> tuple[Setting, ...]:
    """Return what is tried: the plan's own settings, each of them changed alone, and what the usual claims
    need besides.
    """
    own = setting_of(plan)
    others = [precision for precision in _precisions(machine) if precision != own.precision]
    side, flipped = own.resolution, not own.checkpointing
    sides = [max(64, round(side * part / 64) * 64) for part in (0.75, 0.5)]
    tried = [own, *(replace(own, precision=precision) for precision in others)]
    tried += [replace(own, checkpointing=flipped)]
    tried += [replace(own, resolution=lower) for lower in sides if lower < side]
    tried += [replace(own, optimizer=name) for name in OPTIMIZERS]
    tried += [replace(own, cached=not own.cached)] if own.cached else []
    tried += [replace(own, precision=precision, checkpointing=flipped) for precision in others]
    return tuple(dict.fromkeys(tried))


def setting_of(plan: Plan) -> Setting:
    cached = plan.cache_latents or plan.cache_text
    return Setting(plan.precision, max(plan.resolutions), plan.checkpointing, plan.optimizer, cached)


def values_of(plan: Plan, setting: Setting) -> dict[str, Any]:
    """Return the run's settings with what is compared put in place, and all else as the plan decided it."""
    cached = {
        "data.cache_latents": "on" if plan.cache_latents and setting.cached else "off",
        "data.cache_text": "on" if plan.cache_text and setting.cached else "off",
    }
    decided = {
        "train.precision": setting.precision,
        "train.resolution": setting.resolution,
        "train.checkpointing": "on" if setting.checkpointing else "off",
        "optim.name": setting.optimizer,
        "optim.lr": plan.lrs.denoiser,
        "train.batch_parts": plan.batch_parts,
        "train.weights": plan.trained_as,
        "train.offload": next(w for w, part in PARTS.items() if part == plan.offloaded and w != "auto"),
        "optim.fused_backward": "on" if plan.fused_backward else "off",
        "base.quantize": plan.frozen_as,
        "base.t5": plan.t5_as if T5 in plan.facts.encoders else "off",
    }
    return override(plan.config.values(), _QUIET | cached | decided)


def compare(
    plan: Plan, machine: Machine, home: Workspace, images: int = IMAGES, run: Run = child.setting
) -> Iterator[Progress]:
    """Try every setting; yields before each and after the last. What is found is kept, of a comparison that
    was made before only once this one is whole.

    Raises:
        UserError: fewer than one image is asked for.
        child.Stopped: it was stopped.
    """
    if images < 1:
        raise UserError(f"--images is {images}.", f"Give 1 or more; {IMAGES} is usual.")
    todo, began = settings(plan, machine), time.monotonic()
    name = machine.card.name if machine.card else "a processor"
    counted = _COUNTED.get(machine.device, _COUNTED["cpu"])
    found, is_first = Comparison(name, time.strftime("%Y-%m-%d"), counted), load(plan.config, home) is None
    for done, setting in enumerate(todo):
        left = (time.monotonic() - began) / done * (len(todo) - done) if done else None
        yield Progress(done, len(todo), setting.name, left, found)
        found = replace(found, rows=(*found.rows, Tried(setting, _outcome(plan, setting, images, home, run))))
        if is_first or done + 1 == len(todo):
            files.write_text(file_for(plan.config, home), _COMPARISON.dump_json(found, indent=1).decode())
    yield Progress(len(todo), len(todo), "", 0.0, found)


def load(config: Config, home: Workspace) -> Comparison | None:
    """Return what was found for these settings before, as far as it went; None if nothing was."""
    file = file_for(config, home)
    return _COMPARISON.validate_json(file.read_bytes()) if file.exists() else None


def file_for(config: Config, home: Workspace) -> Path:
    """Where the comparison of these settings is kept: another name, note or length changes nothing."""
    told = configs.flatten(override(config.values(), _QUIET | {"run.name": "", "run.note": ""}))
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return home.measurements / f"settings-{digest}.json"


def _outcome(plan: Plan, setting: Setting, images: int, home: Workspace, run: Run) -> Outcome:
    try:
        return _OUTCOME.validate_python(run(values_of(plan, setting), images, home.root))
    except child.Stopped:
        raise
    except child.Failed as error:
        return Outcome(failure=f"The run {error}.")


def _precisions(machine: Machine) -> tuple[str, ...]:
    """What the machine can compute in; a processor knows no fp16, an older card emulates bf16 slowly."""
    if machine.device != "cuda" or machine.card is None:
        return ("fp32", "bf16")
    return ("fp32", *MIXED) if machine.card.has_bf16 else ("fp32", "fp16")
