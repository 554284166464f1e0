"""A change of weights as the product of two thin matrices, as near to it as its rank allows.

The best approximation of rank r is the truncated singular value decomposition (Eckart and Young 1936), and
three ways lead to it: from a product by QR of its factors, which is exact and never forms the matrix; from a
matrix by random projection (Halko, Martinsson, Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1), checked
as below; and by the full decomposition, where neither would be cheaper.

What is lost is known, not estimated: for Q with orthonormal columns and B = Q^T A,
|A - Q B_r|^2 = |A|^2 - sum of the r largest squared singular values of B. Only how far that is above the best
possible is an estimate: power iterations go on until one lowers the squared error by less than `TOLERANCE` of
itself.

Shapes: A (m, n); up (m, r), down (r, n); Q (m, l). Of a convolution m = out, n = in kh kw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .ranks import Wanted

TOLERANCE = 1e-3
"""How much the squared error may still fall with one more power iteration."""
_MOST_ITERATIONS = 8
_OVERSAMPLING = 16
_WIDE = 5
"""A random projection is taken where the smaller side of the matrix is that many times its columns; below,
the full decomposition is hardly slower (measured on one core, torch 2.13).
"""
_EPSILON = 1e-6
"""Singular values below this part of the largest are rounding, in fp32."""


@dataclass(frozen=True)
class LowRank:
    """`up` @ `down` in fp32, the singular values divided evenly among them. `total` is the squared norm of
    what was approximated, `kept` that of the product. `way` is how it was found.
    """

    up: torch.Tensor
    down: torch.Tensor
    total: float
    kept: float
    way: str

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def lost(self) -> float:
        """The squared norm of what is missing."""
        return max(0.0, self.total - self.kept)


def of_product(up: torch.Tensor, down: torch.Tensor, wanted: Wanted) -> LowRank:
    """Return the best approximation of up @ down, from the factors alone."""
    (q_up, r_up), (q_down, r_down) = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    return _cut(q_up @ u, s, vh @ q_down.T, float(s.square().sum()), wanted, "of its factors")


def of_matrix(matrix: torch.Tensor, wanted: Wanted) -> LowRank:
    """Return an approximation of a matrix whose error is the smallest, or within `TOLERANCE` of it."""
    columns = wanted.most + _OVERSAMPLING
    if min(matrix.shape) >= _WIDE * columns and (found := _projected(matrix, wanted, columns)):
        return found
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return _cut(u, s, vh, _squares(matrix), wanted, "whole")


def whole_rank(matrix: torch.Tensor) -> LowRank:
    """Return a product that equals the matrix to fp32's precision, of its own rank."""
    found = of_matrix(matrix.double(), Wanted(min(matrix.shape), threshold=_EPSILON))
    return LowRank(found.up.float(), found.down.float(), found.total, found.kept, found.way)


def _projected(matrix: torch.Tensor, wanted: Wanted, columns: int) -> LowRank | None:
    """None if it does not settle."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    total, before = _squares(matrix), 0.0
    generator = torch.Generator(matrix.device).manual_seed(0)
    start = torch.randn(tall.shape[1], columns, generator=generator, dtype=tall.dtype, device=tall.device)
    q = torch.linalg.qr(tall @ start).Q
    for _ in range(_MOST_ITERATIONS):
        p, r = torch.linalg.qr(tall.T @ q)  # B^T = p r
        s = torch.linalg.svdvals(r)
        kept = float(s[: wanted.most].double().square().sum())
        if kept - before <= TOLERANCE * max(total - kept, _EPSILON**2 * total):
            u, s, vh = torch.linalg.svd(r.T)
            u, vh = q @ u, vh @ p.T
            if tall is not matrix:
                u, vh = vh.T, u.T
            return _cut(u, s, vh, total, wanted, "projected")
        before = kept
        q = torch.linalg.qr(tall @ p).Q
    return None


def _cut(
    u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, total: float, wanted: Wanted, way: str
) -> LowRank:
    squares = s.double().square()
    rank = wanted.rank(s.tolist(), total)
    root = s[:rank].sqrt()
    kept = min(float(squares[:rank].sum()), total)
    up, down = (u[:, :rank] * root).contiguous(), (root[:, None] * vh[:rank]).contiguous()
    return LowRank(up.float(), down.float(), total, kept, way)


def _squares(matrix: torch.Tensor) -> float:
    """The squared norm, summed in double precision row by row."""
    return float(matrix.square().sum(dim=1).double().sum())
