"""Layers that wait in main memory: the same numbers as without, and never more than one unit at once.

The processor stands in for the card: there, too, a unit computes with copies of its parameters.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import DRAWING, Killed, Trainer
from safetensors.torch import load_file

from sdtrainer import families, fitting, frozen, planner, storage
from sdtrainer.events import Event, Sampled, Saved
from sdtrainer.hardware import CPU_ONLY, Machine, imagined
from sdtrainer.memory import estimate
from sdtrainer.methods import method_of
from sdtrainer.plan import Plan
from sdtrainer.seams import DENOISER, Batch, Latents, LearningRates, Parts
from sdtrainer.section import UserError
from sdtrainer.training import waiting
from sdtrainer.training.control import Control
from sdtrainer.training.quantized import QuantizedLinear, quantise
from sdtrainer.training.setup import arm
from sdtrainer.training.step import TrainStep
from sdtrainer.workspace import RunFolder

CARD = imagined(8)


def planned(trainer: Trainer, machine: Machine = CPU_ONLY, **changes: Any) -> Plan:
    config = trainer.config(train__checkpointing="on", **changes)
    return planner.draft(config, trainer.workspace, machine).plan


@dataclass
class Copies:
    """Bytes of the copies that are alive, and the most there ever were."""

    now: int = 0
    most: int = 0
    visits: int = 0


@contextmanager
def watched(denoiser: torch.nn.Module) -> Iterator[Copies]:
    """Count the copies with which the units run inside."""
    copies = Copies()
    seen = weakref.WeakKeyDictionary({p.untyped_storage(): True for p in denoiser.parameters()})

    def lose(size: int) -> None:
        copies.now -= size

    def look(unit: torch.nn.Module, given: Any) -> None:
        new = [s for p in unit.parameters() if (s := p.untyped_storage()) not in seen]
        copies.visits += bool(new)
        for storage_ in new:
            seen[storage_] = True
            copies.now += storage_.nbytes()
            weakref.finalize(storage_, lose, storage_.nbytes())
        copies.most = max(copies.most, copies.now)

    hooks = [unit.register_forward_pre_hook(look) for unit in frozen.units(denoiser)]
    yield copies
    for hook in hooks:
        hook.remove()


def loaded(plan: Plan) -> Parts:
    """The base as a run has it before its first step; 'cpu' stands for the card."""
    family = families.family_of(plan.facts)
    parts = family.load(plan.facts, plan.facts.parts, dict.fromkeys(plan.facts.parts, torch.float32))
    quantise(parts.denoiser, plan.frozen_as, "cpu")
    waiting.arm(parts.denoiser, plan.offloaded, "cpu")
    torch.manual_seed(0)
    method_of(plan.config.method.kind).attach(parts, plan.config.method, LearningRates(1e-3, 1e-3))
    arm(parts, plan)
    return parts


def a_step(plan: Plan, parts: Parts) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of one step."""
    family, generator = families.family_of(plan.facts), torch.Generator().manual_seed(0)
    latents = torch.randn(2, plan.facts.latent_channels, 8, 8, generator=generator)
    with torch.no_grad():
        text = family.encode_text(parts, family.tokenize(parts, ["zib", "a"], 1), 0, torch.zeros(2, 6))
    batch = Batch(torch.ones(2), torch.zeros(2, 6), Latents(latents, latents.abs()), conditioning=text)
    torch.manual_seed(1)  # dropout
    loss = TrainStep(family, parts, plan)(batch, generator).mean()
    loss.backward()
    gradients = [p.grad for m in parts.modules.values() for p in m.parameters() if p.grad is not None]
    return loss.item(), gradients


METHODS: tuple[dict[str, Any], ...] = (
    {"kind": "lora", "rank": 2, "targets": "with convolutions", "dropout": 0.1},
    {"kind": "lora", "rank": 2, "dora": True},
    {"kind": "lokr", "rank": 2},
    {"kind": "hypernetwork"},
)


@pytest.mark.parametrize(
    ("method", "kind"),
    [(METHODS[0], "nf4"), (METHODS[0], "int8"), *((method, "plain") for method in METHODS)],
)
def test_a_step_is_the_same_bit_for_bit(trainer: Trainer, method: dict[str, Any], kind: str) -> None:
    assert_the_same_waiting(planned(trainer, method=method, base__quantize=kind))


