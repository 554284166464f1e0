"""What the page shows of a run follows from its events alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sdtrainer import events
from sdtrainer.events import Event
from sdtrainer.ui import view
from sdtrainer.ui.follow import Followers
from sdtrainer.ui.view import MAX_POINTS, Curve, RunView, reduce, sentence
from sdtrainer.workspace import RunFolder


def stepped(step: int, losses: list[float], total: int = 100, left: float | None = 60.0) -> Event:
    return events.Stepped(
        step, total, losses, [1.0] * len(losses), {"denoiser": 1e-4}, 0.5, left, step, 2**30
    )


def grown(*happened: Event) -> RunView:
    run = RunView()
    for event in happened:
        reduce(run, event)
    return run


STARTED = events.RunStarted("robot", 0, 100)
TRAINING = events.PhaseBegan("train", "Teaching")


def test_every_event_of_a_run_is_understood() -> None:
    assert len(events.EVENTS) > 10
    assert view._TAKE.keys() == set(events.EVENTS)


@pytest.mark.parametrize("count", [10, MAX_POINTS, 20_000])
def test_a_curve_stays_short_and_keeps_its_mean(count: int) -> None:
    curve = Curve()
    for step in range(1, count + 1):
        curve.add(step, float(step))
    assert 0 < len(curve.points) <= MAX_POINTS
    assert [step for step, _ in curve.points] == sorted({step for step, _ in curve.points})
    assert curve.points[-1][0] == count
    weighted = sum(total for _, _, total, _ in curve._points) / count
    assert weighted == pytest.approx((count + 1) / 2)


def test_a_resumed_run_forgets_what_came_after_its_checkpoint() -> None:
    run = grown(
        STARTED, TRAINING, stepped(3, [3.0, 2.0, 1.0]), events.Sampled(3, 0, "a robot", 1, "samples/a.png")
    )
    reduce(run, events.RunStarted("robot", 2, 100))
    assert [step for step, _ in run.loss.points] == [1, 2]
    assert not run.samples and run.step == 2
    reduce(run, stepped(3, [5.0]))
    assert run.loss.points[-1] == (3, 5.0)


def test_a_rollback_takes_the_curves_back() -> None:
    run = grown(STARTED, stepped(4, [1.0] * 4), events.RolledBack(4, 2, "the loss was not a number"))
    assert run.loss.points[-1][0] == 2 and run.step == 2
    assert any("not a number" in text for _, _, text in run.log)


def test_the_smoothed_curve_is_steadier_than_the_raw_one() -> None:
    run = grown(STARTED, stepped(200, [1.0 if i % 2 else 3.0 for i in range(200)], total=200))
    raw, smooth = ([value for _, value in curve.points[100:]] for curve in (run.loss, run.smooth))
    assert max(smooth) - min(smooth) < 0.1 * (max(raw) - min(raw))


def test_a_loss_that_is_no_number_is_left_out() -> None:
    run = grown(STARTED, stepped(3, [1.0, None, 2.0]))  # type: ignore[list-item]
    assert [step for step, _ in run.loss.points] == [1, 3]


def test_sentences_say_what_how_long_and_what_next() -> None:
    run = grown(STARTED, TRAINING, stepped(25, [1.0] * 25, left=180.0))
    assert sentence(run) == "Training: step 25 of 100. About 3 min left."
    assert "Paused at step 25" in sentence(reduce(run, events.Paused(25)))
    assert "output/robot.safetensors" in sentence(
        reduce(run, events.Finished(100, "output/robot.safetensors", False))
    )
    assert sentence(reduce(run, events.Failed("It broke.", "Mend it."))) == "It broke. Mend it."
    assert "Resume" in sentence(reduce(run, events.Suspended(25)))


def test_the_loss_is_judged_once_it_has_settled() -> None:
    """A first step of little noise, as often drawn, is no sign of a rising loss."""
    few = grown(STARTED, TRAINING, stepped(25, [0.03] + [0.2] * 24))
    assert "loss" not in sentence(few)
    for later, said in ((0.2, "level"), (0.1, "falling"), (0.5, "rising")):
        many = grown(STARTED, TRAINING, stepped(150, [0.03] + [0.2] * 49 + [later] * 100, total=200))
        assert f"The loss is {said}" in sentence(many)


def test_noise_is_not_taken_for_a_loss_that_rises() -> None:
    """Single steps differ tenfold by the noise that they drew; a rise shows through that all the same."""

    def said(rng: random.Random, rise: float, num: int) -> str:
        losses = [rng.expovariate(10) * (1 + rise * step / num) for step in range(num)]
        return sentence(grown(STARTED, TRAINING, stepped(num, losses, total=num)))

    flat = [said(random.Random(seed), 0, 60 + seed) for seed in range(150)]
    assert not any("rising" in text for text in flat) and sum("level" in text for text in flat) > 130
    assert all("rising" in said(random.Random(seed), 4, 400) for seed in range(20))


def test_what_happens_between_steps_is_said_and_over_when_it_is() -> None:
    run = grown(STARTED, TRAINING, stepped(25, [1.0] * 25), events.Looking(25, "Drawing picture 1 of 2."))
    assert sentence(run) == "Step 25 of 100. Drawing picture 1 of 2."
    assert sentence(reduce(run, events.Looking(25, ""))).startswith("Training: step 25 of 100.")


def test_the_log_is_bounded() -> None:
    run = grown(*(events.Said("info", f"line {i}") for i in range(1000)))
    assert len(run.log) == view.LOG_LINES and run.log[-1][2] == "line 999"


def test_following_reads_on_where_it_left_and_every_page_sees_the_same(tmp_path: Path) -> None:
    run, followers = RunFolder(tmp_path), Followers()
    assert followers.view(run).version == 0
    events.append(run.events_file, STARTED)
    assert followers.view(run).version == 1
    events.append(run.events_file, stepped(1, [1.0]))
    with run.events_file.open("ab") as file:
        file.write(b'{"event": "Said", "le')  # the trainer is just writing
    assert followers.view(run).step == 1
    assert followers.view(run) is followers.view(run)


def test_another_run_under_the_same_name_starts_afresh(tmp_path: Path) -> None:
    run, followers = RunFolder(tmp_path), Followers()
    for event in (STARTED, stepped(1, [1.0])):
        events.append(run.events_file, event)
    assert followers.view(run).step == 1
    run.events_file.rename(tmp_path / "old")
    events.append(run.events_file, events.RunStarted("robot", 0, 7))
    assert (followers.view(run).step, followers.view(run).total) == (0, 7)
