"""Base models of the hub: which files of a repository are needed, and which of them are missing here.

What is in the hub's cache is used without asking anyone, so that a model which was fetched once works without
a network. Of its weights one precision is fetched, of each part that is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from .. import hub
from ..events import Event
from ..formats.diffusers_folder import COMPONENTS, INDEX, Component, weights_in
from ..seams import Facts
from ..section import UserError

_SMALL = (INDEX, "*/*.json", "*/*.txt", "*/*.model")
"""The files that say what a model is: index, configs, tokenizers, lists of weights."""
_WEIGHTS = ("*.safetensors", "*.bin")
_SETTING = "base.path"


def is_id(path: str) -> bool:
    """Return whether this may be an id of the hub, and no path of this machine."""
    return hub.is_id(path) and not Path(path).expanduser().exists()


def described(repo: str) -> Path | None:
    """Return the folder of a repository with all of its files but the weights, fetched if need be; None if
    it holds no diffusers model.

    Raises:
        UserError: the hub cannot be reached, or does not give it out.
    """
    wanted = hub.Wanted(repo, _SMALL, (), _SETTING)
    folder = hub.here(wanted)
    if folder is None or not (folder / INDEX).is_file():
        folder = hub.fetched(wanted)
    return folder if (folder / INDEX).is_file() else None


def missing(facts: Facts, parts: Iterable[str] = ()) -> dict[str, int]:
    """Return the files of weights that are not here yet, with their bytes; none for a model on disk. `parts`
    are those asked about, without any all of the model's.

    Raises:
        UserError: the hub cannot be reached, or has no weights.
    """
    if facts.layout != "hub":
        return {}
    folder, components = folder_of(facts), COMPONENTS[facts.family]
    lacking = [components[part] for part in parts or facts.parts]
    lacking = [component for component in lacking if not _is_there(folder, component)]
    if not lacking:
        return {}
    sizes = _sizes(facts.path)
    return {name: sizes[name] for component in lacking for name in _needed(facts.path, component, sizes)}


def fetch(facts: Facts, parts: Iterable[str] = ()) -> Iterator[Event]:
    """Fetch what is missing of a model; nothing is said where all of it is here.

    Raises:
        UserError: the hub cannot be reached, what came is damaged, or the disk is too small.
    """
    if wanted := tuple(missing(facts, parts)):
        yield from hub.fetch(hub.Wanted(facts.path, wanted, wanted, _SETTING))


def folder_of(facts: Facts) -> Path:
    """Return where the files of a model on the hub lie, whole or not. Raises UserError, as `described`."""
    folder = described(facts.path)
    if folder is None:
        raise no_model(facts.path)
    return folder


def no_model(repo: str) -> UserError:
    """Say that a repository holds no diffusers model."""
    return UserError(
        f"Base model: '{repo}' on the hub is no diffusers model: it has no {INDEX}.",
        "If it offers the model as one .safetensors file, download that file and choose it here.",
        _SETTING,
    )


def _is_there(folder: Path, component: Component) -> bool:
    try:
        found = weights_in(folder / component.folder, component.weights)
    except UserError:  # the list is there, the weights are not
        return False
    return found is not None or any((folder / component.folder).glob("*.bin"))


def _needed(repo: str, component: Component, names: Mapping[str, int]) -> list[str]:
    """The files of one part's weights in the precision that is smallest: half, as models are shared in one
    file, else the plain one; .bin where there is no .safetensors.
    """
    stem = re.escape(component.weights)
    old = "pytorch_model" if component.library == "transformers" else stem
    for start, end in ((stem, "safetensors"), (old, "bin")):
        for variant in (r"\.fp16", r"\.bf16", ""):
            shard = r"(-\d+-of-\d+)?"
            pattern = re.compile(rf"{component.folder}/{start}{shard}{variant}{shard}\.{end}")
            if found := [name for name in names if pattern.fullmatch(name)]:
                return found
    raise UserError(
        f"Base model: '{repo}' on the hub has no weights for its {component.folder}.",
        "Choose another model.",
        _SETTING,
    )


@lru_cache(maxsize=8)
def _sizes(repo: str) -> dict[str, int]:
    """Bytes of all weights of a repository by file."""
    return hub.sizes(hub.Wanted(repo, _WEIGHTS, (), _SETTING))