@pytest.mark.parametrize("kind", ["plain", "int8"])
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_step_of_other_families_is_the_same(
    trainer: Trainer, request: pytest.FixtureRequest, name: str, kind: str
) -> None:
    path = str(request.getfixturevalue(name))
    plan = planned(trainer, base__path=path, base__quantize=kind)
    assert frozen.units(loaded(plan).denoiser)
    assert_the_same_waiting(plan)


def assert_the_same_waiting(plan: Plan) -> None:
    assert plan.offloaded == 0
    loss, gradients = a_step(plan, loaded(plan))
    for part in (0.5, 1.0):
        offloaded = replace(plan, offloaded=part)
        other_loss, others = a_step(offloaded, loaded(offloaded))
        assert other_loss == loss
        assert len(others) == len(gradients) > 4
        assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


@pytest.mark.parametrize(
    ("name", "kind"), [("base", "plain"), ("base", "int8"), ("base", "nf4"), ("sd3", "plain")]
)
def test_one_unit_at_a_time_is_there(
    trainer: Trainer, request: pytest.FixtureRequest, name: str, kind: str
) -> None:
    """In the forward pass and, run again, in the backward pass; the ledger knows the size of the largest."""
    path = str(request.getfixturevalue(name))
    plan = replace(planned(trainer, base__path=path, base__quantize=kind), offloaded=1.0)
    parts = loaded(plan)
    units = frozen.units(parts.denoiser)
    at_home = {id(p) for p in parts.denoiser.parameters()}
    with watched(parts.denoiser) as copies:
        a_step(plan, parts)
    sizes = [sum(p.nbytes for p in unit.parameters() if not p.requires_grad) for unit in units]
    assert len(units) < copies.visits <= 2 * len(units), "what needs no gradient does not run again"
    assert copies.most == max(sizes)
    assert copies.now == 0
    assert {id(p) for p in parts.denoiser.parameters()} == at_home
    ledger = estimate(plan)
    held = {r.phase: r.bytes for r in ledger.rows if (r.part, r.what) == (DENOISER, "weights")}
    trained = sum(p.nbytes for p in parts.denoiser.parameters() if p.requires_grad)
    everything = sum(p.nbytes for p in parts.denoiser.parameters())
    assert held["train"] == everything - sum(sizes)
    assert held["cache"] == everything - trained - sum(sizes)
    assert ledger.waiting_bytes == sum(sizes)
    (passing,) = {r.bytes for r in ledger.rows if (r.phase, r.what) == ("sample", "temporary")}
    assert passing == max(size + _largest(unit) for size, unit in zip(sizes, units, strict=True))


def _largest(unit: torch.nn.Module) -> int:
    """Bytes of the largest weight that is made whole while a unit runs."""
    rounded = [layer for layer in unit.modules() if isinstance(layer, QuantizedLinear)]
    return max((layer.weight.nbytes for layer in rounded), default=0)


def test_drawing_without_gradients_leaves_no_copy(trainer: Trainer) -> None:
    plan = replace(planned(trainer), offloaded=1.0)
    parts = loaded(plan)
    with watched(parts.denoiser) as copies, torch.no_grad():
        text = torch.randn(1, 77, plan.facts.text_width)
        parts.denoiser(torch.randn(1, 4, 8, 8), torch.tensor([1]), text)
    assert copies.visits == len(frozen.units(parts.denoiser)) and copies.now == 0 < copies.most


