"""Prior preservation: class images are drawn once, shown as often as the subject's own, each in its turn; and
a text encoder that stops learning stays as it is.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import Killed, Trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_train import _die_at, assert_same, exported, losses, of

from sdtrainer import advice, planner
from sdtrainer.data import prior
from sdtrainer.data.census import Sample
from sdtrainer.data.items import (
    Item,
    bucket_counts,
    caption_of,
    class_turns,
    epoch_batches,
    num_batches,
    order,
    plan_items,
)
from sdtrainer.data.prior import PriorSection
from sdtrainer.data.section import DataSection
from sdtrainer.events import Event, Progress, Stepped
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.plan import Plan
from sdtrainer.section import UserError
from sdtrainer.training import checkpoint
from sdtrainer.training.control import Control
from sdtrainer.workspace import RunFolder

SHAPES = [(512, 512), (640, 480), (480, 640), (1000, 400)]
QUIET: dict[str, Any] = {"sample__prompts": [], "train__validate_every": "0"}
PRIOR: dict[str, Any] = QUIET | {"prior__class_prompt": "a disc", "prior__images": 6, "prior__steps": 2}
quick = settings(deadline=None, max_examples=60)


# -- class images in the order of an epoch ----------------------------------------------------------


def census(count: int, shapes: list[tuple[int, int]], caption: str = "dog") -> Any:
    samples = [
        Sample(f"{i}.png", Path("/images"), *shapes[i % len(shapes)], caption, ".txt", "", 1, 1, 1)
        for i in range(count)
    ]
    return prior.Census(Path("/images"), tuple(samples), (), "")


def mixed(own: int, repeats: int, class_images: int, shapes: int, weight: float = 0.5) -> tuple[Item, ...]:
    data = DataSection(repeats=repeats, trigger="zib", flip=True, shuffle_tags=True, caption_dropout=0.9)
    beside = prior.class_items(
        census(class_images, SHAPES[:shapes]), PriorSection(class_prompt="a dog", weight=weight), data, [512]
    )
    return plan_items(census(own, SHAPES).samples, data, [512]) + beside


a_mixture = st.builds(mixed, st.integers(1, 9), st.integers(1, 3), st.integers(1, 25), st.integers(1, 4))


@quick
@given(a_mixture, st.integers(1, 5), st.integers(0, 9), st.integers(0, 30))
def test_an_epoch_shows_as_many_class_images_as_others(
    items: tuple[Item, ...], batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(items, batch_size, seed, epoch)
    shown = Counter(items[draw.item].is_class_image for batch in batches for draw in batch)
    assert shown[True] == shown[False] == sum(bucket_counts(items).values())
    own = Counter(draw.item for batch in batches for draw in batch if not items[draw.item].is_class_image)
    assert own == {index: item.repeats for index, item in enumerate(items) if not item.is_class_image}
    assert batches == epoch_batches(items, batch_size, seed, epoch)


@quick
@given(a_mixture, st.integers(1, 5), st.integers(1, 3), st.integers(0, 30))
def test_all_epochs_are_of_one_length_and_batches_of_one_bucket(
    items: tuple[Item, ...], batch_size: int, world: int, epoch: int
) -> None:
    batches = epoch_batches(items, batch_size, 0, epoch)
    assert -(-len(batches) // world) == num_batches(items, batch_size, world)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(len({items[draw.item].bucket for draw in batch}) == 1 for batch in batches)


@quick
@given(a_mixture, st.integers(0, 9))
def test_every_class_image_has_its_turn_before_any_comes_again(items: tuple[Item, ...], seed: int) -> None:
    num = sum(item.is_class_image for item in items)
    epochs = -(-3 * num // sum(item.repeats for item in items))
    turns = [index for epoch in range(epochs) for index in class_turns(items, seed, epoch)]
    rounds = [turns[start : start + num] for start in range(0, len(turns) - num + 1, num)]
    assert len(rounds) >= 3
    assert all(set(turn) == {i for i, item in enumerate(items) if item.is_class_image} for turn in rounds)


@quick
@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 5))
def test_images_of_one_bucket_share_batches(own: int, class_images: int, batch_size: int) -> None:
    data, section = DataSection(), PriorSection(class_prompt="a dog")
    items = plan_items(census(own, SHAPES[:1]).samples, data, [512])
    items += prior.class_items(census(class_images, SHAPES[:1]), section, data, [512])
    batches = epoch_batches(items, batch_size, 0, 0)
    assert len(batches) == num_batches(items, batch_size) == -(-2 * own // batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_resuming_an_order_with_class_images_needs_only_the_batch_number() -> None:
    items = mixed(3, 2, 7, 4)
    whole = list(islice(order(items, 2, 5), 40))
    for start in (0, 1, 7, 13, 24):
        assert list(islice(order(items, 2, 5, start), 40 - start)) == whole[start:]


def test_captions_of_class_images_are_left_as_they_are() -> None:
    items = mixed(3, 1, 5, 4)
    draws = [d for epoch in range(9) for b in epoch_batches(items, 2, 0, epoch) for d in b]
    said = {caption_of(items[d.item], d) for d in draws if items[d.item].is_class_image}
    assert said == {"dog"}  # no trigger, never dropped
    assert {items[d.item].weight for d in draws if items[d.item].is_class_image} == {0.5}
    assert any(d.flip for d in draws if items[d.item].is_class_image)


# -- the plan ---------------------------------------------------------------------------------------


def planned(trainer: Trainer, **changes: Any) -> Plan:
    return planner.draft(trainer.config(**changes), trainer.workspace, CPU_ONLY).plan


def test_the_plan_counts_class_images_before_they_exist(trainer: Trainer) -> None:
    plain, plan = planned(trainer), planned(trainer, **PRIOR, train__steps="4 epochs")
    assert (plan.num_class_images, plan.num_images, plan.images_per_epoch) == (6, 5, 5)
    assert plan.steps_per_epoch == 5 > plain.steps_per_epoch == 3
    assert plan.total_steps == 20 and plan.showings == 4
    assert any("twice as long" in said.text and "4 times" in said.text for said in plan.advice)
    assert not trainer.workspace.class_images.exists()


@pytest.mark.parametrize(
    ("trigger", "folder", "fix"),
    [("zib cat", "", "a cat"), ("zib old owl", "", "an old owl"), ("zib", "cat", "a cat"),
     ("", "zib cat", "a cat"), ("zib", "", None), ("", "cat", None)],
)  # fmt: skip
def test_a_text_encoder_training_without_class_images_is_advised_to_have_some(
    trainer: Trainer, tmp_path: Path, trigger: str, folder: str, fix: str | None
) -> None:
    images = tiny.make_images(tmp_path / (f"1_{folder}" if folder else "pictures"), 5)
    changes = {"data__folder": str(images), "data__trigger": trigger, "method__train_text_encoder": True}
    fixes = [dict(said.fix) for said in planned(trainer, **changes).advice if "class images" in said.text]
    assert fixes == ([{"prior.class_prompt": fix}] if fix else [])
    assert not any(
        "class images" in said.text
        for said in planned(trainer, **changes | {"method__train_text_encoder": False}).advice
    )


def test_a_class_prompt_with_the_trigger_is_warned_of(trainer: Trainer) -> None:
    plan = planned(trainer, **PRIOR | {"prior__class_prompt": "a zib disc"}, data__trigger="zib")
    (warning,) = [said for said in plan.advice if "unteach" in said.text]
    assert warning.fix == {"prior.class_prompt": "a disc"}
    plan = planned(trainer, **PRIOR, data__trigger="zib")
    assert not any("unteach" in said.text for said in plan.advice)
    assert advice.advise(plan, planner.look(plan.config, trainer.workspace).census) == plan.advice


# -- training ---------------------------------------------------------------------------------------


def kill_after(groups: int) -> Any:
    """Leave the run while its class images are drawn, as a crash would."""

    def watch(event: Event, control: Control) -> None:
        if isinstance(event, Progress) and event.unit == "class images" and event.done >= 4 * groups:
            raise Killed

    return watch


def test_plan_and_run_agree_with_class_images_of_any_shape(trainer: Trainer, tmp_path: Path) -> None:
    """Each image's file is named once the loss is not a number: the feed knows all by number."""
    folder = tiny.make_images(tmp_path / "classes", 3)
    tiny.make_images(folder / "wide", 3, (128, 48))
    config = trainer.config(**QUIET, prior__folder=str(folder), data__repeats=2, train__steps="2 epochs")
    draft = planner.draft(config, trainer.workspace, CPU_ONLY)
    from sdtrainer.training.setup import _items

    items = _items(draft)
    assert len(items) == 11 and draft.plan.num_class_images == 6
    assert (
        draft.plan.micro_batches == len(epoch_batches(items, 2, 42, 0)) == len(epoch_batches(items, 2, 42, 1))
    )


