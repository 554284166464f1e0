"""Low-rank approximation against the full decomposition, and ranks as they are asked for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtrainer.section import UserError
from sdtrainer.toolbox import low_rank
from sdtrainer.toolbox.extract import Settings
from sdtrainer.toolbox.ranks import Wanted, wanted


def matrix(m: int, n: int, spectrum: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(side, len(spectrum), generator=generator, dtype=torch.float64)).Q
        for side in (m, n)
    )
    return ((u * spectrum) @ v.T).float()


def decaying(count: int, rate: float = 0.9, noise: float = 0.0) -> torch.Tensor:
    return rate ** torch.arange(count, dtype=torch.float64) + noise


@pytest.mark.parametrize("shape", [(320, 300), (200, 700), (700, 200)])
@pytest.mark.parametrize("rate", [0.8, 0.97, 0.999])
def test_a_projected_matrix_is_as_near_as_the_full_decomposition(shape: tuple[int, int], rate: float) -> None:
    """Within the tolerance of the squared error, from steep to nearly flat spectra; it knows its error."""
    whole = matrix(*shape, decaying(min(shape), rate))
    found = low_rank.of_matrix(whole, Wanted(8))
    assert (found.way, found.rank) == ("projected", 8)
    best = torch.linalg.svdvals(whole.double())[8:].square().sum()
    error = (whole - found.up @ found.down).double().square().sum()
    assert best * (1 - 1e-4) <= error <= best * 1.01
    assert math.isclose(found.lost, error, rel_tol=1e-3) and math.isclose(
        found.total, found.kept + found.lost
    )


@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_a_product_is_cut_as_its_matrix_would_be(rank: int, to: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(14, rank, generator=generator), torch.randn(rank, 30, generator=generator)
    found, reference = low_rank.of_product(up, down, Wanted(to)), low_rank.of_matrix(up @ down, Wanted(to))
    torch.testing.assert_close(found.up @ found.down, reference.up @ reference.down, rtol=1e-3, atol=1e-4)
    assert found.rank == min(rank, to) and (to < rank or found.lost < 1e-9 * found.total)


def test_a_matrix_is_given_back_whole_with_its_own_rank() -> None:
    for rank in (1, 5, 40):
        whole = matrix(50, 60, decaying(rank))
        found = low_rank.whole_rank(whole)
        assert found.rank == rank
        torch.testing.assert_close(found.up @ found.down, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_keep_what_was_asked_for_and_no_more(seed: int) -> None:
    whole = matrix(60, 80, decaying(40), seed)
    squares = torch.linalg.svdvals(whole.double()).square()
    parts = squares.cumsum(0) / squares.sum()
    for energy in (0.5, 0.9, 0.99):
        found = low_rank.of_matrix(whole, Wanted(60, energy=energy))
        assert parts[found.rank - 1] >= energy > (parts[found.rank - 2] if found.rank > 1 else 0)
    kept = low_rank.of_matrix(whole, Wanted(60, threshold=0.5))
    assert kept.rank == int((squares.sqrt() >= 0.5 * squares[0].sqrt()).sum())
    assert low_rank.of_matrix(whole, Wanted(4, energy=0.99)).rank == 4
    assert low_rank.of_matrix(whole, Wanted(60, least=9, energy=0.1)).rank == 9


@pytest.mark.parametrize(
    ("values", "path", "words"),
    [({"energy": 0.9, "threshold": 0.1}, "threshold", "choose the rank both"),
     ({"min_rank": 40, "energy": 0.9}, "min_rank", "Least rank is 40")],
)  # fmt: skip
def test_contradicting_ranks_are_refused(values: dict[str, float], path: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        wanted(Settings(**values), 32)  # type: ignore[arg-type]
    assert refused.value.path == path
