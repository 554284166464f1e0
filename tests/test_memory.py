"""The ledger: numbers of the real Stable Diffusion 1.5, and bytes as they lie in memory after a real step."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sd15
import torch
from conftest import Trainer
from safetensors.torch import load_file

from sdtrainer import families, optim, planner
from sdtrainer.hardware import CPU_ONLY, Machine, imagined
from sdtrainer.memory import Ledger, estimate
from sdtrainer.methods import method_of
from sdtrainer.plan import Plan
from sdtrainer.seams import DENOISER, VAE, Batch, Conditioning, ExportOrder, Latents, LearningRates, Parts
from sdtrainer.training.step import TrainStep

ENCODER = "text_encoder"
CARD = imagined(8)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stable Diffusion 1.5, without weights."""
    return str(sd15.write(tmp_path_factory.mktemp("models") / "sd15"))


def planned(trainer: Trainer, machine: Machine, **changes: Any) -> Plan:
    return planner.draft(trainer.config(**changes), trainer.workspace, machine).plan


def held(ledger: Ledger, part: str, phase: str, what: str) -> int:
    return sum(r.bytes for r in ledger.rows if (r.part, r.phase, r.what) == (part, phase, what))


# -- the published model ----------------------------------------------------------------------------


def test_weights_of_the_published_model(trainer: Trainer, published: str) -> None:
    ledger = estimate(planned(trainer, CARD, base__path=published, method__rank=4))
    assert held(ledger, VAE, "sample", "weights") == 4 * sd15.VAE
    assert held(ledger, ENCODER, "sample", "weights") == 2 * sd15.TEXT_ENCODER
    assert held(ledger, DENOISER, "train", "weights") == 2 * sd15.UNET + 4 * ledger.trained
    assert {r.part for r in ledger.rows if r.phase == "train" and r.what == "weights"} == {DENOISER}
    full = estimate(planned(trainer, CARD, base__path=published, method__rank=4, train__precision="fp32"))
    assert held(full, DENOISER, "train", "weights") == 4 * sd15.UNET + 4 * full.trained


def test_adapters_on_the_published_model(trainer: Trainer, published: str) -> None:
    """797,184 is what diffusers' LoRA of rank 4 on SD 1.5's attention has always had: files of 3.2 MB."""
    small = {"base__path": published, "method__rank": 4, "method__targets": "attention"}
    attention = estimate(planned(trainer, CARD, **small))
    assert attention.trained == 797_184
    twice = estimate(planned(trainer, CARD, **small | {"method__rank": 8}))
    assert twice.trained == 2 * attention.trained
    with_text = estimate(planned(trainer, CARD, **small, method__train_text_encoder=True))
    assert with_text.trained - attention.trained == 12 * 4 * 4 * (768 + 768)
    assert held(with_text, ENCODER, "train", "gradients") == 4 * (with_text.trained - attention.trained)


@pytest.mark.parametrize("targets", ["attention", "attention and feed-forward", "with convolutions"])
def test_adapters_are_rank_times_in_plus_out(trainer: Trainer, published: str, targets: str) -> None:
    """The count without peft, from the shapes of the layers chosen. A down-projection keeps the kernel."""
    import torch

    from sdtrainer.methods import targets as chosen

    plan = planned(trainer, CARD, base__path=published, method__rank=4, method__targets=targets)
    denoiser = families.family_of(plan.facts).skeleton(plan.facts)[DENOISER]
    layers = dict(denoiser.named_modules())
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    paths = chosen.choose(denoiser, chosen.patterns(plan.config.method, DENOISER), kinds)
    shapes = [layers[path].weight.shape for path in paths]
    assert len(paths) > 100
    assert estimate(plan).trained == sum(4 * (shape[1:].numel() + shape[0]) for shape in shapes)


