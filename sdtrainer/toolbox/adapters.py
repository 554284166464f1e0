"""Adapter files as the tools take them: recognised, fitted to a model, their tensors read when needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import recognition
from ..families import published
from ..formats import lycoris, peft_folder
from ..formats.adapter_file import Layers
from ..formats.kohya import with_text_model
from ..formats.naming import part_name
from ..methods.adapter import read_layers
from ..recognition import Found
from ..recognition.bases import BASES
from ..recognition.contents import contents_of
from ..seams import Parts
from ..section import UserError
from .models import blueprint, mismatch, place_of, recognise

if TYPE_CHECKING:
    import torch

BIASES = ("diff_b", "b_norm")
KINDS = ("LoRA", "LoHa", "LoKr", "DoRA", "set of changed weights")
"""The kinds of adapter that can be computed."""
BASE_HELP = "Needed for models of unusual structure alone, if the file does not name its own."


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """`names` are those in the file. `layers` are its tensors, deferred, by the file's word for the part
    ("unet"), module path and word of lycoris.py. `blueprint` is the model that it fits, without weights.
    """

    path: Path
    found: Found
    metadata: Mapping[str, str]
    names: frozenset[str]
    layers: Layers[Any]
    blueprint: Parts

    @property
    def name(self) -> str:
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def is_dora(self) -> bool:
        return any(is_dora(words) for _, _, words in self.each())

    def each(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Yield part, module path and tensors of every layer."""
        for part, layers in self.layers.items():
            for path, words in layers.items():
                yield part, path, words

    def weight(self, part: str, path: str) -> torch.Tensor:
        """Return a layer's weight in the model, on the meta device."""
        return module_of(self.blueprint, part, path).get_parameter("weight")


def look(path: str, title: str, setting: str) -> Found:
    """Return what an adapter file is.

    Raises:
        UserError: it is none, or of a kind that cannot be computed.
    """
    place = Path(path).expanduser()
    if not path or not place.exists():
        said = f"'{path}' does not exist" if path else "nothing is chosen"
        raise UserError(f"{title}: {said}.", "Give a LoRA, LoHa, LoKr or DoRA file.", setting)
    try:
        found = recognition.look(place)
    except UserError as error:
        raise UserError(f"{title}: {error.what}", error.hint, setting) from None
    if found.kind != "adapter":
        raise UserError(
            f"{title}: {place.name} is {_article(found.title)}, not an adapter.",
            "Give a LoRA, LoHa, LoKr or DoRA file.",
            setting,
        )
    if found.adapter and found.adapter.kind not in KINDS:
        raise UserError(
            f"{title}: {place.name} is {found.title}, a kind that cannot be computed here.",
            "Give a LoRA, LoHa, LoKr or DoRA file.",
            setting,
        )
    return found


def check_pair(found: Found, path: str, model: Path, base: str, title: str, setting: str) -> None:
    """Raise UserError if an adapter is for another kind of model than `base`, which `model` is."""
    if mismatch(base, found):
        raise UserError(
            f"{title}: {Path(path).name} is {found.title}, and {model.name} is {BASES[base].title}.",
            f"Choose a base model of {BASES[found.base].title}, or another adapter.",
            setting,
        )


def blueprint_for(found: Found, path: str, setting: str) -> Parts:
    """Return the published model that an adapter is for, without weights.

    Raises:
        UserError: the file does not tell which.
    """
    if found.base not in published.MODELS:
        raise UserError(
            f"Base model: {Path(path).name} is {found.title}.",
            "Give the base model that it was trained on as well, one of Stable Diffusion 1, 2, XL or 3.",
            setting,
        )
    return blueprint(published.facts_of(found.base))


def open_adapter(path: str, model: Parts, title: str, setting: str) -> AdapterFile:
    """Open an adapter file for a model, whose modules may lack weights. Reads names and shapes.

    Raises:
        UserError: it is no adapter, or does not fit the model.
    """
    found, place = look(path, title, setting), Path(path).expanduser()
    try:
        entries, metadata = _entries(place)
        layers = read_layers(model, entries, metadata)
        return AdapterFile(place, found, metadata, frozenset(entries), layers, model)
    except UserError as error:
        raise UserError(f"{title}: {place.name}: {error.what}", error.hint, setting) from None


def open_alone(path: str, base: str) -> AdapterFile:
    """Open the adapter of a setting `file`, for that of a setting `base` if one is given, or the model that
    it names or tells by its shapes.

    Raises:
        UserError: it is no adapter, or does not fit.
    """
    found = look(path, "Adapter", "file")
    base = base or base_inside(path)
    if not base:
        return open_adapter(path, blueprint_for(found, path, "base"), "Adapter", "file")
    facts, place = recognise(base, "Base model", "base"), place_of(base)
    check_pair(found, path, place, recognition.look(place).base, "Adapter", "file")
    return open_adapter(path, blueprint(facts), "Adapter", "file")


def base_inside(path: str) -> str:
    """Return the base model that a file of ours names in its settings if it is on this machine, or ''."""
    from ..result import config_inside

    place = Path(path).expanduser()
    try:
        config = config_inside(place) if place.suffix == ".safetensors" else None
    except UserError:  # another version's
        return ""
    named = config.base.path if config else ""
    return named if named and place_of(named).exists() else ""


def _entries(place: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The tensors of a file or of peft's folder, deferred, and what its header says. The weights inside such
    a folder mean nothing without the rest of it.
    """
    from ..formats import deferred

    folder = place.parent if place.name == peft_folder.WEIGHTS else place
    if peft_folder.is_folder(folder):
        return peft_folder.read(folder, deferred.tensors)
    return deferred.tensors(place), contents_of(place).metadata


def change(words: Mapping[str, Any], weight: torch.Tensor) -> torch.Tensor | None:
    """Return delta W of a layer in fp32, or None if it changes the bias alone. Of DoRA the weight counts, of
    others its shape.
    """
    kept = {word: _now(tensor) for word, tensor in words.items() if word not in BIASES}
    return lycoris.changes(kept, weight, None)["weight"] if kept else None


def bias_change(words: Mapping[str, Any]) -> torch.Tensor | None:
    """Return what is added to the bias of a layer, or None."""
    return next((_now(words[word]).float() for word in BIASES if word in words), None)


def is_dora(words: Iterable[str]) -> bool:
    return bool({"dora_scale", "magnitude"} & set(words))


def is_text(part: str) -> bool:
    return part.startswith("text_encoder")


def stored_name(part: str, path: str) -> str:
    """Return what a whole model calls the weight of a layer."""
    return f"{with_text_model(path) if is_text(part) else path}.weight"


def module_of(parts: Parts, part: str, path: str) -> torch.nn.Module:
    """Return a module by the file's word for its part."""
    named = {part_name(name, parts.facts): module for name, module in parts.modules.items()}
    return named[part].get_submodule(path)


def _now(tensor: Any) -> torch.Tensor:
    from ..formats import deferred

    return deferred.now(tensor)


def _article(title: str) -> str:
    return title if title.startswith(("a ", "an ", "the ")) else f"a model of {title}"