def test_units_are_what_checkpointing_runs_again(trainer: Trainer) -> None:
    """Of all kinds of denoisers: a unit that did not run again would stay on the card between the passes."""
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    places = {"cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4, "layers_per_block": 1}
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 8), transformer_layers_per_block=(1, 2, 1), sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), **places,
    )  # fmt: skip
    transformer = SD3Transformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=8,
        caption_projection_dim=8, pooled_projection_dim=8, in_channels=4, out_channels=4,
    )  # fmt: skip
    image, text, steps = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8), torch.tensor([5])
    given: dict[Any, tuple[Any, ...]] = {
        unet: (image, steps, text),
        transformer: (image, text, torch.randn(1, 8), steps),
    }
    for model, arguments in given.items():
        run_again: list[torch.nn.Module] = []

        def note(module: torch.nn.Module, *rest: Any, seen: list[torch.nn.Module] = run_again) -> Any:
            seen.append(module)
            return torch.utils.checkpoint.checkpoint(module.__call__, *rest, use_reentrant=False)

        model.train().enable_gradient_checkpointing(note)
        model(*arguments)
        assert len(run_again) > 1
        assert {id(m) for m in run_again} == {id(m) for m in frozen.units(model)}


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 1.0])
def test_the_part_that_waits_is_about_what_was_asked(part: float) -> None:
    sizes = [5, 1, 9, 9, 3, 3, 3, 12, 1, 7] * 3
    found = frozen.chosen(sizes, part)
    waiting_bytes = sum(size for size, waits in zip(sizes, found, strict=True) if waits)
    assert abs(waiting_bytes - part * sum(sizes)) <= max(sizes) / 2
    assert any(found) == (part > 0) and all(found) == (part == 1)


# -- a run ------------------------------------------------------------------------------------------


def test_a_run_is_the_same_run_and_resumes(trainer: Trainer) -> None:
    """Steps, pictures, validation and a checkpoint in between; the file is the same to the last bit."""
    settings: dict[str, Any] = {
        "train__checkpointing": "on", "train__steps": "8", "train__validate_every": "8",
        "sample__every": "8", "sample__at_start": False, **DRAWING,
    }  # fmt: skip

    def new(part: float) -> RunFolder:
        folder = trainer.new(**settings)
        draft = planner.draft(folder.config(), trainer.workspace, CPU_ONLY)
        planner.save(replace(draft, plan=replace(draft.plan, offloaded=part)), folder)
        return folder

    def die(event: Event, control: Control) -> None:
        if isinstance(event, Saved):
            raise Killed

    plain, cut = new(0.0), new(1.0)
    trainer.run(plain)
    trainer.run(cut, on_event=die)
    happened = trainer.run(cut)
    one, other = (load_file(folder.output / "test.safetensors") for folder in (plain, cut))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    drawn = [event.path for event in happened if isinstance(event, Sampled)]
    assert drawn
    assert all((cut.path / path).read_bytes() == (plain.path / path).read_bytes() for path in drawn)


# -- what is planned, counted and refused -----------------------------------------------------------


def test_offloading_saves_on_the_card_and_takes_main_memory(trainer: Trainer) -> None:
    plans = [planned(trainer, CARD, train__offload=word) for word in ("off", "half", "all")]
    assert [plan.offloaded for plan in plans] == [0.0, 0.5, 1.0]
    held = [estimate(plan).held("train") for plan in plans]
    assert held == sorted(held, reverse=True) and len(set(held)) == 3
    needs = [sum(n.bytes for n in storage.needs(plan, estimate(plan)) if "wait" in n.what) for plan in plans]
    assert needs[0] == 0 and needs == sorted(needs)


def test_checkpointing_follows_if_it_is_not_fixed(trainer: Trainer) -> None:
    plan = planner.draft(trainer.config(train__offload="all"), trainer.workspace, CARD).plan
    free = [axis for axis in fitting.AXES if axis.is_free(plan)]
    tried = list(fitting.combinations(plan, free))
    assert len(tried) > 1
    for made in (plan, *tried):
        assert made.checkpointing and made.place(DENOISER, "train").is_checkpointed


@pytest.mark.parametrize(
    ("machine", "changes", "words"),
    [
        (CPU_ONLY, {}, "no graphics card"),
        (replace(CARD, processes=2), {}, "several cards"),
        (CARD, {"method": {"kind": "full"}}, "Full fine-tuning"),
        (CARD, {"train__checkpointing": "off"}, "gradient checkpointing"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    trainer: Trainer, machine: Machine, changes: dict[str, Any], words: str
) -> None:
    config = trainer.config(train__offload="half", **changes)
    with pytest.raises(UserError, match=words) as raised:
        planner.draft(config, trainer.workspace, machine)
    assert raised.value.path == "train.offload" and raised.value.hint
    is_checkpointed = config.train.checkpointing != "off"
    assert words in frozen.why_not_offload(config, machine.device, machine.processes, is_checkpointed)