def test_a_larger_average_and_optimizer_cost_what_they_hold(trainer: Trainer, published: str) -> None:
    base = {"base__path": published, "method__rank": 16}
    exact = estimate(planned(trainer, CARD, **base, optim__name="adamw", optim__ema=True))
    small = estimate(planned(trainer, CARD, **base, optim__name="adamw8bit"))
    assert held(exact, DENOISER, "train", "average") == 4 * exact.trained
    assert held(exact, DENOISER, "train", "optimizer") == pytest.approx(8 * exact.trained, rel=0.001)
    assert held(small, DENOISER, "train", "optimizer") == pytest.approx(2 * small.trained, rel=0.05)
    assert exact.held("train") > small.held("train") > 2 * sd15.UNET
    assert small.peak_phase == "sample"


def test_only_the_optimizer_is_held_while_exporting(trainer: Trainer, published: str) -> None:
    ledger = estimate(planned(trainer, CARD, base__path=published, method__rank=4))
    optimizer = held(ledger, DENOISER, "train", "optimizer")
    assert ledger.held("export") - held(ledger, "", "export", "overhead") == optimizer
    assert ledger.held("export") < ledger.held("cache")


def test_estimates_after_the_first_are_quick(trainer: Trainer, published: str) -> None:
    """Printed, not asserted: tests run on busy machines."""
    for batch in range(1, 4):
        plan = planned(trainer, CARD, base__path=published, method__rank=64, train__batch_size=batch)
        began = time.perf_counter()
        estimate(plan)
        print(f"estimate {batch}: {1000 * (time.perf_counter() - began):.1f} ms")


# -- bytes as they lie in memory --------------------------------------------------------------------


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages; what several tensors share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def after_a_step(plan: Plan) -> tuple[Parts, torch.optim.Optimizer]:
    """Load, attach and take one optimizer step on random latents; gradients are kept."""
    family, method = families.family_of(plan.facts), method_of(plan.config.method.kind)
    parts = family.load(plan.facts, plan.facts.parts, dict.fromkeys(plan.facts.parts, torch.float32))
    groups = method.attach(parts, plan.config.method, LearningRates(1e-3, 1e-3))
    optimizer = optim.build(optim.find(plan.optimizer), groups, plan.config.optim)
    latents = Latents(torch.randn(2, 4, 8, 8), torch.ones(2, 4, 8, 8))
    tokens = None if plan.cache_text else family.tokenize(parts, ["a zib", "a disc"], 1)
    text = Conditioning(torch.randn(2, 77, plan.facts.text_width)) if plan.cache_text else None
    batch = Batch(torch.ones(2), torch.zeros(2, 6), latents=latents, conditioning=text, tokens=tokens)
    TrainStep(family, parts, plan)(batch, torch.Generator()).mean().backward()
    optimizer.step()
    return parts, optimizer


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "lion8bit"])
@pytest.mark.parametrize("with_text", [False, True])
def test_ledger_is_what_lies_in_memory(trainer: Trainer, optimizer: str, with_text: bool) -> None:
    plan = planned(
        trainer, CPU_ONLY, optim__name=optimizer, method__rank=32, method__targets="with convolutions",
        method__train_text_encoder=with_text,
    )  # fmt: skip
    ledger = estimate(plan)
    parts, live = after_a_step(plan)
    trained = [p for group in live.param_groups for p in group["params"]]
    assert ledger.trained == sum(p.numel() for p in trained)
    for part in plan.facts.parts:
        module = parts.modules[part]
        assert held(ledger, part, "train", "weights") == bytes_of(module.parameters()), part
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert held(ledger, part, "train", "gradients") == bytes_of(gradients), part
    state = [value for s in live.state.values() for value in s.values() if isinstance(value, torch.Tensor)]
    rows = [held(ledger, part, "train", "optimizer") for part in plan.facts.parts]
    assert sum(rows) == bytes_of(state) > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_exported_tensors_have_the_promised_size(
    trainer: Trainer, tmp_path: Path, precision: Any
) -> None:
    plan = planned(trainer, CPU_ONLY, method__rank=32, export__precision=precision)
    parts, _ = after_a_step(plan)
    order = ExportOrder(tmp_path, "zib", precision, ("webui",), {})
    (path,) = method_of("lora").export(parts, plan.config.method, order)
    assert estimate(plan).exported_bytes == sum(t.nbytes for t in load_file(path).values())
