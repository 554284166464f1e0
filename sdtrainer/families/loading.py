"""The modules and tokenizers of a base model, from a diffusers folder, the hub or a single file.

Which class each part is, the table of diffusers folders says; so this is the same for every family.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..diffusion import Schedule
from ..formats.diffusers_folder import COMPONENTS, TOKENIZERS, Component, tokenizer_folder
from ..seams import Facts, Parts
from ..section import UserError
from . import single_file
from .configs import SCHEDULER
from .quiet import no_loading_bars

if TYPE_CHECKING:
    import torch


def load(facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> Parts:
    """Load the named parts, frozen, in eval mode, on the CPU, and all tokenizers.

    Raises:
        UserError: something is missing or damaged.
    """
    no_loading_bars()
    read = _read_file if facts.layout == "file" else _read_folder
    modules, tokenizers = read(facts, parts, dtypes)
    frozen = {part: module.requires_grad_(False).eval() for part, module in modules.items()}
    return Parts(facts, frozen, tokenizers, Schedule.from_config(facts.config[SCHEDULER]))


def skeleton(facts: Facts) -> dict[str, torch.nn.Module]:
    """Build the modules on the meta device."""
    import torch

    with torch.device("meta"):
        return {part: _built(part, facts) for part in facts.parts}


def _read_folder(
    facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, torch.nn.Module], dict[str, Any]]:
    path, components = _place(facts), COMPONENTS[facts.family]
    try:
        modules = {part: _read_part(path, components[part], dtypes[part]) for part in parts}
        return modules, {
            encoder: _tokenizer(encoder).from_pretrained(path, subfolder=tokenizer_folder(encoder))
            for encoder in facts.encoders
        }
    except (OSError, ValueError) as error:
        raise UserError(
            f"Base model: '{facts.path}' could not be loaded ({str(error).splitlines()[0][:200]}).",
            "Check that the folder is complete, or that this machine is online for a hub id.",
            "base.path",
        ) from error


def _read_part(path: str, component: Component, dtype: torch.dtype) -> torch.nn.Module:
    """The libraries name the number format differently."""
    kind = {"diffusers": "torch_dtype", "transformers": "dtype"}[component.library]
    return _class(component).from_pretrained(path, subfolder=component.folder, **{kind: dtype})


def _read_file(
    facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, torch.nn.Module], dict[str, Any]]:
    from accelerate import init_empty_weights

    path = Path(_place(facts))
    with init_empty_weights(include_buffers=False):
        empty = {part: _built(part, facts) for part in parts}
    modules = single_file.modules(path, empty, facts.config, dtypes)
    return modules, single_file.tokenizers(path, facts.config, facts.encoders)


def _built(part: str, facts: Facts) -> torch.nn.Module:
    """One module from its config, with no weights worth keeping."""
    component = COMPONENTS[facts.family][part]
    cls = _class(component)
    if component.library == "diffusers":
        return cls.from_config(facts.config[part])
    return cls(cls.config_class(**facts.config[part]))


def _tokenizer(encoder: str) -> Any:
    return getattr(importlib.import_module("transformers"), TOKENIZERS[encoder])


def _class(component: Component) -> Any:
    return getattr(importlib.import_module(component.library), component.cls)


def _place(facts: Facts) -> str:
    return facts.path if facts.layout == "hub" else str(Path(facts.path).expanduser())
