"""The card's memory runs out, anywhere: the run goes on to the same end, more leanly where it must."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from conftest import DRAWING, Trainer, make_trainer
from test_train import assert_same, exported, losses, of

from sdtrainer import fitting, frozen, planner
from sdtrainer.events import Event, Finished, Revised, RolledBack, Said, Sampled, Validated
from sdtrainer.families.sd import StableDiffusion
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.methods import method_of
from sdtrainer.plan import Plan
from sdtrainer.sample import Sampler
from sdtrainer.section import UserError
from sdtrainer.training import checkpoint, recovery, shortage, validate
from sdtrainer.training.feed import Feed
from sdtrainer.training.run import failure_of
from sdtrainer.training.spill import WARNING, Spill
from sdtrainer.training.step import TrainStep
from sdtrainer.workspace import RunFolder, Workspace

METHOD = method_of("lora")
STAGES: dict[str, tuple[Any, str]] = {
    "class images": (Sampler, "draw_all"),
    "caching latents": (StableDiffusion, "encode_images"),
    "caching text": (StableDiffusion, "encode_text"),
    "forward": (TrainStep, "forward"),
    "backward": (Accelerator, "backward"),
    "optimizer": (AcceleratedOptimizer, "step"),
    "validation": (validate, "fixed_loss"),
    "sampling": (Sampler, "draw_all"),
    "export": (type(METHOD), "export"),
}
"""What is called in each stage."""
ALWAYS = range(10**6)


@contextmanager
def failing(stage: str, at: Container[int]) -> Iterator[None]:
    """Let these calls of a stage, counted from 0, do their work and then run out of memory.

    When memory is to be freed, nothing of a call that failed may be held any more.
    """
    owner, name = STAGES[stage]
    honest = getattr(owner, name)
    number, left = itertools.count(), []

    def call(*given: Any, **named: Any) -> Any:
        out = honest(*given, **named)
        if next(number) not in at:
            return out
        activations = torch.ones(1000)
        left.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def freed() -> None:
        assert not any(held() is not None for held in left)

    with patch.object(owner, name, call), patch.object(shortage, "free", freed):
        yield
    assert left, "nothing failed"


@dataclass
class Seen:
    """What a run did: its events, and the images of each batch in the order in which they came first."""

    folder: RunFolder
    happened: list[Event]
    batches: dict[int, list[str]] = field(default_factory=dict)

    def said(self, words: str) -> list[Said]:
        return [event for event in of(Said, self.happened) if words in event.text]


def run(trainer: Trainer, folder: RunFolder, *faults: Any) -> Seen:
    """Train to the end with these faults."""
    seen, honest = Seen(folder, []), Feed.batch

    def batch(self: Feed, number: int) -> Any:
        seen.batches.setdefault(number, self.files(number))
        return honest(self, number)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Feed, "batch", batch))
        for fault in faults:
            stack.enter_context(fault)
        trainer.run(folder, on_event=lambda event, _: seen.happened.append(event))
    return seen


SETTINGS: dict[str, Any] = {
    "train__steps": "6", "train__validate_every": "3", "sample__every": "3", "checkpoint__every": "2",
    "prior__class_prompt": "a disc", "prior__images": 2, "prior__steps": 1, "sample__steps": 1, **DRAWING,
}  # fmt: skip


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory, base: Path, images: Path, held_out: Path) -> Seen:
    trainer = make_trainer(Workspace(tmp_path_factory.mktemp("untroubled")), base, images, held_out)
    return run(trainer, trainer.new(**SETTINGS))


def assert_went_the_same_way(troubled: Seen, untroubled: Seen) -> None:
    """The same steps on the same images in the same order, looked at just as often."""
    finished = troubled.happened[-1]
    assert isinstance(finished, Finished) and finished.step == 6
    assert (troubled.folder.path / finished.path).is_file()
    assert list(troubled.batches.items()) == list(untroubled.batches.items())
    for kind in (Validated, Sampled):
        steps = [[event.step for event in of(kind, seen.happened)] for seen in (troubled, untroubled)]
        assert steps[0] == steps[1]


# -- a failure that passes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at",
    [
        {
            "class images": {0}, "caching latents": {2}, "caching text": {2}, "validation": {1},
            "sampling": {3}, "export": {0}, "forward": {0},
        },
        {"backward": {3}},
        {"optimizer": {5}},
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_run_that_ran_out_of_memory_once_ends_the_same(
    trainer: Trainer, untroubled: Seen, at: dict[str, set[int]]
) -> None:
    """Bit for bit, wherever it ran out."""
    troubled = run(trainer, trainer.new(**SETTINGS), *(failing(*fault) for fault in at.items()))
    assert_went_the_same_way(troubled, untroubled)
    assert losses(troubled.folder) == losses(untroubled.folder)
    assert_same(exported(troubled.folder), exported(untroubled.folder))
    assert not of(Revised, troubled.happened)
    steps = [step for stage in ("forward", "backward", "optimizer") for step in at.get(stage, ())]
    assert all(troubled.said(f"at step {step}. ") for step in steps) and len(troubled.said("ran out")) == 1
    back = [(event.step, event.to_step) for event in of(RolledBack, troubled.happened)]
    assert back == ([(5, 4)] if "optimizer" in at else []), "the last good state is the checkpoint's"


def test_what_is_too_large_to_keep_begins_anew(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-changed weights before the first checkpoint, here by a backward pass that updates them: read again
    from the base model.
    """
    monkeypatch.setattr(recovery, "SNAPSHOT_LIMIT", 0)
    settings = {
        "method": {"kind": "full", "train_text_encoder": True}, "checkpoint__every": "0",
        "train__steps": "4", "sample__prompts": [], "optim__ema": True, "optim__name": "adamw8bit",
        "train__validate_every": "0", "optim__fused_backward": "on", "optim__max_grad_norm": 0.0,
    }  # fmt: skip
    whole, troubled = trainer.new(**settings), trainer.new(**settings)
    trainer.run(whole)
    seen = run(trainer, troubled, failing("backward", {2}))
    (back,) = of(RolledBack, seen.happened)
    assert (back.step, back.to_step) == (2, 0)
    assert losses(troubled) == losses(whole)
    ends = [checkpoint.saved(folder.checkpoints)[-1] for folder in (whole, troubled)]
    one, other = (torch.load(end / "rest.pt", weights_only=True) for end in ends)
    assert str(one) == str(other)
    assert (ends[0] / "weights.safetensors").read_bytes() == (ends[1] / "weights.safetensors").read_bytes()


