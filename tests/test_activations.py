"""Activations: what the tables promise is what a real step holds, and they grow as they must."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import sd15
import torch
from conftest import Trainer

from sdtrainer import activations, families, planner, trace
from sdtrainer.hardware import CPU_ONLY, imagined
from sdtrainer.memory import Ledger, estimate, structure_of
from sdtrainer.methods import METHODS, method_of
from sdtrainer.plan import Plan
from sdtrainer.seams import Batch, Latents
from sdtrainer.trace import fakes, passes
from sdtrainer.trace.fakes import Shape
from sdtrainer.trace.live import LiveBytes
from sdtrainer.training import setup
from sdtrainer.training.setup import DTYPES
from sdtrainer.training.step import TrainStep


def planned(trainer: Trainer, **changes: Any) -> Plan:
    return planner.draft(trainer.config(**changes), trainer.workspace, CPU_ONLY).plan


def real_step(plan: Plan) -> tuple[TrainStep, Batch]:
    """A step on the real model with its method, and a batch of noise for it."""
    family, method = families.family_of(plan.facts), method_of(plan.config.method.kind)
    dtypes = {part: DTYPES[plan.place(part, "train").precision] for part in plan.facts.parts}
    parts = family.load(plan.facts, plan.facts.parts, dtypes)
    method.add_words(parts, plan.config.method)
    setup.attach(method, parts, plan)
    size, side = plan.batch_size, plan.resolutions[0] // plan.facts.pixels_per_latent
    shape = (size, plan.facts.latent_channels, side, side)
    tokens, sizes = family.tokenize(parts, ["zib"] * size, plan.chunks), torch.zeros(size, 6)
    latents = Latents(torch.randn(shape), torch.ones(shape))
    batch = Batch(torch.ones(size), sizes, latents, tokens=tokens)
    if plan.cache_text:
        with torch.no_grad():
            text = family.encode_text(parts, tokens, plan.config.base.clip_skip, sizes)
        batch = Batch(torch.ones(size), sizes, latents, conditioning=text)
    return TrainStep(family, parts, plan), batch


def allocated(plan: Plan) -> int:
    """The most bytes that torch's allocator gives out during a real step."""
    step, batch = real_step(plan)
    with torch.profiler.profile(profile_memory=True) as profile:
        with torch.autocast("cpu", DTYPES[plan.precision], enabled=plan.precision != "fp32"):
            loss = step(batch, torch.Generator()).mean()
        loss.backward()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def counted(plan: Plan) -> int:
    """The same by the counter of storages."""
    step, batch = real_step(plan)
    known = [t for m in step.parts.modules.values() for t in (*m.parameters(), *m.buffers())]
    with LiveBytes(known) as counter:
        told = passes.step(step, batch, counter)
    return max(a + b for a, b in zip(told.held, told.gradients, strict=True))


STEPS: dict[str, dict[str, Any]] = {
    "lora": {"train__checkpointing": "on"},
    "loha": {},
    "lokr": {"train__precision": "bf16"},
    "full": {"train__precision": "bf16", "method": {"kind": "full", "train_text_encoder": True}},
    "textual_inversion": {},
    "hypernetwork": {"train__precision": "bf16", "train__checkpointing": "on"},
}


