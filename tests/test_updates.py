"""Weights updated one at a time: fp32 changes nothing, bf16 loses nothing, and the ledger is right."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import Trainer
from safetensors.torch import load_file
from test_train import _die_at, _poison, assert_same, exported, losses, of

from sdtrainer import families, optim, planner, savings, trace
from sdtrainer.events import Finished, RolledBack, Stepped
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.memory import Ledger, estimate, structure_of
from sdtrainer.methods import method_of
from sdtrainer.optim import OPTIMIZERS, OptimSection
from sdtrainer.plan import Plan
from sdtrainer.seams import Batch, Latents, ParamGroup
from sdtrainer.section import UserError
from sdtrainer.trace.live import LiveBytes
from sdtrainer.training import checkpoint, setup
from sdtrainer.training.setup import DTYPES
from sdtrainer.training.step import TrainStep
from sdtrainer.training.updates import Updates, as_if_fp32, rounded, update
from sdtrainer.workspace import RunFolder

ONE_BY_ONE = [row for row in OPTIMIZERS if row.one_by_one]
EACH = pytest.mark.parametrize("row", ONE_BY_ONE, ids=[row.name for row in ONE_BY_ONE])
SHAPES = [(80, 100), (8, 320), (320,), (16, 16, 3, 3), ()]
BF16, FULL = torch.bfloat16, {"kind": "full"}


pytestmark = pytest.mark.usefixtures("other_precisions")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- rounding ---------------------------------------------------------------------------------------


def test_rounding_is_right_in_the_mean_and_never_further_than_the_next_number() -> None:
    values = torch.randn(200, generator=generator(1)) * 10.0 ** torch.arange(-10, 10).repeat(10)
    many = rounded(values.repeat(4000, 1), generator())
    assert torch.equal(many, many.to(BF16).float()), "not numbers of bf16"
    low, high = many.min(0).values, many.max(0).values
    assert ((low <= values) & (values <= high)).all()
    gap = 2.0 ** (values.abs().log2().floor() - 7)
    assert (high - low <= gap).all()
    error = (many.double().mean(0) - values.double()) / gap
    assert error.abs().max() < 5 * 0.5 / math.sqrt(4000), "five standard deviations at most"


def test_what_bf16_can_hold_is_not_rounded() -> None:
    kept = [0.0, 1.0, -3.0, 2.0**-130, 3.3895e38, math.inf, -math.inf, math.nan]
    values = torch.tensor(kept).to(BF16).float()
    for seed in range(20):
        assert torch.equal(rounded(values.clone(), generator(seed)).nan_to_num(7.0), values.nan_to_num(7.0))


# -- one parameter ----------------------------------------------------------------------------------


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    source = generator()
    return [torch.nn.Parameter(torch.randn(shape, generator=source).to(dtype)) for shape in SHAPES]


def built(row: optim.Optimizer, weights: list[torch.nn.Parameter], lr: float = 1e-2) -> torch.optim.Optimizer:
    groups = [ParamGroup("denoiser", weights[:2], lr), ParamGroup("text encoder", weights[2:], lr / 2)]
    return optim.build(row, groups, OptimSection())


def step_each(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        source = generator(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=source).to(weight.dtype)
        for number, weight in enumerate(weights):
            update(optimizer, int(number > 1), weight, 100 * step + number)


@EACH
def test_one_after_another_is_all_at_once(row: optim.Optimizer) -> None:
    together, apart = parameters(torch.float32), parameters(torch.float32)
    whole, single = built(row, together), built(row, apart)
    for step in range(4):
        source = generator(step)
        for weight in together:
            weight.grad = torch.randn(weight.shape, generator=source)
        whole.step()
    step_each(single, apart, range(4))
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert str(whole.state_dict()) == str(single.state_dict())


@EACH
def test_the_state_for_bf16_weights_is_that_for_fp32(row: optim.Optimizer) -> None:
    weights = parameters(BF16)
    optimizer = built(row, weights)
    step_each(optimizer, weights, range(1))
    state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    assert {v.dtype for v in state} <= {torch.float32, torch.uint8}
    distinct = {v.data_ptr(): v.nbytes for v in state}
    assert sum(distinct.values()) == optim.state_bytes(row, SHAPES)
    assert all(weight.dtype is BF16 and weight.grad is None for weight in weights)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_an_update_takes_what_the_ledger_says(name: str, dtype: torch.dtype) -> None:
    row, weight = optim.find(name), torch.nn.Parameter(torch.randn(300, 200).to(dtype))
    optimizer = optim.build(row, [ParamGroup("denoiser", [weight], 1e-2)], OptimSection())
    for step in range(2):  # the first makes the state
        weight.grad = torch.randn(300, 200).to(dtype)
        known = [weight, weight.grad, *(v for s in optimizer.state.values() for v in s.values())]
        with LiveBytes([t for t in known if torch.is_tensor(t)]) as counter:
            update(optimizer, 0, weight, step)
    most = max((now for _, now in counter.moments), default=0)
    promised = (row.scratch + (0 if dtype is torch.float32 else 8)) * weight.numel()
    assert most == pytest.approx(promised, rel=0.02, abs=1000)


@EACH
def test_saving_and_loading_changes_nothing_in_bf16(row: optim.Optimizer) -> None:
    through, cut = parameters(BF16), parameters(BF16)
    step_each(built(row, through), through, range(6))
    before = built(row, cut)
    step_each(before, cut, range(3))
    after = built(row, cut)
    with as_if_fp32(cut):
        after.load_state_dict(copy.deepcopy(before.state_dict()))
    step_each(after, cut, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(through, cut, strict=True))


@EACH
def test_small_steps_add_up_where_rounding_to_the_nearest_stands_still(row: optim.Optimizer) -> None:
    """500 steps of 1e-5 from 1, where numbers of bf16 are 0.0039 and 0.0078 apart."""
    start = torch.ones(100, 100)
    exact, kept, nearest = (torch.nn.Parameter(start.to(t)) for t in (torch.float32, BF16, BF16))
    section = OptimSection(weight_decay=0.0)
    weights = (exact, kept, nearest)
    optimizers = [optim.build(row, [ParamGroup("denoiser", [w], 1e-5)], section) for w in weights]
    for step in range(500):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        update(optimizers[0], 0, exact, step)
        update(optimizers[1], 0, kept, step)
        optimizers[2].step()
    moved = [1 - weight.detach().float().mean().item() for weight in weights]
    assert moved[0] == pytest.approx(0.005, rel=0.02)
    assert moved[1] == pytest.approx(moved[0], rel=0.05)
    assert moved[2] == 0


# -- runs -------------------------------------------------------------------------------------------

IN_BF16 = {"method": FULL, "train__precision": "bf16", "train__weights": "bf16", "sample__prompts": []}
FUSED = {"method": FULL, "optim__fused_backward": "on", "optim__max_grad_norm": 0.0, "sample__prompts": []}


def planned(trainer: Trainer, **changes: Any) -> Plan:
    return planner.draft(trainer.config(**changes), trainer.workspace, CPU_ONLY).plan


def saved(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.saved(folder.checkpoints)[-1] / "weights.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        IN_BF16 | {"optim__name": "adamw8bit", "optim__ema": True},
        IN_BF16 | FUSED | {"optim__name": "adamw"},
    ],
    ids=["8-bit with average", "fused"],
)
def test_a_resumed_run_is_the_uninterrupted_one(trainer: Trainer, settings: dict[str, Any]) -> None:
    settings = settings | {"train__steps": "8", "train__validate_every": "0"}
    whole, cut = trainer.new(**settings), trainer.new(**settings)
    trainer.run(whole)
    trainer.run(cut, on_event=_die_at(5))
    happened = trainer.run(cut)
    assert happened[0].step == 4  # type: ignore[attr-defined]
    assert_same(exported(whole), exported(cut))
    assert_same(saved(whole), saved(cut))
    assert {tensor.dtype for tensor in saved(cut).values()} == {BF16}
    rests = [
        torch.load(checkpoint.saved(folder.checkpoints)[-1] / "rest.pt", weights_only=True)
        for folder in (whole, cut)
    ]
    assert str(rests[0]) == str(rests[1])
    if settings.get("optim__ema"):
        assert {tensor.dtype for tensor in rests[0]["average"]["shadow_params"]} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_kept_as_bf16_are_exported_as_anything(trainer: Trainer, precision: str) -> None:
    folder = trainer.new(**IN_BF16, train__steps="2", export__precision=precision)
    trainer.run(folder)
    kinds = {"fp32": torch.float32, "bf16": BF16, "fp16": torch.float16}
    file, trained = exported(folder), saved(folder)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(file[name], trained["denoiser.conv_in.weight"].to(kinds[precision]))


def test_the_average_is_exported_unrounded(trainer: Trainer) -> None:
    folder = trainer.new(**IN_BF16, train__steps="3", optim__ema=True)
    trainer.run(folder)
    weight = exported(folder)["model.diffusion_model.input_blocks.0.0.weight"]
    assert not torch.equal(weight, weight.to(BF16).float())


def test_fused_backward_changes_nothing_but_memory(trainer: Trainer) -> None:
    """To the bit, with text encoders that stop, an average, and a batch that is left out."""
    settings = FUSED | {
        "method": {"kind": "full", "train_text_encoder": True}, "optim__text_encoder_until": "5",
        "optim__ema": True, "train__checkpointing": "on",
    }  # fmt: skip
    plain, fused = trainer.new(**settings | {"optim__fused_backward": "off"}), trainer.new(**settings)
    one, other = (of(Stepped, trainer.run(folder)) for folder in (plain, fused))
    assert_same(exported(plain), exported(fused))
    assert_same(saved(plain), saved(fused))
    assert losses(plain) == losses(fused) != []
    norms = [norm for e in one for norm in e.grad_norms]
    assert len(norms) == 12 and norms == pytest.approx([norm for e in other for norm in e.grad_norms])


def test_a_bad_batch_is_left_out_of_a_fused_run(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, at={7})
    folder = trainer.new(**FUSED)
    happened = trainer.run(folder)
    assert [e.step for e in of(RolledBack, happened)] == [7]
    assert isinstance(happened[-1], Finished)
    assert all(tensor.isfinite().all() for tensor in exported(folder).values())


# -- the ledger -------------------------------------------------------------------------------------


def held(ledger: Ledger, *whats: str) -> int:
    return sum(row.bytes for row in ledger.rows if row.phase == "train" and row.what in whats)


def known(plan: Plan) -> Ledger:
    """The ledger with activations traced."""
    for _ in trace.learn(plan, structure_of(plan)):
        pass
    return estimate(plan)


@dataclass
class Counted:
    """Bytes of weights and optimizer state, of the gradients when the backward pass has ended, and of the
    most that a step holds besides weights and state.
    """

    weights: int
    state: int
    gradients: int
    most: int


def counted(plan: Plan) -> Counted:
    """Take two steps on the real model, the second under the counter, updates included."""
    family, method = families.family_of(plan.facts), method_of(plan.config.method.kind)
    dtypes = {part: DTYPES[plan.place(part, "train").precision] for part in plan.facts.parts}
    parts = family.load(plan.facts, plan.facts.parts, dtypes)
    groups = setup.attach(method, parts, plan)
    accelerator = Accelerator(cpu=True)
    built = optim.build(optim.find(plan.optimizer), groups, plan.config.optim)
    optimizer = accelerator.prepare(built, device_placement=[False])
    updates = Updates(checkpoint.Trained(parts, optimizer, accelerator, None), plan)
    module, size = TrainStep(family, parts, plan), plan.batch_size
    side = plan.resolutions[0] // plan.facts.pixels_per_latent
    latents, tokens = Latents(*torch.randn(2, size, 4, side, side)), family.tokenize(parts, ["zib"] * size, 1)
    batch = Batch(torch.ones(size), torch.zeros(size, 6), latents, tokens=tokens)

    def step(number: int) -> int:
        updates.begin(number)
        with torch.autocast("cpu", DTYPES[plan.precision], enabled=plan.precision != "fp32"):
            loss = module(batch, generator()).mean()
        loss.backward()
        gradients = sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
        updates.finish()
        return gradients

    step(0)
    weights = [p for part in module.trained for p in parts.modules[part].parameters()]
    buffers = [b for part in parts.modules.values() for b in part.buffers()]
    state = [v for s in built.state.values() for v in s.values() if torch.is_tensor(v)]
    with LiveBytes([*weights, *buffers, *state]) as counter:
        gradients = step(1)
    distinct = {v.data_ptr(): v.nbytes for v in state}
    most = max(now for _, now in counter.moments)
    return Counted(sum(w.nbytes for w in weights), sum(distinct.values()), gradients, most)


@pytest.mark.parametrize(
    ("kept", "optimizer"),
    [("fp32", "adamw"), ("bf16", "lion8bit"), ("fp32 fused", "adafactor"), ("bf16 fused", "adamw8bit")],
)
def test_the_ledger_is_what_a_real_step_holds(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any, kept: str, optimizer: str
) -> None:
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(tmp_path_factory.getbasetemp() / "tables"))
    changes = (FUSED if "fused" in kept else {}) | (IN_BF16 if "bf16" in kept else {})
    changes |= {"method": FULL | {"train_text_encoder": True}, "optim__name": optimizer}
    plan = planned(trainer, **changes, train__resolution=128)
    ledger, real = known(plan), counted(plan)
    assert held(ledger, "weights") == real.weights
    assert held(ledger, "optimizer") == pytest.approx(real.state, abs=2048), "a table shared by the parts"
    promised = held(ledger, "gradients", "activations", "temporary")
    if plan.fused_backward:
        assert real.gradients == 0 and 0 < held(ledger, "gradients") < real.weights / 10
    else:
        assert real.gradients == held(ledger, "gradients")
    assert promised == pytest.approx(real.most, rel=0.05)


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optim__accumulation": 2}, "Gradient accumulation is 2"),
        ({"train__batch_parts": 2}, "a batch is passed in 2 parts"),
        ({"optim__max_grad_norm": 1.0}, "Gradient clipping needs all gradients"),
        ({"optim__name": "prodigy"}, "Prodigy cannot update one weight after another"),
        ({"optim__name": "adamw_schedulefree"}, "AdamW schedule-free cannot update one weight"),
    ],
    ids=lambda value: str(value),
)
def test_fused_backward_is_refused_with_a_reason(
    trainer: Trainer, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=f"Fused backward: on is not possible: {reason}") as refused:
        planned(trainer, **FUSED | changes)
    assert refused.value.path == "optim.fused_backward" and refused.value.hint


def test_fused_backward_is_refused_on_machines_that_cannot(trainer: Trainer) -> None:
    why_not, config = savings.why_not_fused_backward, trainer.config(**FUSED)
    assert not why_not(config, "adamw", "bf16")
    assert "scaled loss" in why_not(config, "adamw", "fp16")
    assert "2 processes" in why_not(config, "adamw", "bf16", processes=2)
    assert savings.why_not_batch_parts(trainer.config(), 2, fused_backward=True) == "Fused backward is on"
    two = dataclasses.replace(CPU_ONLY, processes=2)
    with pytest.raises(UserError, match="2 processes share their gradients"):
        planner.draft(trainer.config(**FUSED), trainer.workspace, two)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train__precision": "fp32"}, "Precision is fp32"),
        ({"train__precision": "auto"}, "Precision is fp32"),
        ({"optim__name": "prodigy"}, "Prodigy cannot update one weight after another"),
    ],
    ids=lambda value: str(value),
)
def test_weights_as_bf16_are_refused_with_a_reason(
    trainer: Trainer, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=f"kept as: bf16 is not possible: {reason}") as refused:
        planned(trainer, **IN_BF16 | changes)
    assert refused.value.path == "train.weights" and refused.value.hint


def test_auto_keeps_what_is_plain(trainer: Trainer) -> None:
    plan = planned(trainer, method=FULL, train__precision="bf16")
    assert (plan.trained_as, plan.fused_backward) == ("fp32", False)
    assert planned(trainer, **IN_BF16).trained_as == "bf16" and planned(trainer, **FUSED).fused_backward
