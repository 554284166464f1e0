"""The families of base models, in the order in which they are asked to recognise a path."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .. import recognition
from ..recognition import Found
from ..recognition.bases import AUTO, BASES, stated
from ..section import UserError
from . import remote, t5
from .section import STARTER, BaseSection

if TYPE_CHECKING:
    from ..seams import Facts, Family

FAMILIES = ("sd", "sdxl", "sd3")
ASSETS = Path(__file__).parents[2] / "assets"

__all__ = ["ASSETS", "FAMILIES", "STARTER", "BaseSection", "family_of", "recognise", "why_no_base"]


@cache
def load_family(name: str) -> Family:
    return importlib.import_module(f".{name}", __package__).FAMILY


def family_of(facts: Facts) -> Family:
    """Return the family that recognised these facts."""
    return load_family(facts.family)


def recognise(section: BaseSection) -> Facts:
    """Say what the base model is, without loading weights.

    Raises:
        UserError: nothing that can be trained lies at the path; says what does.
    """
    path = str(ASSETS / "starter-model") if section.path == STARTER else section.path
    found = _seen(path)
    taken = found.taken_as(section.family)
    if refusal := _contradicted(path, found, section.family) or why_no_base(path, taken):
        raise refusal
    facts = load_family(BASES[taken.base].family).recognise(path, section.family)
    if facts is None:
        raise _nothing(section.path)
    if taken is not found:
        why = f"your setting Family; by itself it is {found.title}, told by {found.why}"
        facts = replace(facts, is_stated=True, why=why)
    facts = t5.settled(facts, section)
    return replace(facts, download_bytes=sum(remote.missing(facts).values()))


def why_no_base(path: str, found: Found) -> UserError | None:
    """Return why what was found cannot be trained, or None if it can."""
    name = Path(path).name
    if found.kind == "unknown":
        return _nothing(path)
    if found.kind not in ("model", "folder"):
        return _refused(f"{name} is {found.title}, not a base model", _remedy(found) + _statable(found))
    if found.variant:
        ordinary = f"Choose an ordinary model of {BASES[found.base].title}."
        return _refused(f"{name} is {found.title}", ordinary + _statable(found))
    if BASES[found.base].family not in FAMILIES:
        return _refused(f"{name} is {found.title}, which cannot be trained here yet", f"Choose {_known()}.")
    if found.missing:
        parts = " and ".join(found.missing)
        return _refused(f"{name} lacks its {parts}", "Choose a complete version of this model.")
    return None


def _seen(path: str) -> Found:
    """What lies there. Raises UserError if nothing does, or it cannot be looked at."""
    is_hub = remote.is_id(path)
    place = remote.described(path) if is_hub else Path(path).expanduser()
    if place is None:
        raise remote.no_model(path)
    if not place.exists():
        raise _nothing(path)
    try:
        return recognition.look(place, reads_weights=not is_hub)
    except UserError as error:
        raise UserError(f"Base model: {error.what}", error.hint, "base.path") from None


def _contradicted(path: str, found: Found, family: str) -> UserError | None:
    """Why something that can be trained is not of the stated family, or None."""
    fitting = [one for one in (found, *found.otherwise) if why_no_base(path, one) is None]
    if family == AUTO or not fitting or family in {stated(one.base) for one in fitting}:
        return None
    if is_known := fitting[0] is found:
        fitting = fitting[:1]
    shapes = " or ".join(BASES[one.base].title for one in fitting)
    remedy = AUTO if is_known else " or ".join(stated(one.base) for one in fitting)
    return UserError(
        f"Base model: {Path(path).name} has the shapes of {shapes}, but Family is {family}.",
        f"Set Family to {remedy}.",
        "base.family",
    )


def _statable(found: Found) -> str:
    """What else may be done, if the user can say that a file is what it does not say itself."""
    words = " or ".join(stated(one.base) for one in found.otherwise)
    return f" If it is built like one, set Family to {words}." if words else ""


def _remedy(found: Found) -> str:
    base = BASES.get(found.base)
    wanted = f"a whole model of {base.title}" if base else "a whole model"
    if found.kind == "adapter" and base and base.family in FAMILIES:
        return f"Choose {wanted}, such as the one that it was made for."
    return f"Choose {wanted if base and base.family in FAMILIES else _known()}."


def _known() -> str:
    """The base models that can be trained, in words."""
    titles = [base.title for base in BASES.values() if base.family in FAMILIES]
    return f"a whole model of {', '.join(titles[:-1])} or {titles[-1]}"


def _refused(what: str, hint: str) -> UserError:
    return UserError(f"Base model: {what}.", hint, "base.path")


def _nothing(path: str) -> UserError:
    return _refused(
        f"nothing that can be trained was found at '{path}'",
        "Give a diffusers folder (with model_index.json), a .safetensors or .ckpt file of a whole model, or "
        "a hub id such as owner/name.",
    )
