"""merge: adapters go into a base model, which then needs no adapter; or out of it again.

W' = W + s dW for every layer of the base, tensor by tensor, into a new file or folder. Each dW is taken from
the base as it was, so that the order of several adapters does not matter.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from .. import files
from ..events import Event, PhaseBegan, Said, Saved
from ..formats import safetensors_file, whole_model
from ..formats.kohya import with_text_model
from ..formats.naming import part_name
from ..seams import T5
from ..section import Section, UserError, knob
from ..workspace import Workspace
from . import adapters, headers, models
from .adapters import AdapterFile
from .models import Model
from .outputs import (
    Stored,
    check_space,
    overwrite_knob,
    precision_knob,
    precision_of,
    progress,
    size,
    size_of,
    target,
    to_knob,
)

if TYPE_CHECKING:
    import torch


class Settings(Section):
    """Puts adapters into a base model for good."""

    base: str = knob(
        "",
        "Base model",
        "The model that the adapters were trained on, or one of the same kind: a .safetensors file or a "
        "diffusers folder. It is not touched.",
        level="basic",
        is_path=True,
    )
    adapters: list[str] = knob(
        [],
        "Adapters",
        "One or more LoRA, LoHa, LoKr or DoRA files, from any trainer.",
        level="basic",
        is_path=True,
    )
    strength: list[float] = knob(
        [1.0],
        "Strength",
        "How much of each adapter: 1 is as trained, 0.5 half. One number for all, or one for each in order.",
        level="basic",
    )
    strength_unet: list[float] = knob(
        [],
        "Strength in the denoiser",
        "In place of Strength for the part that draws. Empty: the same.",
    )
    strength_text_encoder: list[float] = knob(
        [],
        "Strength in the text encoders",
        "In place of Strength for the parts that read the prompt; 0 leaves them alone. Empty: the same.",
    )
    subtract: bool = knob(
        False,
        "Subtract",
        "Takes the adapters out again of a model that they were merged into. What rounding has changed stays "
        "changed; the result says how much that is.",
    )
    layout: Literal["as the base", "file", "folder"] = knob(
        "as the base",
        "Save as a",
        "A single .safetensors file, as A1111, Forge and ComfyUI read it, or a diffusers folder.",
    )
    precision: Stored = precision_knob()
    to: str = to_knob()
    overwrite: bool = overwrite_knob()


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    yield PhaseBegan("work", "Looking at the files")
    base, put = _opened(settings)
    is_folder = base.path.is_dir() if settings.layout == "as the base" else settings.layout == "folder"
    name = "-".join((base.name, "without" if settings.subtract else "with", *(p.file.name for p in put)))
    path = target(
        settings,
        workspace,
        name[:120] + ("" if is_folder else ".safetensors"),
        (base.path, *(p.file.path for p in put)),
    )
    sums = _Rounding()
    whole = replace(base.whole, states=_merged(base, put, settings, sums))
    total = size_of(whole, settings, is_folder)
    check_space(path, total)
    if T5 in whole.states and not is_folder:
        yield Said("info", "T5 stays outside of the file: programs read it from a file of its own.")
    yield PhaseBegan("work", f"Writing {path.name}")
    write = whole_model.diffusers_folder.writing if is_folder else whole_model.writing_file
    header = dict(base.metadata)
    for one in put:
        header = headers.with_history(header, one.story)
    yield from progress(write(path, whole, header, precision_of(settings)), total)
    num_bytes = files.size_of(path)
    yield Saved(0, "export", str(path), num_bytes)
    return {
        "path": str(path),
        "bytes": num_bytes,
        "layers": len({(part, place) for p in put for part, place, _ in p.file.each()}),
        "rounding": sums.rounding,
        "lost": sums.lost,
        "is_subtraction": settings.subtract,
    }


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    done = "taken out of" if answer["is_subtraction"] else "merged into"
    yield f"{answer['layers']:,} layers {done} the model, {size(answer['bytes'])}."
    yield f"Rounding to the file's precision changed no weight by more than {answer['rounding']:.2g}."
    if not answer["is_subtraction"]:
        yield f"Subtracting it again would give the base back to within {answer['lost']:.2g}."
    yield answer["path"]


@dataclass(frozen=True, eq=False)
class _Put:
    """An adapter, with its strength in the denoiser and in the text encoders."""

    file: AdapterFile
    denoiser: float
    text_encoder: float

    @property
    def story(self) -> dict[str, object]:
        return {"merged": self.file.name, "denoiser": self.denoiser, "text encoders": self.text_encoder}

    def strength(self, part: str) -> float:
        return self.text_encoder if adapters.is_text(part) else self.denoiser


class _Rounding:
    """The largest changes that storing makes: to a merged weight, and to one merged and subtracted again."""

    def __init__(self) -> None:
        self.rounding = self.lost = 0.0

    def add(self, exact: torch.Tensor, stored: torch.Tensor, before: torch.Tensor) -> None:
        self.rounding = max(self.rounding, float((stored.float() - exact).abs().max()))
        again = (stored.float() - (exact - before)).to(stored.dtype).float()
        self.lost = max(self.lost, float((again - before).abs().max()))


def _opened(settings: Settings) -> tuple[Model, list[_Put]]:
    """Everything that can be wrong is found here."""
    if not settings.adapters:
        raise UserError("Adapters: none is chosen.", "Give one or more adapter files.", "adapters")
    strengths = _strengths(settings)
    found = [adapters.look(path, "Adapters", "adapters") for path in settings.adapters]
    base = models.open_model(settings.base, "Base model", "base")
    for one, path in zip(found, settings.adapters, strict=True):
        adapters.check_pair(one, path, base.path, base.base, "Adapters", "adapters")
    blueprint, put = base.blueprint, []
    for path, (denoiser, text_encoder) in zip(settings.adapters, strengths, strict=True):
        file = adapters.open_adapter(path, blueprint, "Adapters", "adapters")
        if settings.subtract and file.is_dora:
            raise UserError(
                f"Subtract: {file.path.name} is a DoRA, whose change cannot be told from the merged model.",
                "Use the base model from before the merge.",
                "subtract",
            )
        sign = -1 if settings.subtract else 1
        put.append(_Put(file, sign * denoiser, sign * text_encoder))
    return base, put


def _strengths(settings: Settings) -> list[tuple[float, float]]:
    """For the denoiser and the text encoders, by adapter."""
    count = len(settings.adapters)
    named = {
        "strength": settings.strength or [1.0],
        "strength_unet": settings.strength_unet or settings.strength or [1.0],
        "strength_text_encoder": settings.strength_text_encoder or settings.strength or [1.0],
    }
    for name, given in named.items():
        if len(given) not in (1, count):
            title = Settings.model_fields[name].title
            raise UserError(
                f"{title}: there are {len(given)} numbers for {count} adapters.",
                "Give one number for all, or one for each.",
                name,
            )
    denoiser, text = (
        given * count if len(given) == 1 else given
        for given in (named["strength_unet"], named["strength_text_encoder"])
    )
    return list(zip(denoiser, text, strict=True))


Change = tuple[Mapping[str, Any], float]
"""The tensors of one layer, and their strength."""


def _merged(base: Model, put: Sequence[_Put], settings: Settings, sums: _Rounding) -> dict[str, Any]:
    """The tensors of every part, the changed ones deferred like the others."""
    changes: dict[tuple[str, str], list[Change]] = {}
    for one in put:
        for part, path, words in one.file.each():
            if one.strength(part):
                changes.setdefault((part, path), []).append((words, one.strength(part)))
    states = {part: dict(state) for part, state in base.whole.states.items()}
    by_word = {part_name(part, base.facts): state for part, state in states.items()}
    for (part, path), found in changes.items():
        state = by_word[part]
        name = with_text_model(path) if adapters.is_text(part) else path
        for key, add in ((f"{name}.weight", _plus_weight), (f"{name}.bias", _plus_bias)):
            if key in state:
                state[key] = _deferred(state[key], add, found, settings, sums)
    return states


def _deferred(weight: Any, add: Any, changes: list[Change], settings: Settings, sums: _Rounding) -> Any:
    from ..formats.deferred import Deferred, empty, now

    dtype = safetensors_file.stored_as(weight, precision_of(settings))

    def make() -> torch.Tensor:
        before = now(weight).float()
        exact = add(before, changes)
        stored = exact.to(dtype)
        sums.add(exact, stored, before)
        return stored

    return Deferred(empty(weight).to(dtype), make)


def _plus_weight(before: torch.Tensor, changes: list[Change]) -> torch.Tensor:
    found = [(adapters.change(words, before), strength) for words, strength in changes]
    return sum((strength * delta for delta, strength in found if delta is not None), before)


def _plus_bias(before: torch.Tensor, changes: list[Change]) -> torch.Tensor:
    found = [(adapters.bias_change(words), strength) for words, strength in changes]
    return sum((strength * delta for delta, strength in found if delta is not None), before)
