"""Tracing: what a plan's passes hold, found by running them on tensors without bytes, and kept as tables.

Takes seconds for each pass, on any machine, without weights or a card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .. import activations, files
from ..activations import Footprint, Kind, Need, Size, Structure
from ..plan import Plan
from . import fakes, passes
from .fakes import Shape
from .fit import fit

_BASIC, _WIDE = Shape(2, 32, 32), Shape(2, 32, 64)
_POINTS: Mapping[str, Shape] = {
    "constant": _BASIC,
    "batch": _BASIC,
    "batch x area": _WIDE,
    "batch x texts": Shape(3, 32, 32),
    "batch x area x area": Shape(2, 64, 64),
    "batch x area x texts": Shape(2, 32, 64, texts=2),
    "trained": _BASIC,
    "batch x area x trained": _WIDE,
}
"""Where each term shows itself. Blocks of 8 x 8 latents are whole for every denoiser."""
_OF_RANK = ("trained", "batch x area x trained")
"""These are seen at another rank."""
_TERMS: Mapping[Kind, tuple[str, ...]] = {
    "step": ("constant", "batch x area", "batch x texts"),
    "draw": ("batch", "batch x area"),
    "decode": ("batch", "batch x area"),
    "encode": ("batch", "batch x area"),
    "text": ("batch x texts",),
}
_OF_PLAIN: Mapping[Kind, tuple[str, ...]] = {
    "step": ("batch x area x area", "batch x area x texts"),
    "draw": ("batch x area x area",),
    "decode": ("batch x area x area",),
    "encode": ("batch x area x area",),
    "text": (),
}
"""What there is besides where attention keeps its scores."""


def learn(plan: Plan, structure: Structure, folder: Path | None = None) -> Iterator[tuple[Need, Footprint]]:
    """Make the tables that a plan needs and that are not there; yields each when it is kept, in `folder` or
    where this computer's own are.
    """
    for need in activations.missing(plan, structure):
        table = trace(plan, need)
        keep(table, need, folder or activations.made_here())
        yield need, table


def keep(table: Footprint, need: Need, folder: Path) -> None:
    files.write_text(folder / f"{need.key}.json", activations.to_json(table))


def trace(plan: Plan, need: Need) -> Footprint:
    """Run a pass at as many sizes as there are terms."""
    terms = _TERMS[need.kind] + (_OF_PLAIN[need.kind] if plan.device == "mps" else ())
    runs = _runs(plan, need, terms)
    if need.kind == "step" and "rank" in type(plan.config.method).model_fields:
        (first, _), *_ = runs
        at_other_rank = _runs(_at_other_rank(plan), need, _OF_RANK, seen=first.trained)
        terms += _OF_RANK if at_other_rank else ()
        runs += at_other_rank
    sizes, traces = zip(*runs, strict=True)
    return fit(_about(plan, need), terms, sizes, traces)


def _at_other_rank(plan: Plan) -> Plan:
    rank = plan.config.method.rank  # type: ignore[attr-defined]
    method = plan.config.method.model_copy(update={"rank": rank // 2 if rank > 1 else 2})
    return replace(plan, config=plan.config.model_copy(update={"method": method}))


def _runs(plan: Plan, need: Need, terms: Sequence[str], seen: int = -1) -> list[tuple[Size, passes.Trace]]:
    """Run where each term shows itself; not at all if so many numbers are trained as were seen already."""
    with fakes.model(plan, need.phase) as (family, parts):
        trained = sum(p.numel() for m in parts.modules.values() for p in m.parameters() if p.requires_grad)
        if trained == seen:
            return []
        shapes = [_POINTS[term] for term in terms]
        return [(s.size(trained), passes.run(need.kind, plan, family, parts, s)) for s in shapes]


def _about(plan: Plan, need: Need) -> str:
    words = [plan.facts.title, need.kind, plan.device, plan.precision if need.part != "vae" else "fp32"]
    if need.kind == "step":
        words += [plan.config.method.kind, "trains " + ", ".join(plan.trained_parts)]
        words += [f"kept as {plan.trained_as}"] * (plan.trained_as != "fp32")
        words += ["checkpointed"] * plan.checkpointing
    return "; ".join(words)
