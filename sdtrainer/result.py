"""A run's result, or any adapter file, put on its base model for drawing."""

from __future__ import annotations

from pathlib import Path

from . import events, families, methods, probe
from .config import Config, build, parse
from .decisions import with_prediction
from .events import Finished
from .families import BaseSection
from .formats import legacy_pt
from .formats.safetensors_file import read_header
from .sample import Sampler
from .section import UserError
from .workspace import RunFolder


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


def sampler(
    base: BaseSection, adapter: Path | None = None, strength: float = 1.0, zero_terminal_snr: bool = False
) -> Sampler:
    """Load a base model as its settings say, with an adapter file on it at a strength, ready to draw.

    With `zero_terminal_snr` it starts from pure noise, as it was trained with that setting.

    Raises:
        UserError: the base is not found, or the file does not fit it.
    """
    import torch

    from .hardware import detect

    machine = detect()
    has_bf16 = machine.card is not None and machine.card.has_bf16
    dtype = {"cuda": torch.bfloat16 if has_bf16 else torch.float16}.get(machine.device, torch.float32)
    facts = with_prediction(families.recognise(base), base)
    family = families.family_of(facts)
    parts = family.load(facts, facts.parts, {p: torch.float32 if p == "vae" else dtype for p in facts.parts})
    autocast = None if dtype is torch.float32 else dtype
    for module in parts.modules.values():
        module.to(machine.device)
    if facts.is_undecided:
        parts.facts = probe.ask(family, parts, machine.device, autocast).of(facts)
    if zero_terminal_snr:
        parts.schedule = parts.schedule.rescaled()
    if adapter is not None:
        methods.recognise(adapter).put_on(parts, adapter, strength)
    return Sampler(family, parts, machine.device, autocast)