def test_resume_with_class_images_equals_uninterrupted(trainer: Trainer) -> None:
    changes = PRIOR | {"train__steps": "10", "data__flip": True}
    whole, cut = trainer.new(**changes), trainer.new(**changes)
    trainer.run(cut, on_event=kill_after(1))
    trainer.run(cut, on_event=_die_at(5))
    trainer.run(cut)
    trainer.run(whole)
    assert_same(exported(whole), exported(cut))
    assert losses(whole) == losses(cut)


def gradients(trainer: Trainer, numbers: range, **changes: Any) -> list[dict[str, torch.Tensor]]:
    """The gradient of each batch at the start of a run, with the images that it showed."""
    from sdtrainer.bench.speed import returned
    from sdtrainer.training.run import accelerator_of
    from sdtrainer.training.setup import decide, prepare

    folder = trainer.new(**changes)
    draft = decide(folder, trainer.workspace)
    training = returned(prepare(folder, draft, trainer.workspace, accelerator_of(draft.plan, folder)))
    training.step_module.eval()  # no dropout
    found = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        training.step_module(training.feed.batch(number), generator).mean().backward()
        weights = training.trained.weights()
        grads = {name: w.grad.clone() for name, w in weights.items() if w.grad is not None}
        training.trained.optimizer.zero_grad()
        found.append(grads | {"files": training.feed.files(number)})  # type: ignore[dict-item]
    return found


