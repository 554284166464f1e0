"""The frozen base in 8 and 4 bits: what it holds, how exact it is, and that every method learns on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import DRAWING, Killed, Trainer
from safetensors.torch import load_file
from torch.nn import functional

from sdtrainer import families, planner
from sdtrainer.events import Event, Sampled, Saved, Validated
from sdtrainer.families import STARTER
from sdtrainer.frozen import linears, why_not_quantise
from sdtrainer.hardware import CPU_ONLY, Machine, imagined
from sdtrainer.memory import estimate
from sdtrainer.methods import METHODS, method_of
from sdtrainer.plan import Plan
from sdtrainer.seams import DENOISER, Batch, Conditioning, ExportOrder, Latents, LearningRates, Parts
from sdtrainer.section import UserError
from sdtrainer.trace import passes
from sdtrainer.trace.live import LiveBytes
from sdtrainer.training import quantized
from sdtrainer.training.control import Control
from sdtrainer.training.quantized import QuantizedLinear, quantise
from sdtrainer.training.step import TrainStep

KINDS: tuple[Any, ...] = ("int8", "nf4")
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "loha": {"rank": 2}, "lokr": {"rank": 2}, "hypernetwork": {},
    "textual_inversion": {"tokens": ["<zib>"], "init": ["a"], "vectors": 1},
}  # fmt: skip


def planned(trainer: Trainer, machine: Machine = CPU_ONLY, **changes: Any) -> Plan:
    return planner.draft(trainer.config(**changes), trainer.workspace, machine).plan


def loaded(plan: Plan) -> Parts:
    """The base with its denoiser as the plan has it."""
    family = families.family_of(plan.facts)
    parts = family.load(plan.facts, plan.facts.parts, dict.fromkeys(plan.facts.parts, torch.float32))
    quantise(parts.denoiser, plan.frozen_as, plan.device)
    return parts


def batch_of(plan: Plan, parts: Parts, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    side = plan.resolutions[0] // plan.facts.pixels_per_latent
    latents = Latents(drawn(size, 4, side, side), torch.zeros(size, 4, side, side))
    tokens = None if plan.cache_text else families.family_of(plan.facts).tokenize(parts, ["<zib>"] * size, 1)
    text = Conditioning(drawn(size, 77, plan.facts.text_width)) if plan.cache_text else None
    return Batch(torch.ones(size), torch.zeros(size, 6), latents, conditioning=text, tokens=tokens)


def bytes_of(module: torch.nn.Module) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in module.parameters()}
    return sum(storages.values())


# -- one layer --------------------------------------------------------------------------------------


def test_rows_rounded_some_at_a_time_are_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(24, 50).requires_grad_(False)
    whole = QuantizedLinear(layer, "int8", "cpu")
    monkeypatch.setattr(quantized, "_AT_ONCE", 100)
    parts = QuantizedLinear(layer, "int8", "cpu")
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.scales, parts.scales)
    assert parts.codes.shape == (50, 24) and parts.scales.shape == (50, 1)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.01), ("nf4", 0.1)])
@pytest.mark.parametrize("width", [6, 32, 96, 128])
def test_a_layer_computes_with_its_rounded_weight(kind: Any, error: float, width: int) -> None:
    """Product, gradient and `weight` are of one and the same matrix, near the one that was rounded."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(width, 24).requires_grad_(False)
    layer = QuantizedLinear(plain, kind, "cpu")
    assert 0 < (layer.weight - plain.weight).norm() < error * plain.weight.norm()
    given = torch.randn(3, 5, width, requires_grad=True)
    twin = given.detach().clone().requires_grad_()
    (layer(given) ** 2).sum().backward()
    (functional.linear(twin, layer.weight, plain.bias) ** 2).sum().backward()
    assert torch.allclose(layer(given), functional.linear(twin, layer.weight, plain.bias), atol=1e-6)
    assert given.grad is not None and twin.grad is not None
    assert torch.allclose(given.grad, twin.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_follows_mixed_precision(kind: Any) -> None:
    plain = torch.nn.Linear(64, 64).requires_grad_(False)
    given = torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, twin = QuantizedLinear(plain, kind, "cpu")(given), plain(given)
    assert out.dtype == twin.dtype == torch.bfloat16
    out.sum().backward()
    assert given.grad is not None and given.grad.dtype == torch.float32
    assert (out - twin).norm() < 0.15 * twin.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_whole_waits_for_the_backward_pass(kind: Any) -> None:
    layer = QuantizedLinear(torch.nn.Linear(64, 64).requires_grad_(False), kind, "cpu")
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(4, 64, requires_grad=True))
    assert {t.data_ptr() for t in kept} == {layer.codes.data_ptr(), layer.scales.data_ptr()}


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_the_same_each_time_and_outlives_moves(kind: Any) -> None:
    plain = torch.nn.Linear(96, 40).requires_grad_(False)
    one, other = (QuantizedLinear(plain, kind, "cpu") for _ in range(2))
    moved = other.to(torch.device("cpu")).eval()
    assert torch.equal(one.codes, moved.codes) and torch.equal(one.scales, moved.scales)
    assert not any(p.requires_grad for p in moved.parameters())