@pytest.fixture(autouse=True)
def own_tables(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that tests make are kept between them, apart from those of this machine."""
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(tmp_path_factory.getbasetemp() / "tables"))


def known(plan: Plan) -> Ledger:
    """The ledger after whatever was unknown has been traced."""
    for _ in trace.learn(plan, structure_of(plan)):
        pass
    return estimate(plan)


def held(ledger: Ledger, *whats: str) -> int:
    return sum(row.bytes for row in ledger.rows if row.phase == "train" and row.what in whats)


# -- the truth --------------------------------------------------------------------------------------


def test_weights_kept_as_bf16_are_estimated_too(trainer: Trainer) -> None:
    """Autocast makes no copies of them, and their gradients are half as large."""
    method = {"kind": "full", "train_text_encoder": True}
    changes = {"method": method, "train__precision": "bf16", "train__resolution": 128}
    as_bf16 = planned(trainer, **changes, train__weights="bf16")
    promised = held(known(as_bf16), "gradients", "activations", "temporary")
    assert promised == pytest.approx(allocated(as_bf16), rel=0.05)
    assert promised < 0.9 * held(known(planned(trainer, **changes)), "gradients", "activations", "temporary")


@pytest.mark.parametrize("kind", METHODS)
def test_a_real_step_allocates_what_was_estimated(trainer: Trainer, kind: str) -> None:
    plan = planned(trainer, train__resolution=128, **{"method": {"kind": kind}} | STEPS.get(kind, {}))
    (need, *_) = activations.needs(plan, structure_of(plan))
    trace.keep(trace.trace(plan, need), need, activations.made_here())
    promised = held(estimate(plan), "gradients", "activations", "temporary")
    assert promised == pytest.approx(allocated(plan), rel=0.05)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("method", [{"kind": "lora"}, {"kind": "full"}], ids=lambda method: method["kind"])
def test_other_families_allocate_what_was_estimated(
    trainer: Trainer, request: pytest.FixtureRequest, name: str, method: dict[str, Any]
) -> None:
    path = str(request.getfixturevalue(name))
    plan = planned(trainer, base__path=path, train__resolution=128, method=method)
    (need, *_) = activations.needs(plan, structure_of(plan))
    trace.keep(trace.trace(plan, need), need, activations.made_here())
    promised = held(estimate(plan), "gradients", "activations", "temporary")
    assert promised == pytest.approx(allocated(plan), rel=0.05)


def test_the_counter_agrees_with_the_allocator(trainer: Trainer) -> None:
    plan = planned(trainer, train__resolution=128)
    assert counted(plan) == pytest.approx(allocated(plan), rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [{"train__batch_size": 1, "train__resolution": 192}, {"train__batch_size": 5, "method__rank": 9}],
    ids=["one large picture", "many small ones"],
)
def test_a_table_holds_for_sizes_that_were_never_traced(trainer: Trainer, changes: dict[str, Any]) -> None:
    known(planned(trainer))
    plan = planned(trainer, **{"train__resolution": 128} | changes)
    assert not estimate(plan).unknown, "the table of another size was not found"
    promised = held(estimate(plan), "gradients", "activations", "temporary")
    assert promised == pytest.approx(allocated(plan), rel=0.05)


# -- properties -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"train__batch_size": 1}, {"train__batch_size": 2}),
        ({"train__batch_size": 2}, {"train__batch_size": 16}),
        ({"train__resolution": 64}, {"train__resolution": 128}),
        ({"train__resolution": 128}, {"train__resolution": [64, 256]}),
        ({"method__rank": 2}, {"method__rank": 64}),
        ({"optim__name": "adamw8bit"}, {"optim__name": "adamw"}),
        ({"optim__accumulation": 1}, {"optim__accumulation": 4}),
        ({"optim__ema": False}, {"optim__ema": True}),
    ],
    ids=lambda changes: " ".join(f"{path}={value}" for path, value in changes.items()),
)
def test_what_asks_for_more_never_holds_less(
    trainer: Trainer, less: dict[str, Any], more: dict[str, Any]
) -> None:
    small, large = known(planned(trainer, **less)), known(planned(trainer, **more))
    assert 0 < small.held("train") <= large.held("train")


def test_phases_that_were_not_traced_are_named(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(trainer)
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(trainer.workspace.root))
    before = estimate(plan)
    assert before.unknown == ("cache", "train", "sample")
    assert not held(before, "activations", "temporary")


# -- a card -----------------------------------------------------------------------------------------


def peaks(trainer: Trainer, device: str, *shapes: Shape, **changes: Any) -> list[int]:
    plan = dataclasses.replace(planned(trainer, **changes), device=device)
    placements = tuple(dataclasses.replace(p, device=device) for p in plan.placements)
    plan = dataclasses.replace(plan, placements=placements)
    with fakes.model(plan, "train") as (family, parts):
        return [max(passes.run("step", plan, family, parts, shape).held) for shape in shapes]


SMALL, LARGE = Shape(1, 32, 32), Shape(1, 64, 64)
PLAIN = {"method__rank": 1, "method__dropout": 0.0}


def test_fused_attention_grows_with_the_area_and_plain_with_its_square(trainer: Trainer) -> None:
    small, large = peaks(trainer, "cuda", SMALL, LARGE, **PLAIN)
    assert large / small == pytest.approx(4, rel=0.05)
    small, large = peaks(trainer, "mps", SMALL, LARGE, **PLAIN)
    assert large / small > 8


def test_checkpointing_holds_less(trainer: Trainer) -> None:
    (off,) = peaks(trainer, "cuda", SMALL, **PLAIN, train__checkpointing="off")
    (on,) = peaks(trainer, "cuda", SMALL, **PLAIN, train__checkpointing="on")
    assert 0 < on < 0.6 * off


def test_mixed_precision_on_a_card_keeps_norms_in_fp32(trainer: Trainer) -> None:
    (on_processor,) = peaks(trainer, "cpu", SMALL, **PLAIN, train__precision="bf16")
    (on_card,) = peaks(trainer, "cuda", SMALL, **PLAIN, train__precision="bf16")
    assert on_card > 1.1 * on_processor


def test_dropout_on_a_card_keeps_a_byte_for_each_number_instead_of_four(trainer: Trainer) -> None:
    (on_processor,) = peaks(trainer, "cpu", SMALL, method__dropout=0.1)
    (on_card,) = peaks(trainer, "cuda", SMALL, method__dropout=0.1)
    assert 0.5 * on_processor < on_card < 0.95 * on_processor


# -- the tables that ship ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stable Diffusion 1.5, without weights."""
    return str(sd15.write(tmp_path_factory.mktemp("models") / "sd15"))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_usual_plans_are_known_without_tracing(trainer: Trainer, published: str, kind: str) -> None:
    """Where this fails, layers have changed: `python -m sdtrainer trace --ship BASE` makes tables anew."""
    for checkpointing in ("on", "off"):
        changes = {"method": {"kind": kind}, "train__checkpointing": checkpointing, "base__path": published}
        plan = planner.draft(trainer.config(**changes), trainer.workspace, imagined(24)).plan
        assert not estimate(plan).unknown


def test_a_table_that_ships_is_what_a_trace_finds(trainer: Trainer, published: str) -> None:
    plan = planner.draft(trainer.config(base__path=published), trainer.workspace, imagined(24)).plan
    (need,) = (need for need in activations.needs(plan, structure_of(plan)) if need.kind == "encode")
    shipped, traced = activations.look_up(need.key), trace.trace(plan, need)
    assert shipped is not None
    assert traced.peak_bytes(need.size) == pytest.approx(shipped.peak_bytes(need.size), rel=0.01)
