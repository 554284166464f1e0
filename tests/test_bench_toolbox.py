"""The bench of the toolbox: its models differ as it says, and it compares like with like."""

from __future__ import annotations

import pytest
import torch

from sdtrainer.bench.toolbox import DECAY, NOISE, RANK, Plain, Verb, _numbers, lines


def test_the_models_differ_by_a_matrix_of_low_rank_and_noise() -> None:
    name, shape = "denoiser.mid_block.attentions.0.proj_in.weight", torch.Size((400, 30, 3, 3))
    base, tuned = (_numbers(name, shape, is_tuned) for is_tuned in (False, True))
    assert torch.equal(base, _numbers(name, shape, False))
    values = torch.linalg.svdvals((tuned - base).flatten(1).double())
    assert values[RANK] < 0.5 * values[RANK - 1], "after its rank there is noise alone"
    noise, whole = values[RANK:].square().sum().sqrt(), values.square().sum().sqrt()
    assert 0.3 * NOISE < noise / whole < NOISE
    assert values[20] / values[0] == pytest.approx(DECAY**20, rel=0.5)
    vae = name.replace("denoiser", "vae")
    assert torch.equal(_numbers(vae, shape, True), _numbers(vae, shape, False))


def test_what_is_said_of_the_comparison_follows_from_the_numbers() -> None:
    plain = Plain(60.0, 45.0, 10, 4, [0.0, 0.004], best=1.0, ours=1.21, total=100.0)
    said = "\n".join(lines(Verb("extract", 6.0, 5.0, 2**30, {}), plain))
    for words in (
        "4 of 10 matrices",
        "10.0 times faster, 9.0 by",
        "10.0000% at best, 11.0000%",
        "0.40% in the worst",
    ):
        assert words in said
