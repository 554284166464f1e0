"""The modules and tokenizers of a base model, from a diffusers folder, the hub or a single file.

Which class each part is, the table of diffusers folders says; so this is the same for every family.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..diffusion import Schedule
from ..formats.diffusers_folder import COMPONENTS, TOKENIZERS, Component, tokenizer_folder, weights_in
from ..seams import T5, Facts, Parts
from ..section import UserError
from . import clip_tokenizer, remote, single_file, t5
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
    try:
        modules, tokenizers = read(facts, parts, dtypes)
    except UserError as error:
        raise (
            error if error.path else UserError(f"Base model: {error.what}", error.hint, "base.path")
        ) from error
    if T5 in modules:
        t5.keep_exact(modules[T5])
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
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    if parts:
        deque(remote.fetch(facts, parts), maxlen=0)
    folder, components = _place(facts), COMPONENTS[facts.family]
    try:
        modules = {part: _read_part(folder, components[part], dtypes[part]) for part in parts}
        return modules, {encoder: _read_tokenizer(folder, encoder) for encoder in facts.encoders}
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"'{facts.path}' could not be loaded ({said[0][:200]}).",
            "Check that the folder is complete, or download the model again.",
        ) from error


def _read_part(folder: Path, component: Component, dtype: torch.dtype) -> torch.nn.Module:
    """The libraries name the number format differently."""
    found = weights_in(folder / component.folder, component.weights)
    if found is None and not any((folder / component.folder).glob("*.bin")):
        raise UserError(
            f"'{component.folder}' in '{folder.name}' holds no weights.",
            "Choose a complete diffusers folder.",
        )
    kind = {"diffusers": "torch_dtype", "transformers": "dtype"}[component.library]
    variant = {"variant": found.variant} if found and found.variant else {}
    return _class(component).from_pretrained(
        folder, subfolder=component.folder, local_files_only=True, **{kind: dtype}, **variant
    )


def _read_file(
    facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, torch.nn.Module], dict[str, Any]]:
    from accelerate import init_empty_weights

    path = _place(facts)
    with init_empty_weights(include_buffers=False):
        empty = {part: _built(part, facts) for part in parts}
    modules = single_file.modules(path, empty, facts.config, dtypes)
    tokenizers = single_file.tokenizers(path, facts.config, facts.learning_encoders)
    if T5 in facts.encoders:
        tokenizers[T5] = t5.tokenizer(facts.t5_words)
    return modules, tokenizers


def _built(part: str, facts: Facts) -> torch.nn.Module:
    """One module from its config, with no weights worth keeping."""
    component = COMPONENTS[facts.family][part]
    cls = _class(component)
    if component.library == "diffusers":
        return cls.from_config(facts.config[part])
    return cls(cls.config_class(**facts.config[part]))


def _read_tokenizer(folder: Path, encoder: str) -> Any:
    cls = getattr(importlib.import_module("transformers"), TOKENIZERS[encoder])
    tokenizer = cls.from_pretrained(folder, subfolder=tokenizer_folder(encoder), local_files_only=True)
    return tokenizer if encoder == T5 else clip_tokenizer.with_whole_words(tokenizer)


def _class(component: Component) -> Any:
    return getattr(importlib.import_module(component.library), component.cls)


def _place(facts: Facts) -> Path:
    return remote.folder_of(facts) if facts.layout == "hub" else Path(facts.path).expanduser()
