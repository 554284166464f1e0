"""Activations: what a pass through the model holds besides the model, looked up in tables and scaled.

A table belongs to one kind of pass over one structure: layers, what is trained, precision, checkpointing and
kind of device. It was made by running that pass on tensors without bytes (trace/), and holds for all sizes:
at every moment of a pass the bytes held are a sum of the terms below. Tables for usual models ship with the
app; others are made when first asked for. This module makes none and imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import optim, workspace
from .plan import CLASS_IMAGE_BATCH, Phase, Plan
from .seams import BYTES, DENOISER, VAE

if TYPE_CHECKING:
    import torch

Kind = Literal["step", "draw", "decode", "encode", "text"]
"""Pass forward and backward; denoiser alone; latents to pixels; pixels to latents; captions."""

SHIPPED = workspace.PROJECT / "assets" / "activations"
TEXT_BATCH = 8
"""How many captions are encoded at once."""
_VERSION = 1


@dataclass(frozen=True)
class Size:
    """`area` counts the latents of one image, `texts` the windows of 77 tokens of one caption, `trained` the
    trained numbers.
    """

    batch: int
    area: int
    texts: int = 1
    trained: int = 0


TERMS: Mapping[str, Callable[[Size], float]] = {
    "constant": lambda s: 1.0,
    "batch": lambda s: s.batch,
    "batch x area": lambda s: s.batch * s.area,
    "batch x texts": lambda s: s.batch * s.texts,
    "batch x area x area": lambda s: s.batch * s.area**2,
    "batch x area x texts": lambda s: s.batch * s.area * s.texts,
    "trained": lambda s: s.trained,
    "batch x area x trained": lambda s: s.batch * s.area * s.trained,
}


@dataclass(frozen=True)
class Moment:
    """Bytes held at one moment of a pass: `gradients` of trained weights, and a factor for each term."""

    gradients: int
    factors: tuple[float, ...]


@dataclass(frozen=True)
class Footprint:
    """What one kind of pass holds. `saved` is what waits for the backward pass; of all moments those are kept
    that are the greatest for some size.
    """

    about: str
    terms: tuple[str, ...]
    saved: tuple[float, ...]
    moments: tuple[Moment, ...]

    def saved_bytes(self, size: Size) -> int:
        return round(self._sum(self.saved, size))

    def peak_bytes(self, size: Size, with_gradients: bool = True) -> int:
        """The most that is held at once, gradients of trained weights included as they come up; or without
        them, where they stay from one pass to the next or go as soon as they are there.
        """
        return round(
            max(
                self._sum(moment.factors, size) + (moment.gradients if with_gradients else 0)
                for moment in self.moments
            )
        )

    def _sum(self, factors: Sequence[float], size: Size) -> float:
        values = [TERMS[term](size) for term in self.terms]
        return sum(factor * value for factor, value in zip(factors, values, strict=True))


@dataclass(frozen=True)
class Structure:
    """A model with its method as a digest for each part, before and after the method is attached. `trained`
    counts all trained numbers, `largest` those of the largest parameter.
    """

    base: Mapping[str, str]
    attached: Mapping[str, str]
    trained: int
    largest: int


@dataclass(frozen=True)
class Need:
    """One pass that a plan makes: its table is `key`, its size `size`."""

    kind: Kind
    phase: Phase
    part: str
    key: str
    size: Size


@dataclass(frozen=True)
class Held:
    """`bytes` that a phase of a plan holds in `part` besides weights, gradients and optimizer."""

    part: str
    phase: Phase
    what: Literal["activations", "temporary"]
    bytes: int


def digests(modules: Mapping[str, torch.nn.Module], rank_varies: bool = False) -> dict[str, str]:
    """Return what tells the modules from others, as far as activations go.

    The shapes of adapters do not count where their rank is a term of its own.
    """
    return {part: _digest(_traits(module, rank_varies)) for part, module in modules.items()}


def _traits(module: torch.nn.Module, rank_varies: bool) -> Iterable[str]:
    for path, layer in module.named_modules():
        heads = vars(layer).get("heads", vars(layer).get("num_heads", ""))
        yield f"{path} {type(layer).__name__} {heads}"
    for name, parameter in module.named_parameters():
        shape = () if rank_varies and parameter.requires_grad else tuple(parameter.shape)
        yield f"{name} {parameter.requires_grad} {shape}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def needs(plan: Plan, structure: Structure) -> tuple[Need, ...]:
    """Return the passes that a plan makes, of each phase those that may hold the most."""
    found = []
    if plan.total_steps:
        found.append(_need("step", "train", DENOISER, plan, structure, _trained_size(plan, structure)))
    if plan.cache_latents:
        found.append(_need("encode", "cache", VAE, plan, structure, Size(1, _area(plan))))
    if plan.cache_text:
        text = Size(TEXT_BATCH, 0, plan.chunks)
        found.append(_need("text", "cache", plan.facts.encoders[0], plan, structure, text))
    draws_class_images = plan.num_class_images > 0 and not plan.config.prior.folder
    if draws_class_images or plan.config.sample.prompts:
        images = CLASS_IMAGE_BATCH if draws_class_images else 1
        drawn, area = plan.config.sample, plan.facts.pixels_per_latent**2
        side = max(plan.resolutions)
        area = max((drawn.width or side) * (drawn.height or side), side**2 * draws_class_images) // area
        found.append(_need("draw", "sample", DENOISER, plan, structure, Size(2 * images, area)))
        found.append(_need("decode", "sample", VAE, plan, structure, Size(1, area)))
    return tuple(found)


def _trained_size(plan: Plan, structure: Structure) -> Size:
    return Size(plan.part_size, _area(plan), plan.chunks, structure.trained)


def _area(plan: Plan) -> int:
    """Latents of the largest pictures trained at."""
    sides = (map(int, bucket.split(" x ")) for bucket in plan.buckets)
    return max(width * height for width, height in sides) // plan.facts.pixels_per_latent**2


_PARTS: Mapping[Kind, Callable[[Plan], Iterable[str]]] = {
    "step": lambda p: (x.part for x in p.placements if x.phase == "train" and x.device == p.device),
    "draw": lambda p: (DENOISER,),
    "decode": lambda p: (VAE,),
    "encode": lambda p: (VAE,),
    "text": lambda p: p.facts.encoders,
}


def _need(kind: Kind, phase: Phase, part: str, plan: Plan, structure: Structure, size: Size) -> Need:
    is_step = kind == "step"
    signs = structure.attached if is_step else structure.base
    told: list[Any] = [_VERSION, kind, plan.device, kind not in ("encode", "decode") and _is_short(plan)]
    if is_step:
        told += [plan.cache_latents, plan.cache_text, plan.config.base.clip_skip > 0]
        told += ["trained as"] if plan.trained_as != "fp32" else []  # autocast makes no copies of them
    for name in _PARTS[kind](plan):
        place = plan.place(name, phase)
        told += [name, signs[name], place.precision != "fp32", place.is_checkpointed]
    return Need(kind, phase, part, _digest([json.dumps(told)]), size)


def _is_short(plan: Plan) -> bool:
    return plan.precision != "fp32"


def estimate(plan: Plan, structure: Structure, home: Path | None = None) -> tuple[Held, ...]:
    """Return what each phase holds at its greatest moment; nothing of a pass whose table is missing.

    With the plan's gradients, which a ledger counts apart, the rows of a phase make its greatest moment;
    where parts take turns, the rows of each part make its own.
    """
    held: dict[tuple[Phase, str], tuple[Held, ...]] = {}
    in_turn = {"cache"} if plan.device != "cpu" else set()
    in_turn |= {"sample"} if plan.draws_in_turn else set()
    for need in needs(plan, structure):
        table = look_up(need.key, home)
        if table is not None:
            rows = _rows(need, table, plan, structure)
            moment = need.phase, need.part if need.phase in in_turn else ""
            if sum(row.bytes for row in rows) > sum(row.bytes for row in held.get(moment, ())):
                held[moment] = rows
    return tuple(row for rows in held.values() for row in rows if row.bytes)


def _rows(need: Need, table: Footprint, plan: Plan, structure: Structure) -> tuple[Held, ...]:
    if need.kind == "step":
        saved, rest = table.saved_bytes(need.size), _beside_gradients(need, table, plan, structure)
    else:
        saved, rest = 0, table.peak_bytes(need.size)
    if need.kind == "draw" and _is_short(plan) and (plan.trained_as == "fp32" or plan.config.optim.ema):
        rest += 2 * structure.trained  # autocast's copies of the trained weights, or of their average
    saved = min(saved, rest)
    return (
        Held(need.part, need.phase, "activations", saved),
        Held(need.part, need.phase, "temporary", rest - saved),
    )


def _beside_gradients(need: Need, table: Footprint, plan: Plan, structure: Structure) -> int:
    """The most that a step holds at once, less the gradients that a ledger counts.

    The optimizer's turn comes after the backward pass; with fused backward it comes within, and is taken to
    come when most is held.
    """
    width, turn = BYTES[plan.trained_as], _update_bytes(plan, structure)
    if plan.fused_backward:
        return max(0, table.peak_bytes(need.size, with_gradients=False) + turn - width * structure.largest)
    if plan.accumulation > 1 or plan.batch_parts > 1:
        return max(table.peak_bytes(need.size, with_gradients=False), turn)
    return max(table.peak_bytes(need.size) - width * structure.trained, turn)


def _update_bytes(plan: Plan, structure: Structure) -> int:
    """What the update of the largest parameter takes: the optimizer's own, and fp32 copies of weight and
    gradient where they are not fp32.
    """
    copies = 0 if plan.trained_as == "fp32" else 2 * BYTES["fp32"]
    return structure.largest * (optim.find(plan.optimizer).scratch + copies)


def missing(plan: Plan, structure: Structure, home: Path | None = None) -> tuple[Need, ...]:
    """Return the passes of which nothing is known yet."""
    return tuple(need for need in needs(plan, structure) if look_up(need.key, home) is None)


def made_here(home: Path | None = None) -> Path:
    """Return the folder of the tables that this machine made."""
    return (home or workspace.default().cache) / "activations"


def look_up(key: str, home: Path | None = None) -> Footprint | None:
    """Return a table that ships or was made here; None if there is none."""
    folders = (SHIPPED, made_here(home))
    return next((_read(path) for f in folders if (path := f / f"{key}.json").exists()), None)


@lru_cache(maxsize=256)
def _read(path: Path) -> Footprint:
    values = json.loads(path.read_text(encoding="utf-8"))
    moments = tuple(Moment(gradients, tuple(factors)) for gradients, *factors in values["moments"])
    return Footprint(values["about"], tuple(values["terms"]), tuple(values["saved"]), moments)


def to_json(table: Footprint) -> str:
    """Return a table as it is kept in a file."""
    moments = [[m.gradients, *m.factors] for m in table.moments]
    values = {"about": table.about, "terms": table.terms, "saved": table.saved, "moments": moments}
    return json.dumps(values, indent=1)
