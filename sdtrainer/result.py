"""A run's result, or any adapter file, put on its base model for drawing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import drawing, events, families, hardware, methods, probe
from .config import Config, build, parse
from .decisions import with_prediction
from .events import Finished
from .families import BaseSection
from .formats import legacy_pt
from .formats.safetensors_file import read_header
from .plan import Plan
from .sample import Request, Sampler
from .seams import T5, VAE, Parts
from .section import UserError
from .training.base import DTYPES, bring_only, loaded, move_to
from .training.shortage import first_that_fits
from .workspace import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image


def exported_file(folder: RunFolder) -> Path:
    """Return the file that a run exported last. Raises UserError if there is none."""
    ends = [event for event, _ in events.read(folder.events_file) if isinstance(event, Finished)]
    path = folder.path / ends[-1].path if ends else None
    if path is None or not path.exists():
        raise UserError(
            f"Run '{folder.name}' has no exported file yet.", "Let it finish, or press Stop and keep."
        )
    return path


def config_inside(file: Path) -> Config | None:
    """Return the settings that an exported file carries, or None."""
    inside = legacy_pt.read(file) if file.suffix == ".pt" else read_header(file).metadata
    text = inside.get("sdtrainer_config")
    return build(parse(text, file.name), file.name) if text else None


@dataclass(frozen=True)
class Worn:
    """An adapter file at a strength; at 0 it is left off."""

    file: Path
    strength: float = 1.0


@dataclass
class Loaded:
    """A base model in main memory, ready to wear adapters, and the plan by which it draws."""

    plan: Plan
    parts: Parts

    def wearing(self, worn: Sequence[Worn], is_last: bool = True) -> Sampler:
        """Return a sampler with these adapters on. Unless this is the last time, the model itself stays as it
        is, and a copy wears them.

        Raises:
            UserError: a file does not fit this base, or is no adapter.
        """
        plan, parts = self.plan, self.parts if is_last else _copied(self.parts)
        family, device = families.family_of(plan.facts), plan.device
        autocast = None if plan.precision == "fp32" else DTYPES[plan.precision]
        bring = partial(bring_only, parts, plan) if plan.draws_in_turn else None
        if bring is None:
            move_to(parts, plan, "sample")
        if parts.facts.is_undecided:
            found = probe.ask(family, parts, device, autocast, bring or (lambda names: None))
            parts.facts = self.parts.facts = found.of(parts.facts)
        for one in worn:
            if one.strength:
                methods.recognise(one.file).put_on(parts, one.file, one.strength)
        return Sampler(family, parts, device, autocast, bring)

    def draw(self, sampler: Sampler, request: Request) -> Image:
        """Return a picture; where the card's memory runs out, one part after the other and in tiles."""
        plan, parts = self.plan, sampler.parts

        def usual() -> Image:
            if not plan.draws_in_turn:
                move_to(parts, plan, "sample")
            return sampler.draw(request)

        frugal = partial(sampler.draw, request, partial(bring_only, parts, plan), is_tiled=True)
        return first_that_fits(usual, usual, frugal)


def load(base: BaseSection, zero_terminal_snr: bool = False, size: tuple[int, int] = (0, 0)) -> Loaded:
    """Load a base model as its settings say, to draw pictures of this width and height (0: its own). With
    `zero_terminal_snr` it starts from pure noise, as it was trained with that setting.

    Raises:
        UserError: it is not found, or cannot draw this size.
    """
    facts = with_prediction(families.recognise(base), base)
    plan = drawing.plan(base, facts, hardware.detect(), size, zero_terminal_snr)
    parts = loaded(plan, families.family_of(plan.facts))
    if zero_terminal_snr:
        parts.schedule = parts.schedule.rescaled()
    return Loaded(plan, parts)


def sampler(
    base: BaseSection, adapter: Path | None = None, strength: float = 1.0, zero_terminal_snr: bool = False
) -> Sampler:
    """Load a base model with an adapter file on it at a strength, ready to draw. Raises UserError."""
    return load(base, zero_terminal_snr).wearing([Worn(adapter, strength)] if adapter else [])


def _copied(parts: Parts) -> Parts:
    """All but VAE and T5, which no adapter changes."""
    kept = [parts.modules[name] for name in (VAE, T5) if name in parts.modules]
    return copy.deepcopy(parts, {id(module): module for module in kept})
