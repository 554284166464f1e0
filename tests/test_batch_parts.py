"""A batch that goes through the model in parts teaches what it teaches in one, and holds less."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import Trainer
from hypothesis import given
from hypothesis import strategies as st
from test_activations import allocated, known, own_tables, real_step  # noqa: F401 (a fixture for all)
from test_plan import refusal
from test_train import exported, losses

from sdtrainer import planner
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.plan import Plan
from sdtrainer.seams import Batch
from sdtrainer.training.step import divided, in_parts

FULL = {"kind": "full", "train_text_encoder": True}
LORA = {"kind": "lora", "rank": 2, "dropout": 0.0, "train_text_encoder": True}
WORD = {"kind": "textual_inversion", "tokens": ["zib"], "norm_weight": 10.0}


def planned(trainer: Trainer, **changes: Any) -> Plan:
    return planner.draft(trainer.config(**changes), trainer.workspace, CPU_ONLY).plan


def gradients(plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradients of one batch, part by part as the plan has it."""
    torch.manual_seed(0)
    step, batch = real_step(plan)
    batch.weight[0] = 0.3  # as of a class image
    generator = torch.Generator().manual_seed(1)
    for part in in_parts(step, batch, generator):
        (step(part, generator).mean() * len(part.weight) / len(batch.weight)).backward()
    for name, parameter in step.trained.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


@pytest.mark.parametrize("method", [LORA, FULL, WORD], ids=lambda method: method["kind"])
def test_parts_have_the_gradients_of_the_whole(trainer: Trainer, method: dict[str, Any]) -> None:
    changes = {"train__batch_size": 5, "method": method}
    whole = dict(gradients(planned(trainer, **changes)))
    scale = max(gradient.abs().max().item() for gradient in whole.values())
    assert scale > 0
    for parts in (2, 5):
        found = dict(gradients(planned(trainer, **changes, train__batch_parts=parts)))
        assert found.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * scale, msg=name)


def test_a_run_in_parts_learns_the_same(trainer: Trainer) -> None:
    """With batches that are not full, accumulation, and pixels that are encoded in each step."""
    changes = {
        "train__batch_size": 3, "train__steps": "4", "optim__accumulation": 3, "data__cache_latents": "off",
        "data__crop": "random", "method__dropout": 0.0, "optim__name": "adamw", "sample__prompts": [],
    }  # fmt: skip
    whole, parts = trainer.new(**changes), trainer.new(**changes, train__batch_parts=2)
    trainer.run(whole)
    trainer.run(parts)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    one, other = exported(whole), exported(parts)
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-5, msg=name)


@given(size=st.integers(1, 40), parts=st.integers(1, 40))
def test_parts_are_even_and_make_the_whole(size: int, parts: int) -> None:
    batch = Batch(torch.arange(size), torch.zeros(size, 6), tokens={"text_encoder": torch.ones(size, 77)})
    found = divided(batch, parts)
    assert len(found) == min(size, parts)
    assert torch.equal(torch.cat([part.weight for part in found]), batch.weight)
    sizes = {len(part.weight) for part in found}
    assert max(sizes) - min(sizes) <= 1 and max(sizes) == math.ceil(size / min(size, parts))
    assert all(part.tokens and len(part.tokens["text_encoder"]) == len(part.weight) for part in found)


def test_more_parts_never_hold_more(trainer: Trainer) -> None:
    changes = {"train__batch_size": 8, "train__resolution": 128}
    plans = [planned(trainer, **changes, train__batch_parts=parts) for parts in (1, 2, 3, 4, 8)]
    held = [known(plan).held("train") for plan in plans]
    assert held == sorted(held, reverse=True) and held[-1] < 0.5 * held[0]


def test_a_part_holds_what_a_batch_of_its_size_does(trainer: Trainer) -> None:
    """Gradients stay from part to part, as from batch to batch where they are added up."""
    divided = planned(trainer, train__batch_size=6, train__batch_parts=2)
    alone = planned(trainer, train__batch_size=3, optim__accumulation=2)
    assert known(divided).held("train") == known(alone).held("train")


def test_more_parts_than_images_are_refused(trainer: Trainer) -> None:
    error = refusal(trainer, train__batch_size=2, train__batch_parts=3)
    assert error.path == "train.batch_parts" and "3 parts" in error.what and "2 images" in error.what
    assert "one image" in refusal(trainer, train__batch_size=1, train__batch_parts=2).what
    assert planned(trainer, train__batch_size=2, train__batch_parts=1).batch_parts == 1
