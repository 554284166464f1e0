"""Trackers: TensorBoard is told what the run said, and one that cannot work is refused before the start."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import DRAWING, Trainer

from sdtrainer import planner, trackers
from sdtrainer.events import Event, Finished, Said, Stepped, Validated
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.section import UserError


def told(folder: Path) -> Any:
    """What lies in TensorBoard's files below a folder, as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_tensorboard_shows_what_the_run_said(trainer: Trainer) -> None:
    from PIL import Image

    folder = trainer.new(run__tracker="tensorboard", train__steps="6", train__validate_every="3", **DRAWING)
    happened = trainer.run(folder)
    found = told(folder.path / "tensorboard")
    steps = [event for event in happened if isinstance(event, Stepped)]
    losses = [loss for event in steps for loss in event.losses]
    assert [scalar.step for scalar in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [scalar.value for scalar in found.Scalars("loss")] == pytest.approx(losses)
    assert len(found.Scalars("learning rate/denoiser")) == 6
    validated = {event.step: event.loss for event in happened if isinstance(event, Validated)}
    logged = {scalar.step: scalar.value for scalar in found.Scalars("validation loss")}
    assert logged == pytest.approx(validated) and {3, 6} <= logged.keys()
    picture = found.Images("picture 1")[-1]
    last = max(folder.samples.glob("*.png"))
    assert (picture.width, picture.height) == Image.open(last).size
    assert int(last.name[:6]) == picture.step


def test_a_run_without_a_tracker_leaves_none_behind(trainer: Trainer) -> None:
    folder = trainer.new(train__steps="2", sample__prompts=[])
    assert isinstance(trainer.run(folder)[-1], Finished)
    assert not (folder.path / "tensorboard").exists()


def test_the_run_is_the_same_with_a_tracker(trainer: Trainer) -> None:
    """It only listens: not a number of the run changes."""
    settings: dict[str, Any] = {"train__steps": "4", "sample__prompts": []}
    losses = []
    for tracker in ("none", "tensorboard"):
        happened = trainer.run(trainer.new(run__tracker=tracker, **settings))
        losses.append([loss for e in happened if isinstance(e, Stepped) for loss in e.losses])
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def refused(trainer: Trainer, tracker: str) -> UserError:
    with pytest.raises(UserError) as caught:
        planner.draft(trainer.config(run__tracker=tracker), trainer.workspace, CPU_ONLY)
    assert caught.value.path == "run.tracker"
    return caught.value


@pytest.mark.parametrize("tracker", sorted(trackers.TRACKERS))
def test_a_tracker_that_is_not_installed_is_refused_before_the_start(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"pip install {tracker}" in refused(trainer, tracker).hint


def test_weights_and_biases_never_asks_for_a_key(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a login it would wait at a prompt that no one sees."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    logins = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(logins))
    assert "wandb login" in refused(trainer, "wandb").hint
    logins.write_text("machine elsewhere.org login user password x\n", encoding="utf-8")
    assert refused(trainer, "wandb")
    logins.write_text("machine api.wandb.ai login user password x\n", encoding="utf-8")
    section = trainer.config(run__tracker="wandb").run
    trackers.check(section)
    logins.unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check(section)


def test_what_is_sent_names_no_place_on_this_computer(trainer: Trainer) -> None:
    sent = trackers._settings(trainer.config())
    assert sent["method.rank"] == 2 and sent["sample.prompts"] == "['a zib disc']"
    assert not [value for value in sent.values() if str(trainer.values["data"]["folder"]) in str(value)]
    assert not {"base.path", "data.folder", "data.validation_folder"} & sent.keys()


def test_a_tracker_that_cannot_start_is_told_plainly(trainer: Trainer) -> None:
    folder = trainer.new(run__tracker="tensorboard")
    (folder.path / "tensorboard").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="TensorBoard did not start") as caught:
        trainer.run(folder)
    assert caught.value.path == "run.tracker"


class Deaf:
    """Stands for accelerate with a tracker that starts and then breaks."""

    is_main_process = True

    def __init__(self) -> None:
        self.asked, self.is_ended = 0, False

    def init_trackers(self, *_: Any) -> None:
        pass

    def log(self, *_: Any, **__: Any) -> None:
        self.asked += 1
        raise OSError("no space left")

    def end_training(self) -> None:
        self.is_ended = True


def test_a_tracker_that_breaks_does_not_take_the_run_along(trainer: Trainer) -> None:
    folder, deaf = trainer.new(run__tracker="tensorboard"), Deaf()
    stepped = Stepped(1, 2, [0.5], [1.0], {"denoiser": 1e-3}, 0.1, None, 2, 0)

    def happenings() -> Iterator[Event]:
        yield stepped
        yield replace(stepped, step=2)
        yield Finished(2, "output", False)

    stream = trackers.logged(happenings(), deaf, folder.config(), folder)  # type: ignore[arg-type]
    heard = list(stream)
    assert [type(event) for event in heard] == [Stepped, Said, Stepped, Finished]
    assert "TensorBoard" in heard[1].text and "no space left" in heard[1].text  # type: ignore[attr-defined]
    assert deaf.asked == 1 and deaf.is_ended
