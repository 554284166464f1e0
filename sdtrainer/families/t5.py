"""T5, the third text encoder of Stable Diffusion 3: whether it reads, and with whose words.

A single file may hold its weights and never its words, which ship with no package either: they are looked for
on this computer. Asks no hub.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..seams import T5, Facts
from ..section import UserError
from .section import BaseSection

if TYPE_CHECKING:
    import torch

WORDS = "tokenizer.json"
FOLDERS = ("tokenizer_3", "tokenizer_2", "")
"""Where a downloaded model keeps T5's words: Stable Diffusion 3, Flux, T5 itself."""
HOMES = (
    "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/stable-diffusion-3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo",
    "stabilityai/stable-diffusion-3-medium-diffusers",
    "black-forest-labs/FLUX.1-schnell",
    "black-forest-labs/FLUX.1-dev",
    "google/t5-v1_1-xxl",
)
"""Models on the hub that share these words."""
_SETTING = "base.t5_words"


def settled(facts: Facts, section: BaseSection) -> Facts:
    """Return the facts with T5 or without it, as the settings say and as there are words for it.

    Raises:
        UserError: T5 is asked for, and its words are not found.
    """
    if T5 not in facts.encoders:
        return facts
    without = replace(facts, encoders=facts.learning_encoders)
    if section.t5 == "off":
        return without
    if facts.layout != "file":
        return facts
    folder = find(section.t5_words)
    if folder is not None:
        return replace(facts, t5_words=str(folder))
    hint = f"Give T5's words: a folder with its {WORDS}, such as tokenizer_3 of a downloaded model."
    if section.t5 != "auto":
        raise UserError(f"T5: it is set to {section.t5}, but its words were not found.", hint, _SETTING)
    note = "T5 is in this file but is left out: its words are not, and were not found on this computer."
    return replace(without, note=f"{note} {hint}")


def find(folder: str) -> Path | None:
    """Return the folder that holds T5's words: the one given, or one that was downloaded before; None if
    there is none.

    Raises:
        UserError: the folder given has none.
    """
    if not folder:
        return next(_downloaded(), None)
    places = [Path(folder).expanduser() / name for name in ("", "tokenizer_3")]
    found = next((place for place in places if (place / WORDS).is_file()), None)
    if found is None:
        raise UserError(f"T5's words: '{folder}' has no {WORDS}.", "Choose a folder that has.", _SETTING)
    return found


def _downloaded() -> Iterable[Path]:
    """Yield the places in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    for home in HOMES:
        for folder in FOLDERS:
            found = try_to_load_from_cache(home, f"{folder}/{WORDS}".lstrip("/"))
            if isinstance(found, str):
                yield Path(found).parent


def tokenizer(folder: str) -> Any:
    """Return the tokenizer of a folder that `find` found.

    Raises:
        UserError: its file is damaged.
    """
    from transformers import T5TokenizerFast

    try:
        return T5TokenizerFast.from_pretrained(folder)
    except Exception as error:  # the reader of these files knows no narrower one
        raise UserError(
            f"T5's words: {Path(folder) / WORDS} could not be read.", "Choose another folder.", _SETTING
        ) from error


def keep_exact(module: torch.nn.Module) -> None:
    """Keep in fp32 what fp16 would spoil: each block's last layer says numbers that are too large for it."""
    import torch

    for name, layer in module.named_modules():
        is_last = name.endswith(".wo") and isinstance(layer, torch.nn.Linear)
        if is_last and layer.weight.dtype == torch.float16:
            layer.float()
