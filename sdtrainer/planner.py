"""From a config to a plan: look at base model and images, then decide. Only here do the three meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from . import families, files, plan
from .config import Config
from .data.census import Census, split
from .data.items import max_chunks, plan_items
from .data.overlay import overlay_for
from .data.scan import scan
from .families import ASSETS, STARTER
from .hardware import Machine
from .plan import Plan
from .seams import Facts
from .section import UserError
from .workspace import RunFolder, Workspace

STARTER_IMAGES, STARTER_HELD_OUT = ASSETS / "starter-images", ASSETS / "starter-held-out"


@dataclass(frozen=True)
class Draft:
    """A plan with what it was made from."""

    facts: Facts
    census: Census
    validation: Census | None
    plan: Plan


def draft(
    config: Config, workspace: Workspace, machine: Machine, count_tokens: Callable[[str], int] | None = None
) -> Draft:
    """Look and decide. Without `count_tokens` every caption is taken to fit one window of 75 tokens.

    Raises:
        UserError: names the setting that stands in the way.
    """
    facts = families.recognise(config.base)
    census, validation = look(config, workspace)
    chunks = _chunks(config, (census, validation), count_tokens) if count_tokens else 1
    return Draft(facts, census, validation, plan.resolve(config, facts, census, validation, machine, chunks))


def look(config: Config, workspace: Workspace) -> tuple[Census, Census | None]:
    """Scan the training images and, if any are held out, the validation images."""
    data = config.data
    if not data.folder:
        raise UserError(
            "Images: no folder is chosen.", "Choose the folder with your pictures.", "data.folder"
        )
    census = _scan(data.folder, config, workspace)
    if data.validation_folder:
        return census, _scan(data.validation_folder, config, workspace)
    training, held_out = split(census, data.validation_split)
    return training, held_out if held_out.samples else None


def save(draft_: Draft, folder: RunFolder) -> None:
    """Write census.json, then plan.json: where the plan exists, the census does."""
    files.write_text(folder.census_file, _CENSUSES.dump_json([draft_.census, draft_.validation]).decode())
    save_plan(draft_.plan, folder)


def save_plan(plan_: Plan, folder: RunFolder) -> None:
    files.write_text(folder.plan_file, _PLAN.dump_json(plan_, indent=1).decode())


def load(folder: RunFolder) -> Draft | None:
    """Read back what `save` wrote; None if the run was cut before that."""
    if not folder.plan_file.exists():
        return None
    plan_ = _PLAN.validate_json(folder.plan_file.read_bytes())
    plan_ = dataclasses.replace(plan_, config=folder.config())
    census, validation = _CENSUSES.validate_json(folder.census_file.read_bytes())
    return Draft(plan_.facts, census, validation, plan_)


_PLAN = TypeAdapter(Plan)
_CENSUSES = TypeAdapter(list[Census | None])


def _scan(folder: str, config: Config, workspace: Workspace) -> Census:
    path = resolve_images(folder)
    return scan(path, config.data, overlay_for(workspace.root, path))


def resolve_images(folder: str) -> Path:
    """The folder meant by a setting: 'starter' and 'starter-held-out' are drawings that ship with the app."""
    return {STARTER: STARTER_IMAGES, "starter-held-out": STARTER_HELD_OUT}.get(folder) or Path(
        folder
    ).expanduser()


def _chunks(config: Config, censuses: tuple[Census | None, ...], count_tokens: Callable[[str], int]) -> int:
    samples = [s for c in censuses if c for s in c.samples]
    return max_chunks(plan_items(samples, config.data, (512,)), count_tokens)