# -- a failure that comes back ----------------------------------------------------------------------


STEADY = SETTINGS | {"method__dropout": 0.0}


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, base: Path, images: Path, held_out: Path) -> Seen:
    trainer = make_trainer(Workspace(tmp_path_factory.mktemp("steady")), base, images, held_out)
    return run(trainer, trainer.new(**STEADY))


def assert_close(folder: RunFolder, other: RunFolder) -> None:
    """The same weights up to rounding."""
    assert losses(folder) == pytest.approx(losses(other), rel=1e-3)
    ours, theirs = exported(folder), exported(other)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0.02, atol=1e-4, msg=name)


@pytest.mark.parametrize(("stage", "at"), [("forward", {2, 3}), ("optimizer", {0, 1})])
def test_a_second_failure_takes_the_next_leaner_plan(
    trainer: Trainer, steady: Seen, stage: str, at: set[int]
) -> None:
    troubled = run(trainer, trainer.new(**STEADY), failing(stage, at))
    assert_went_the_same_way(troubled, steady)
    (revised,) = of(Revised, troubled.happened)
    plan = planned(troubled.folder)
    assert (revised.step, revised.revision) == (min(at), 2) and plan.revision == 2 and plan.batch_parts == 2
    assert troubled.said("from here on the batch goes through in 2 parts")
    assert_close(troubled.folder, steady.folder)


def test_when_nothing_leaner_is_left_the_run_says_so_and_can_be_resumed(
    trainer: Trainer, steady: Seen
) -> None:
    """By then the plan is the leanest, and who resumes goes on by it."""
    folder = trainer.new(**STEADY)
    with pytest.raises(UserError, match="ran out of memory at step 3") as raised:
        run(trainer, folder, failing("backward", range(3, 10**6)))
    assert raised.value.hint and raised.value.path
    plan = planned(folder)
    assert plan.checkpointing and plan.batch_parts == 2 and plan.revision == 3
    modules = []

    def forward(self: TrainStep, *given: Any) -> torch.Tensor:
        modules.append(self.parts.denoiser)
        return honest(self, *given)

    honest = TrainStep.forward
    with patch.object(TrainStep, "forward", forward):
        happened = trainer.run(folder)
    assert happened[0].step == 3 and isinstance(happened[-1], Finished)  # type: ignore[attr-defined]
    assert not of(Revised, happened) and planned(folder) == plan
    assert len(modules) == 3 * 2 and modules[0].is_gradient_checkpointing
    assert_close(folder, steady.folder)