# -- the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [("int8", 1e-4), ("nf4", 2e-2)])
def test_the_starter_predicts_nearly_the_same(trainer: Trainer, kind: Any, most: float) -> None:
    """Mean squared difference of the predictions, against their own mean square."""
    plan = planned(trainer, base__path=STARTER, train__resolution=128)
    parts = loaded(plan)
    batch = batch_of(plan, parts)
    assert batch.latents is not None and batch.conditioning is not None

    def predictions() -> torch.Tensor:
        given = batch.latents.mean, torch.tensor([100, 700]), batch.conditioning.prompt_embeds
        with torch.no_grad():
            return parts.denoiser(*given).sample

    exact = predictions()
    quantise(parts.denoiser, kind, "cpu")
    difference = (predictions() - exact).square().mean() / exact.square().mean()
    assert 0 < difference < most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
def test_every_method_learns_on_it(trainer: Trainer, kind: Any, method: str) -> None:
    """The loss of one and the same batch and noise falls, and only what the method trains has changed."""
    settings = {"kind": method, **SMALL[method]}
    plan = planned(trainer, base__quantize=kind, method=settings, data__cache_text="auto")
    parts = loaded(plan)
    assert len([m for m in parts.denoiser.modules() if isinstance(m, QuantizedLinear)]) > 20
    made = method_of(method)
    groups = made.attach(parts, plan.config.method, LearningRates(1e-3, 1e-3))
    step, batch = TrainStep(families.family_of(plan.facts), parts, plan), batch_of(plan, parts)
    trained = [p for group in groups for p in group.parameters]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    losses = []
    for _ in range(2):
        loss = step(batch, torch.Generator().manual_seed(1)).mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        norm = torch.nn.utils.clip_grad_norm_(trained, 0.05)
        assert norm > 0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "loha", "lokr"])
def test_an_adapter_is_the_same_difference_on_the_plain_base(
    trainer: Trainer, tmp_path: Any, kind: Any, method: str
) -> None:
    """Exported from the rounded base and merged into the plain one, it adds what it added while training."""
    plan = planned(trainer, base__quantize=kind, method={"kind": method, **SMALL[method]})
    parts, made = loaded(plan), method_of(method)
    rounded = {path: layer.weight for path, layer in linears(parts.denoiser)}
    made.attach(parts, plan.config.method, LearningRates(1e-3, 1e-3))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in parts.denoiser.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    parts.denoiser.eval()
    (path,) = made.export(parts, plan.config.method, ExportOrder(tmp_path, "zib", "fp32", ("webui",), {}))
    plain = loaded(planned(trainer))
    before = {name: p.clone() for name, p in plain.denoiser.named_parameters()}
    made.put_on(plain, path, 1.0)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    change = plain.denoiser.get_submodule(name).weight - before[f"{name}.weight"]
    assert change.norm() > 0.01
    given = torch.randn(3, change.shape[1])
    out = parts.denoiser.get_submodule(name)(given)
    assert torch.allclose(out, functional.linear(given, rounded[name] + change), atol=1e-4)