def test_class_images_of_weight_zero_leave_no_gradient(trainer: Trainer) -> None:
    weightless = gradients(trainer, range(10), **PRIOR | {"prior__weight": 0.0}, train__batch_size=1)
    ordinary = gradients(trainer, range(10), **PRIOR, train__batch_size=1)
    num_class_images = 0
    for none, some in zip(weightless, ordinary, strict=True):
        (file,) = none.pop("files")
        assert some.pop("files") == [file]
        if len(Path(file).stem) == 5:  # 00003.png; the subject's own are 03.png
            num_class_images += 1
            assert none and not any(grad.any() for grad in none.values())
            assert any(grad.any() for grad in some.values())
        else:
            assert_same(none, some)
    assert num_class_images == 5


# -- a text encoder for part of the steps -----------------------------------------------------------


def encoder_weights(folder: RunFolder) -> list[dict[str, torch.Tensor]]:
    """The text encoder's trained weights in each checkpoint."""
    return [
        {name: w for name, w in load_file(saved / "weights.safetensors").items() if name.startswith("text")}
        for saved in checkpoint.saved(folder.checkpoints)
    ]


HALF: dict[str, Any] = QUIET | {
    "method__train_text_encoder": True, "optim__text_encoder_until": "50%", "train__steps": "8",
    "checkpoint__every": "2", "checkpoint__keep": 9,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy", "adamw_schedulefree"])
def test_a_text_encoder_stays_as_it_is_once_it_has_learnt(trainer: Trainer, optimizer: str) -> None:
    whole, cut = trainer.new(**HALF, optim__name=optimizer), trainer.new(**HALF, optim__name=optimizer)
    happened = trainer.run(whole)
    at_2, at_4, at_6, at_8 = encoder_weights(whole)
    assert at_2 and any(not torch.equal(at_2[name], at_4[name]) for name in at_2)
    assert_same(at_4, at_6)
    assert_same(at_4, at_8)
    rates = [event.lr for event in of(Stepped, happened)]
    assert rates[-1]["text encoder"] == 0 < rates[-1]["denoiser"]
    trainer.run(cut, on_event=_die_at(6))
    trainer.run(cut)
    assert_same(exported(whole), exported(cut))


def test_the_denoiser_learns_on_and_as_if_the_encoder_had_been_frozen(trainer: Trainer) -> None:
    folder = trainer.new(**HALF)
    trainer.run(folder)
    weights = [load_file(s / "weights.safetensors") for s in checkpoint.saved(folder.checkpoints)]
    denoiser = [name for name in weights[0] if name.startswith("denoiser")]
    assert all(not torch.equal(weights[2][name], weights[3][name]) for name in denoiser)
    rest = [
        torch.load(s / "rest.pt", weights_only=True)["optimizer"]["state"]
        for s in checkpoint.saved(folder.checkpoints)
    ]
    steps = [{int(state["step"]) for state in saved.values()} for saved in rest]
    assert steps[3] == {4, 8}  # the encoder's own state rests too


def test_a_longer_run_lets_the_encoder_rest_or_learn_on(trainer: Trainer) -> None:
    assert planned(trainer, **HALF).longer(8).encoder_steps == 4
    whole = planned(trainer, **HALF | {"optim__text_encoder_until": "100%"})
    assert (whole.encoder_steps, whole.longer(8).encoder_steps) == (8, 16)
    assert planned(trainer, **HALF | {"optim__text_encoder_until": "999"}).encoder_steps == 8


def test_a_text_encoder_that_never_learns_is_refused(trainer: Trainer) -> None:
    with pytest.raises(UserError, match="never learns") as raised:
        planned(trainer, **HALF | {"optim__text_encoder_until": "0"})
    assert raised.value.path == "optim.text_encoder_until"
    only = {"method__targets": "own list", "method__own_targets": ["text_encoder.*q_proj"]}
    with pytest.raises(UserError, match="nothing else is trained"):
        planned(trainer, **HALF | {"method__train_text_encoder": False} | only)
    ignored = planned(trainer, optim__text_encoder_until="50%")
    assert any("ignored" in said.text for said in ignored.advice) and ignored.encoder_steps == 12