def test_a_leaner_plan_holds_from_the_next_try_on(trainer: Trainer) -> None:
    """Three failures: again as it was, then in parts, then with checkpointing on top."""
    seen, honest = [], TrainStep.forward

    def forward(self: TrainStep, batch: Any, *given: Any) -> torch.Tensor:
        seen.append((len(batch.weight), self.parts.denoiser.is_gradient_checkpointing))
        return honest(self, batch, *given)

    folder = trainer.new(
        **STEADY | {"train__steps": "2", "sample__prompts": [], "train__validate_every": "0"}
    )
    with patch.object(TrainStep, "forward", forward):
        run(trainer, folder, failing("backward", {0, 1, 2}))
    assert seen[:3] == [(2, False), (2, False), (1, False)]
    assert seen[3:] == [(1, True)] * 4


def test_layers_can_go_to_main_memory_while_a_run_goes_on(trainer: Trainer) -> None:
    """Half of them, then all; on a processor the copies are real, too."""
    alone = STEADY | {"train__batch_size": 1, "train__checkpointing": "on", "sample__prompts": []}
    whole, folder = trainer.new(**alone), trainer.new(**alone)
    trainer.run(whole)
    denoisers, honest = [], TrainStep.forward

    def forward(self: TrainStep, *given: Any) -> torch.Tensor:
        denoisers.append(self.parts.denoiser)
        return honest(self, *given)

    with (
        patch.object(frozen, "why_not_offload", lambda *given: ""),
        patch.object(TrainStep, "forward", forward),
    ):
        troubled = run(trainer, folder, failing("backward", {1, 2, 3}))
    assert [event.revision for event in of(Revised, troubled.happened)] == [2, 3]
    assert planned(folder).offloaded == 1 and troubled.said("half of the layers wait in main memory")
    units = frozen.units(denoisers[-1])
    assert units and all(len(unit._forward_pre_hooks) == 1 for unit in units), "armed once each"
    assert losses(folder) == losses(whole)
    assert_same(exported(folder), exported(whole))


# -- what has a way of its own ----------------------------------------------------------------------


def test_pictures_and_validation_are_left_out_rather_than_the_run(trainer: Trainer) -> None:
    folder = trainer.new(train__steps="2", sample__every="0", train__validate_every="0", **DRAWING)
    troubled = run(trainer, folder, failing("sampling", ALWAYS), failing("validation", ALWAYS))
    assert isinstance(troubled.happened[-1], Finished)
    assert not of(Sampled, troubled.happened) and not of(Validated, troubled.happened)
    for step in (0, 2):
        assert troubled.said(f"at step {step} picture 1 is left out")
        assert troubled.said(f"at step {step} the validation is left out")


def test_what_the_card_cannot_prepare_the_processor_does(trainer: Trainer, untroubled: Seen) -> None:
    """Class images drawn together, again and one by one; captions likewise, once class images used five."""
    faults = failing("class images", range(3)), failing("caching latents", range(2))
    troubled = run(trainer, trainer.new(**SETTINGS), *faults, failing("caching text", range(5, 8)))
    assert_went_the_same_way(troubled, untroubled)
    assert losses(troubled.folder) == pytest.approx(losses(untroubled.folder), rel=1e-2)
    assert troubled.said("class images are drawn on the processor")
    assert troubled.said("preparing images") and troubled.said("preparing captions")


def test_more_frugally_the_same_is_seen(trainer: Trainer, steady: Seen) -> None:
    """Validated image by image, and a picture drawn with one part of the model at a time; it is one tile."""
    faults = failing("validation", {0, 1}), failing("sampling", {1, 2})
    troubled = run(trainer, trainer.new(**STEADY), *faults)
    found = [[event.loss for event in of(Validated, seen.happened)] for seen in (troubled, steady)]
    assert len(found[0]) == 3 and found[0] == pytest.approx(found[1], rel=1e-4)
    ours, theirs = (of(Sampled, seen.happened)[0].path for seen in (troubled, steady))
    assert (troubled.folder.path / ours).read_bytes() == (steady.folder.path / theirs).read_bytes()


