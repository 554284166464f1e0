"""From traces of a pass at a few sizes to its footprint at all sizes.

A pass makes the same operations whatever the size, so that each moment of one trace has its counterpart in
the others. The bytes held at a moment are linear in the terms of `activations.TERMS`; with as many traces as
terms the factors follow exactly. Of the thousands of moments only those stay that are the greatest for some
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from ..activations import TERMS, Footprint, Moment, Size
from .passes import Trace

_BATCHES, _AREAS, _TEXTS = (1, 2, 3, 4, 6, 8, 16, 64), (8, 16, 24, 32, 48, 64, 96, 128, 256), (1, 2, 4)
_RANKS = (0.1, 0.5, 1.0, 4.0, 16.0)
"""Where the greatest moments are looked for: areas by side, ranks as multiples of the traced one."""


def fit(about: str, terms: Sequence[str], sizes: Sequence[Size], traces: Sequence[Trace]) -> Footprint:
    """Return the footprint. Takes as many sizes and traces as terms; each must tell something new."""
    solve = np.linalg.inv([[TERMS[term](size) for term in terms] for size in sizes])
    traces = traces if len({t.operations for t in traces}) == 1 else [_shortened(t) for t in traces]
    factors = (solve @ np.array([t.held for t in traces], float)).T
    gradients = np.array(traces[0].gradients)
    saved = solve @ np.array([t.saved for t in traces], float)
    kept = _greatest(factors, gradients, terms, sizes)
    moments = sorted({Moment(int(gradients[i]), _rounded(factors[i])) for i in kept}, key=lambda m: m.factors)
    return Footprint(about, tuple(terms), _rounded(saved), tuple(moments))


def _greatest(
    factors: np.ndarray, gradients: np.ndarray, terms: Sequence[str], sizes: Sequence[Size]
) -> set[int]:
    """Numbers of the moments that are the greatest at some size, with gradients or without."""
    trained = sizes[0].trained
    ranks = _RANKS if "trained" in terms else (1.0,)
    kept = set()
    for batch, side, texts, rank in product(_BATCHES, _AREAS, _TEXTS, ranks):
        size = Size(batch, side**2, texts, round(rank * trained))
        held = factors @ np.array([TERMS[term](size) for term in terms])
        kept |= {int(np.argmax(held)), int(np.argmax(held + gradients))}
    return kept


def _shortened(trace: Trace) -> Trace:
    """Of a pass whose operations depend on the size: its greatest moment, and the end of its forward half."""
    held = np.array(trace.held)
    greatest = (int(np.argmax(held)), int(np.argmax(held + np.array(trace.gradients))))
    return replace(
        trace,
        operations=("peak", "peak with gradients"),
        held=tuple(trace.held[i] for i in greatest),
        gradients=tuple(trace.gradients[i] for i in greatest),
    )


def _rounded(factors: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{factor:.9g}") if abs(factor) > 1e-6 else 0.0 for factor in factors)
