"""From a config to a plan: look at base model and images, then decide. Only here do the three meet."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from . import decisions, families, files, trackers
from .advice import advise
from .config import Config
from .data import prior
from .data.census import Census, split
from .data.index import index_for
from .data.items import max_chunks, plan_items
from .data.overlay import overlay_for
from .data.scan import Told, scan
from .families import ASSETS, STARTER
from .hardware import Machine
from .plan import Plan
from .seams import T5, Facts
from .section import UserError
from .workspace import RunFolder, Workspace

STARTER_IMAGES, STARTER_HELD_OUT = ASSETS / "starter-images", ASSETS / "starter-held-out"


LOOKED_AT = (
    "folder", "validation_folder", "validation_split", "caption_from", "masks", "mask_folder",
)  # fmt: skip
"""The settings of images on which it depends what is found."""


class Found(NamedTuple):
    """The images that lie in the folders of a config; `class_images` are the user's own."""

    census: Census
    validation: Census | None
    class_images: Census | None


@dataclass(frozen=True)
class Draft:
    """A plan with what it was made from. Class images that are drawn need not be there yet."""

    facts: Facts
    census: Census
    validation: Census | None
    class_images: Census | None
    plan: Plan


def draft(
    config: Config, workspace: Workspace, machine: Machine, count_tokens: Callable[[str], int] | None = None
) -> Draft:
    """Look and decide. Without `count_tokens` every caption is taken to fit one window of 75 tokens.

    Raises:
        UserError: names the setting that stands in the way.
    """
    facts = families.recognise(config.base)
    return decide(config, facts, look(config, workspace), workspace, machine, count_tokens)


def decide(
    config: Config,
    facts: Facts,
    found: Found,
    workspace: Workspace,
    machine: Machine,
    count_tokens: Callable[[str], int] | None = None,
) -> Draft:
    """Decide, with what was found already. Raises UserError."""
    trackers.check(config.run)
    census, validation, class_images = found
    if config.prior.is_on and class_images is None:
        side = max(decisions.resolutions_of(config, facts))
        class_images = prior.drawn(config.prior, side, class_image_folder(config, facts, workspace))
    chunks = 1
    if count_tokens:
        told = decisions.with_trigger(config, census)
        chunks = _chunks(told, (census, validation), class_images, count_tokens)
    made = decisions.resolve(config, facts, census, validation, machine, chunks, class_images)
    made = dataclasses.replace(made, advice=advise(made, census))
    return Draft(made.facts, census, validation, class_images, made)


def look(config: Config, workspace: Workspace, told: Told = lambda done, num: None) -> Found:
    """Scan the training images, the validation images if any are held out, and own class images. `told` hears
    how many of a folder are read, of how many.
    """
    scanned = partial(_scan, config=config, workspace=workspace, told=told)
    data = config.data
    if not data.folder:
        raise UserError(
            "Images: no folder is chosen.", "Choose the folder with your pictures.", "data.folder"
        )
    census, validation = scanned(data.folder), None
    if data.validation_folder:
        validation = scanned(data.validation_folder, setting="data.validation_folder")
    else:
        census, held_out = split(census, data.validation_split)
        validation = held_out if held_out.samples else None
    if not config.prior.folder:
        return Found(census, validation, None)
    own = scanned(config.prior.folder, setting="prior.folder")
    return Found(census, validation, prior.captioned(own, config.prior))


def class_image_folder(config: Config, facts: Facts, workspace: Workspace) -> Path:
    """Return where class images are drawn: one folder for all that makes them differ, but their number."""
    base, drawn = config.base, config.prior
    told = [base.prediction_type, base.clip_skip, config.noise.zero_terminal_snr]
    told += [drawn.class_prompt.strip(), drawn.negative]
    told += [drawn.steps or facts.sampling_steps, drawn.guidance or facts.guidance]
    told += ["without T5"] * (T5 in facts.config and T5 not in facts.encoders)
    told += [max(decisions.resolutions_of(config, facts)), facts.path, *_stamps(Path(facts.path))]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    words = re.sub(r"\W+", "-", drawn.class_prompt.lower())[:40].strip("-")
    return workspace.class_images / "-".join(filter(None, (words, digest)))


def save(draft_: Draft, folder: RunFolder) -> None:
    """Write census.json, then plan.json: where the plan exists, the census does."""
    censuses = [draft_.census, draft_.validation, draft_.class_images]
    files.write_text(folder.census_file, _CENSUSES.dump_json(censuses).decode())
    save_plan(draft_.plan, folder)


def save_plan(plan_: Plan, folder: RunFolder) -> None:
    files.write_text(folder.plan_file, _PLAN.dump_json(plan_, indent=1).decode())


def load(folder: RunFolder) -> Draft | None:
    """Read back what `save` wrote; None if the run was cut before that."""
    if not folder.plan_file.exists():
        return None
    plan_ = _PLAN.validate_json(folder.plan_file.read_bytes())
    census, validation, class_images = _CENSUSES.validate_json(folder.census_file.read_bytes())
    assert census is not None
    plan_ = dataclasses.replace(plan_, config=decisions.with_trigger(folder.config(), census))
    return Draft(plan_.facts, census, validation, class_images, plan_)


_PLAN = TypeAdapter(Plan)
_CENSUSES = TypeAdapter(list[Census | None])


def _scan(
    folder: str, config: Config, workspace: Workspace, told: Told, setting: str = "data.folder"
) -> Census:
    path, home = resolve_images(folder), workspace.root
    try:
        return scan(path, config.data, overlay_for(home, path), index_for(home, path), told)
    except UserError as error:
        error.path = setting
        raise


def _stamps(model: Path) -> list[list[object]]:
    """What tells a base model on disk from another that was put in its place; empty for a hub id."""
    found = [model] if model.is_file() else sorted(path for path in model.rglob("*") if path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in found]


def resolve_images(folder: str) -> Path:
    """The folder meant by a setting: 'starter' and 'starter-held-out' are drawings that ship with the app."""
    return {STARTER: STARTER_IMAGES, "starter-held-out": STARTER_HELD_OUT}.get(folder) or Path(
        folder
    ).expanduser()


def _chunks(
    config: Config,
    censuses: tuple[Census | None, ...],
    class_images: Census | None,
    count_tokens: Callable[[str], int],
) -> int:
    samples = [s for c in censuses if c for s in c.samples]
    shown = plan_items(samples, config.data, (512,))
    shown += prior.class_items(class_images, config.prior, config.data, (512,))
    return max_chunks(shown, count_tokens)