def test_parts_that_take_turns_draw_the_same(
    trainer: Trainer, steady: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdtrainer.training import looking

    brought: list[tuple[str, ...]] = []
    usual = looking.bring_only

    def bring(parts: Any, plan: Plan, names: Any) -> None:
        brought.append(tuple(names))
        usual(parts, plan, names)

    monkeypatch.setattr(looking, "bring_only", bring)
    seen = run(trainer, trainer.new(**STEADY, sample__in_turn="on"))
    ours, theirs = (of(Sampled, each.happened)[0].path for each in (seen, steady))
    assert (seen.folder.path / ours).read_bytes() == (steady.folder.path / theirs).read_bytes()
    assert set(brought) == {("text_encoder",), ("denoiser",), ("vae",)}


# -- the parts --------------------------------------------------------------------------------------


def planned(folder: RunFolder) -> Plan:
    draft = planner.load(folder)
    assert draft is not None
    return draft.plan


def drafted(trainer: Trainer, **changes: Any) -> Plan:
    return planner.draft(trainer.config(**changes), trainer.workspace, CPU_ONLY).plan


def rungs(plan: Plan) -> Iterator[tuple[Plan, str]]:
    while found := fitting.leaner(plan):
        plan = found[0]
        yield found


def test_leaner_plans_come_to_an_end(trainer: Trainer) -> None:
    plan = drafted(trainer, train__batch_size=6)
    found = [plan, *(made for made, _ in rungs(plan))]
    assert [made.revision for made in found] == list(range(1, len(found) + 1))
    assert [made.batch_parts for made in found] == [1, 2, 4, 6, 6]
    assert [made.checkpointing for made in found] == [False] * 4 + [True]
    same = {"revision": 1, "batch_parts": 1, "placements": plan.placements, "checkpointing": False}
    assert all(dataclasses.replace(made, **same) == plan for made in found)
    assert all(words for _, words in rungs(plan))


def test_what_the_user_has_fixed_changes_last(trainer: Trainer) -> None:
    plan = drafted(trainer, train__batch_size=3, train__batch_parts=2)
    assert [(made.batch_parts, made.checkpointing) for made, _ in rungs(plan)] == [(2, True), (3, True)]
    assert not list(rungs(drafted(trainer, train__batch_size=1, train__checkpointing="on")))


def test_gradients_that_come_in_parts_are_not_used_at_once(trainer: Trainer) -> None:
    plan = drafted(trainer, optim__fused_backward="on", optim__max_grad_norm=0.0)
    assert plan.fused_backward
    assert [(made.batch_parts, made.checkpointing) for made, _ in rungs(plan)] == [(1, True)]


@pytest.mark.parametrize(
    ("error", "is_shortage"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_shortage_is_told_from_other_errors(error: Exception, is_shortage: bool) -> None:
    assert shortage.ran_out(error) is is_shortage
    assert failure_of(error).what.startswith("The card ran out of memory") is is_shortage


def test_what_only_a_circle_holds_is_freed() -> None:
    circle = [torch.ones(1)]
    circle.append(circle)  # type: ignore[arg-type]
    held = weakref.ref(circle[0])
    del circle
    shortage.free()
    assert held() is None


def test_other_errors_are_not_swallowed() -> None:
    def broken() -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        shortage.first_that_fits(broken, lambda: None)


GIB = 2**30


def looked(*seen: tuple[float, float]) -> list[int]:
    """The reports, seconds per step and GiB, at which a card of 8 GiB is warned of."""
    spill = Spill(8 * GIB)
    return [
        number for number, (seconds, gib) in enumerate(seen) if spill.look(seconds, int(gib * GIB)) == WARNING
    ]


def test_memory_that_spills_is_warned_of_once() -> None:
    assert looked(*[(1.0, 7.0)] * 9) == []
    assert looked(*[(1.0, 7.0)] * 9, (1.0, 8.1), (1.0, 8.1)) == [9]
    assert looked(*[(1.0, 7.5)] * 9, (4.0, 7.5), (9.0, 7.5)) == [9]
    assert looked(*[(1.0, 4.0)] * 9, (4.0, 4.0)) == [], "slower, but with room to spare"
    assert looked((0.0, 7.9), (1.0, 7.9), (8.0, 7.9)) == [], "too early to know what is usual"


def test_another_pace_is_no_spill() -> None:
    spill = Spill(8 * GIB)
    assert not any(spill.look(1.0, int(7.9 * GIB)) for _ in range(9))
    spill.forget()
    assert not any(spill.look(5.0, int(7.9 * GIB)) for _ in range(9))
