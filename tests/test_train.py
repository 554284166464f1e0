"""The training loop: what is learnt, what is kept, and that a resumed run is the uninterrupted one, bit for
bit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DRAWING, Killed, Trainer
from safetensors import safe_open
from safetensors.torch import load_file

from sdtrainer import events
from sdtrainer.events import (
    Event,
    Finished,
    Paused,
    PhaseBegan,
    Resumed,
    RolledBack,
    RunStarted,
    Sampled,
    Saved,
    Stepped,
    Suspended,
    Validated,
)  # fmt: skip
from sdtrainer.section import UserError
from sdtrainer.training import checkpoint
from sdtrainer.training.control import Control
from sdtrainer.workspace import RunFolder


def losses(folder: RunFolder) -> list[float]:
    """The loss of every step as a reader of the log sees it: later tries void what they repeat."""
    found: dict[int, float] = {}
    for event, _ in events.read(folder.events_file):
        if isinstance(event, RunStarted):
            found = {step: loss for step, loss in found.items() if step <= event.step}
        elif isinstance(event, RolledBack):
            found = {step: loss for step, loss in found.items() if step <= event.to_step}
        elif isinstance(event, Stepped):
            first = event.step - len(event.losses) + 1
            found |= dict(enumerate(event.losses, first))
    return [found[step] for step in sorted(found)]


def exported(folder: RunFolder, name: str = "test") -> dict[str, torch.Tensor]:
    return load_file(folder.output / f"{name}.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one and one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def of(kind: type, happened: list[Event]) -> list[Any]:
    return [event for event in happened if isinstance(event, kind)]


def test_run_ends_with_a_file_that_loads_and_says_how_it_was_made(trainer: Trainer) -> None:
    folder = trainer.new(**DRAWING)
    happened = trainer.run(folder)
    finished = happened[-1]
    assert isinstance(finished, Finished) and finished.step == 12 and not finished.stopped
    with safe_open(folder.path / finished.path, "pt") as file:
        metadata, keys = file.metadata(), list(file.keys())
    assert metadata["ss_network_dim"] == "2" and metadata["ss_network_alpha"] == "4.0"
    assert all(key.startswith("lora_unet_") for key in keys)
    assert any(tensor.abs().sum() > 0 for key, tensor in exported(folder).items() if "lora_up" in key)
    assert [e.step for e in of(Validated, happened)] == [0, 6, 12]
    assert [e.step for e in of(Sampled, happened)] == [0, 6, 12]
    assert all((folder.path / e.path).is_file() for e in of(Sampled, happened) + of(Saved, happened)[-1:])
    assert len(losses(folder)) == 12 and all(math.isfinite(loss) for loss in losses(folder))


def test_validation_loss_falls_when_trained_longer(trainer: Trainer) -> None:
    folder = trainer.new(train__steps="60", optim__lr=2e-2, train__validate_every="60")
    first, last = of(Validated, trainer.run(folder))
    assert last.loss < 0.98 * first.loss


def test_only_the_adapter_is_trained(trainer: Trainer, base: Path) -> None:
    folder = trainer.new(train__steps="2")
    trainer.run(folder)
    saved = load_file(checkpoint.saved(folder.checkpoints)[-1] / "weights.safetensors")
    assert saved and all(".lora_A." in name or ".lora_B." in name for name in saved)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "prodigy", "adamw_schedulefree"])
def test_resume_equals_uninterrupted_twice_in_a_row(trainer: Trainer, optimizer: str) -> None:
    settings: dict[str, Any] = {"optim__name": optimizer, "optim__ema": optimizer == "adamw"}
    whole, cut = trainer.new(**settings), trainer.new(**settings)
    trainer.run(whole)
    for stop in (5, 9):
        trainer.run(cut, on_event=_die_at(stop))
    happened = trainer.run(cut)
    assert happened[0].step == 8  # type: ignore[attr-defined]
    assert_same(exported(whole), exported(cut))
    assert losses(whole) == losses(cut)
    ends = [checkpoint.saved(folder.checkpoints)[-1] for folder in (whole, cut)]
    assert_same(*(load_file(end / "weights.safetensors") for end in ends))
    one, other = (torch.load(end / "rest.pt", weights_only=True) for end in ends)
    assert str(one) == str(other)


def test_resume_with_accumulation_flips_random_crops_and_trained_text(trainer: Trainer) -> None:
    settings = {
        "optim__accumulation": 2, "data__flip": True, "data__crop": "random", "data__shuffle_tags": True,
        "data__caption_dropout": 0.3, "method__train_text_encoder": True, "train__steps": "8",
    }  # fmt: skip
    whole, cut = trainer.new(**settings), trainer.new(**settings)
    trainer.run(whole)
    trainer.run(cut, on_event=_die_at(5))
    trainer.run(cut)
    assert_same(exported(whole), exported(cut))
    assert any(key.startswith("lora_te_text_model_encoder") for key in exported(cut))


def test_finished_run_goes_on_for_more_steps(trainer: Trainer) -> None:
    folder = trainer.new(optim__schedule="constant")
    trainer.run(folder)
    first = exported(folder)
    happened = trainer.run(folder, more_steps=6)
    assert happened[0].step == 12 and happened[-1].step == 18  # type: ignore[attr-defined]
    assert len(losses(folder)) == 18
    assert_same(first, exported(folder))  # what was there is not overwritten
    longer = trainer.new(optim__schedule="constant", train__steps="18")
    trainer.run(longer)
    assert_same(exported(folder, "test-18"), exported(longer))


def test_stop_keeps_what_was_learnt(trainer: Trainer) -> None:
    folder = trainer.new(train__steps="1000")
    happened = trainer.run(folder, on_event=_say("stop"))
    finished = happened[-1]
    assert isinstance(finished, Finished) and finished.stopped and finished.step < 1000
    assert (folder.path / finished.path).is_file()


def test_suspend_saves_and_resume_goes_on(trainer: Trainer) -> None:
    folder = trainer.new(train__steps="20")
    happened = trainer.run(folder, on_event=_say("suspend"))
    assert isinstance(happened[-1], Suspended)
    after = trainer.run(folder)
    assert after[0].step == happened[-1].step and isinstance(after[-1], Finished)  # type: ignore[attr-defined]


def test_pause_waits_and_go_resumes(trainer: Trainer) -> None:
    folder = trainer.new(train__steps="20")

    def orders(event: Event, control: Control) -> None:
        if isinstance(event, Stepped) and event.step < 20:
            control.put("pause")
        elif isinstance(event, Paused):
            control.put("go")

    happened = trainer.run(folder, on_event=orders)
    assert of(Paused, happened) and of(Resumed, happened) and isinstance(happened[-1], Finished)


def test_sample_now_and_save_now(trainer: Trainer) -> None:
    folder = trainer.new(train__steps="8", sample__every="0", checkpoint__every="0", **DRAWING)

    def orders(event: Event, control: Control) -> None:
        if isinstance(event, Validated) and event.step == 0:
            control.put("sample")
            control.put("save")

    happened = trainer.run(folder, on_event=orders)
    assert [e.step for e in of(Sampled, happened)] == [0, 0, 8]
    assert [e.step for e in of(Saved, happened) if e.what == "checkpoint"] == [0, 8]


def test_samples_do_not_disturb_training(trainer: Trainer) -> None:
    with_samples, without = trainer.new(**DRAWING), trainer.new(train__validate_every="0")
    trainer.run(with_samples)
    trainer.run(without)
    assert losses(with_samples) == losses(without)


def test_accumulation_equals_a_larger_batch(trainer: Trainer) -> None:
    """Same images in another grouping: not the same draw, but the same number of images and steps."""
    folder = trainer.new(optim__accumulation=3, train__steps="4")
    happened = trainer.run(folder)
    assert of(Stepped, happened)[-1].images_seen == 4 * 3 * 2


def test_one_bad_batch_is_left_out_and_the_run_goes_on(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, at={7})
    folder = trainer.new()
    happened = trainer.run(folder)
    back = of(RolledBack, happened)
    assert [e.step for e in back] == [7] and "left out" in back[0].why
    assert isinstance(happened[-1], Finished)
    assert all(tensor.isfinite().all() for tensor in exported(folder).values())
    assert len(losses(folder)) == 12 and losses(folder)[7] is None


def test_loss_that_stays_broken_ends_with_a_clear_error(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, at=set(range(3, 100)))
    folder = trainer.new()
    with pytest.raises(UserError, match="stopped being a number"):
        trainer.run(folder)
    assert not list(folder.output.iterdir())
    assert all(
        t.isfinite().all()
        for s in checkpoint.saved(folder.checkpoints)
        for t in load_file(s / "weights.safetensors").values()
    )


def _die_at(step: int) -> Any:
    """Leave the run at the first event at or after `step`."""

    def watch(event: Event, control: Control) -> None:
        if isinstance(event, Stepped | Saved | Validated) and event.step >= step:
            raise Killed

    return watch


def _say(word: str) -> Any:
    def watch(event: Event, control: Control) -> None:
        if isinstance(event, Stepped):
            control.put(word)

    return watch


def _poison(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    """Make the loss of these optimizer steps infinite, as a broken image or an overflow would."""
    from sdtrainer.seams import Batch
    from sdtrainer.training import feed

    honest = feed.Feed.batch

    def batch(self: feed.Feed, number: int) -> Batch:
        given = honest(self, number)
        return Batch(**{**given.__dict__, "weight": given.weight * math.inf}) if number in at else given

    monkeypatch.setattr(feed.Feed, "batch", batch)


def test_a_word_to_end_is_heard_while_caching(trainer: Trainer) -> None:
    folder = trainer.new()

    def orders(event: Event, control: Control) -> None:
        if isinstance(event, PhaseBegan) and event.phase == "cache":
            control.put("suspend")

    happened = trainer.run(folder, on_event=orders)
    assert isinstance(happened[-1], Suspended) and not of(Stepped, happened)
    assert isinstance(trainer.run(folder)[-1], Finished)


def test_going_back_voids_no_checkpoint(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill just after going back must not resume from a state that the run had left behind."""
    _poison(monkeypatch, at={9})
    folder = trainer.new(checkpoint__every="4")
    (back,) = of(RolledBack, trainer.run(folder))
    assert back.to_step == 8
