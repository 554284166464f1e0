"""A run's result, or any adapter file, put on its base model for drawing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import events, families, methods, probe
from .config import Config, build, parse
from .decisions import with_prediction
from .events import Finished
from .families import BaseSection
from .formats import legacy_pt
from .formats.safetensors_file import read_header
from .sample import Sampler
from .seams import Family, Parts
from .section import UserError
from .workspace import RunFolder

if TYPE_CHECKING:
    import torch


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
    """A base model in main memory, ready to wear adapters. `autocast` is None where all is fp32."""

    family: Family
    parts: Parts
    device: str
    autocast: torch.dtype | None

    def wearing(self, worn: Sequence[Worn], is_last: bool = True) -> Sampler:
        """Return a sampler with these adapters on. Unless this is the last time, the model itself stays as it
        is, and a copy wears them.

        Raises:
            UserError: a file does not fit this base, or is no adapter.
        """
        parts = self.parts if is_last else _copied(self.parts)
        for module in parts.modules.values():
            module.to(self.device)
        if parts.facts.is_undecided:
            found = probe.ask(self.family, parts, self.device, self.autocast)
            parts.facts = self.parts.facts = found.of(parts.facts)
        for one in worn:
            if one.strength:
                methods.recognise(one.file).put_on(parts, one.file, one.strength)
        return Sampler(self.family, parts, self.device, self.autocast)


def load(base: BaseSection, zero_terminal_snr: bool = False) -> Loaded:
    """Load a base model as its settings say. With `zero_terminal_snr` it starts from pure noise, as it was
    trained with that setting.

    Raises:
        UserError: it is not found.
    """
    import torch

    from .hardware import detect

    machine = detect()
    has_bf16 = machine.card is not None and machine.card.has_bf16
    dtype = {"cuda": torch.bfloat16 if has_bf16 else torch.float16}.get(machine.device, torch.float32)
    facts = with_prediction(families.recognise(base), base)
    family = families.family_of(facts)
    parts = family.load(facts, facts.parts, {p: torch.float32 if p == "vae" else dtype for p in facts.parts})
    if zero_terminal_snr:
        parts.schedule = parts.schedule.rescaled()
    return Loaded(family, parts, machine.device, None if dtype is torch.float32 else dtype)


def sampler(
    base: BaseSection, adapter: Path | None = None, strength: float = 1.0, zero_terminal_snr: bool = False
) -> Sampler:
    """Load a base model with an adapter file on it at a strength, ready to draw. Raises UserError."""
    return load(base, zero_terminal_snr).wearing([Worn(adapter, strength)] if adapter else [])


def _copied(parts: Parts) -> Parts:
    """All but the VAE, which no adapter changes."""
    return copy.deepcopy(parts, {id(parts.vae): parts.vae})