# -- the ledger -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["attention", "with convolutions"])
def test_the_ledger_is_what_lies_in_memory(trainer: Trainer, kind: Any, targets: str) -> None:
    plan = planned(trainer, base__quantize=kind, method__targets=targets, method__rank=8)
    ledger, parts = estimate(plan), loaded(plan)

    def weights(phase: str) -> int:
        rows = [r for r in ledger.rows if (r.part, r.phase, r.what) == (DENOISER, phase, "weights")]
        return sum(r.bytes for r in rows)

    assert weights("cache") == bytes_of(parts.denoiser)
    method_of("lora").attach(parts, plan.config.method, LearningRates(1.0, 1.0))
    assert weights("train") == weights("sample") == bytes_of(parts.denoiser)
    plain = estimate(planned(trainer, method__targets=targets, method__rank=8))
    assert ledger.held("train") < plain.held("train") and ledger.trained == plain.trained
    assert ledger.blocks == plain.blocks and ledger.unknown == plain.unknown


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_holds_no_more_than_the_largest_weight_beside(trainer: Trainer, kind: Any) -> None:
    """Against the same step on the plain base, whose weights do not count in either."""
    peaks, temporary = {}, {}
    for name in ("plain", kind):
        plan = planned(trainer, base__quantize=name, method__targets="with convolutions")
        parts = loaded(plan)
        method_of("lora").attach(parts, plan.config.method, LearningRates(1.0, 1.0))
        step, batch = TrainStep(families.family_of(plan.facts), parts, plan), batch_of(plan, parts)
        counter = LiveBytes(t for m in parts.modules.values() for t in (*m.parameters(), *m.buffers()))
        with counter:
            peaks[name] = max(passes.step(step, batch, counter).held)
        rows = [r for r in estimate(plan).rows if (r.phase, r.what) == ("train", "temporary")]
        temporary[name] = sum(r.bytes for r in rows)
        layers = [m for m in parts.denoiser.modules() if isinstance(m, QuantizedLinear)]
    row = temporary[kind] - temporary["plain"]
    assert row == max(layer.weight.nbytes for layer in layers)
    assert peaks[kind] - peaks["plain"] <= row


def test_fewer_bits_never_hold_more(trainer: Trainer) -> None:
    held = [
        estimate(planned(trainer, imagined(8), base__quantize=k)).held("train") for k in ("plain", *KINDS)
    ]
    assert held == sorted(held, reverse=True) and len(set(held)) == 3


# -- a run ------------------------------------------------------------------------------------------


def test_a_run_on_four_bits_resumes_and_learns(trainer: Trainer) -> None:
    def die(event: Event, control: Control) -> None:
        if isinstance(event, Saved):
            raise Killed

    settings: dict[str, Any] = {
        "base__quantize": "nf4", "optim__lr": 1e-2, "train__steps": "8", "train__validate_every": "8",
        "sample__every": "8", "sample__at_start": False, **DRAWING,
    }  # fmt: skip
    whole, cut = trainer.new(**settings), trainer.new(**settings)
    happened = trainer.run(whole)
    trainer.run(cut, on_event=die)
    trainer.run(cut)
    one, other = (load_file(f.output / "test.safetensors") for f in (whole, cut))
    assert one and all(torch.equal(one[key], other[key]) for key in one)
    assert any(isinstance(event, Sampled) for event in happened)
    losses = [event.loss for event in happened if isinstance(event, Validated)]
    assert losses[-1] < losses[0]


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "word"), [({"kind": "full"}, "Full fine-tuning"), ({"kind": "lora", "dora": True}, "DoRA")]
)
def test_methods_that_need_the_exact_base_are_refused(
    trainer: Trainer, kind: Any, method: dict[str, Any], word: str
) -> None:
    with pytest.raises(UserError, match=word) as raised:
        planned(trainer, method=method, base__quantize=kind)
    assert raised.value.path == "base.quantize" and raised.value.hint
    assert planned(trainer, method=method).frozen_as == "plain"
    assert word in why_not_quantise(kind, trainer.config(method=method), "cpu")


@pytest.mark.parametrize("kind", ["plain", "int8", "nf4"])
def test_a_given_kind_is_taken(trainer: Trainer, kind: str) -> None:
    assert planned(trainer, imagined(8), base__quantize=kind).frozen_as == kind
