"""What a file is, by the names and shapes of its tensors: base model, adapter, embedding or something else.

Nothing is loaded and nothing executed: of .safetensors only the header is read. Knows no family: what can be
trained is families' to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from . import adapters, folders, models, others
from .bases import AUTO
from .contents import Contents, contents_of
from .found import Found

__all__ = ["Found", "look"]

T = TypeVar("T", dict, list)

_SAYS: Mapping[str, tuple[str, ...]] = {
    "title": ("modelspec.title", "ss_output_name", "name"),
    "author": ("modelspec.author",),
    "trigger words": ("modelspec.trigger_phrase",),
    "trained with": ("sdtrainer_version", "ss_network_module"),
    "base model": ("ss_sd_model_name", "sd_checkpoint_name"),
    "method settings": ("ss_network_args",),
    "images": ("ss_num_train_images",),
    "resolution": ("modelspec.resolution", "ss_resolution"),
    "steps": ("ss_steps", "ss_max_train_steps", "step"),
    "learning rate": ("ss_learning_rate",),
    "optimizer": ("ss_optimizer",),
    "CLIP skip": ("ss_clip_skip",),
    "license": ("modelspec.license",),
}
"""What is shown of a header: the first of these entries that says something."""
_MOST_TAGS, _MOST_LETTERS = 8, 200


def look(path: Path, reads_weights: bool = True, family: str = AUTO) -> Found:
    """Return what lies at `path`, a file or a folder; of a folder without its weights, if need be.

    `family` is what the user says that it is, and counts where its tensors leave that open.

    Raises:
        UserError: naming the file if it is missing, cut short, damaged, or holds program code.
    """
    if path.is_dir():
        found = folders.look(path, reads_weights) or Found(
            "unknown", "a folder without a model", "no model_index.json in it"
        )
        return found.taken_as(family)
    contents = contents_of(path)
    found = _kind_of(path, contents).taken_as(family)
    notes = list(found.notes)
    if not contents.has_header:
        notes.append("It had to be opened as a whole, for its format has no header.")
    if any(part.name == models.EMA_PART for part in found.parts):
        notes.append("The averaged weights (EMA) beside the model's own are not used in training.")
    if found.kind == "model" and found.missing:
        notes.append(f"Missing: {', '.join(found.missing)}.")
    return replace(found, bytes=path.stat().st_size, notes=tuple(notes), says=_said(contents.metadata))


def _kind_of(path: Path, contents: Contents) -> Found:
    return (
        adapters.look(contents)
        or _beside_a_model(path, contents)
        or models.look(path, contents)
        or others.look_after_models(contents)
        or Found(
            "unknown",
            "a file of a kind that is not known here",
            f"{len(contents.tensors):,} tensors of unknown names",
            parts=models.parts_of(contents.tensors, {}),
        )
    )


def _beside_a_model(path: Path, contents: Contents) -> Found | None:
    """What has names of its own, which may be an addition to a whole model in the same file."""
    found, whole = others.look_before_models(contents), models.look(path, contents)
    if found is None or whole is None or whole.kind != "model" or whole.variant or whole.missing:
        return found
    return replace(found, otherwise=(whole,))


def _said(metadata: Mapping[str, str]) -> dict[str, str]:
    told = {
        word: next((metadata[key] for key in keys if metadata.get(key) not in (None, "", "None", "{}")), "")
        for word, keys in _SAYS.items()
    }
    told["trigger words"] = told["trigger words"] or ", ".join(_listed(metadata.get("trained_words", "")))
    told["most frequent tags"] = ", ".join(_tags(metadata.get("ss_tag_frequency", "")))
    return {word: " ".join(text.split())[:_MOST_LETTERS] for word, text in told.items() if text}


def _tags(text: str) -> list[str]:
    """The commonest of {folder: {tag: count}}."""
    counts: dict[str, int] = {}
    for tags in _parsed(text, dict).values():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            counts[tag] = counts.get(tag, 0) + (count if isinstance(count, int) else 0)
    return sorted(counts, key=lambda tag: -counts[tag])[:_MOST_TAGS]


def _listed(text: str) -> list[str]:
    return [str(word) for word in _parsed(text, list)]


def _parsed(text: str, kind: type[T]) -> T:
    try:
        found = json.loads(text)
    except ValueError:
        return kind()
    return found if isinstance(found, kind) else kind()
