"""Measuring from the page: one thing at a time, stopped when it should be, and what was found stays."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from conftest import Trainer

from sdtrainer import job
from sdtrainer.bench import child, settings
from sdtrainer.bench.child import Hand
from sdtrainer.bench.measured import Line, Measured, Measurement
from sdtrainer.bench.outcomes import CLAIMS, Comparison, Outcome, Setting, Tried
from sdtrainer.hardware import imagined
from sdtrainer.plan import Plan
from sdtrainer.section import UserError
from sdtrainer.ui import budget, costs
from sdtrainer.ui.access import Access
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.errand import Errands
from sdtrainer.ui.measuring import Measuring


def until(found: Callable[[], Any]) -> Any:
    """Wait for what is done in the background."""
    deadline = time.monotonic() + 60
    while not (answer := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def waits(hand: Hand, tell: Callable[[Any], None] = lambda progress: None) -> None:
    """Work as a child does that is stopped."""
    tell("at work")
    until(lambda: hand.is_stopped)
    raise child.Stopped("was stopped")


# one thing at a time


@pytest.fixture
def errand() -> Iterator[Errands]:
    errand = Errands(lambda: None, lambda text: None)
    yield errand
    errand.close()


def test_the_card_is_for_one_thing_at_a_time_and_each_thing_is_done_once(errand: Errands) -> None:
    errand.begin("measure", waits, needs_card=True)
    until(lambda: errand.doing["measure"].progress == "at work")
    with pytest.raises(UserError, match="'measure' has the card"):
        errand.begin("compare", waits, needs_card=True)
    errand.begin("caption", waits)
    with pytest.raises(UserError, match="being done already"):
        errand.begin("caption", waits)
    errand.free_card()
    assert [*errand.doing] == ["caption"] and errand.ended == {"measure": "It was stopped."}
    errand.stop("caption")
    errand.begin("measure", lambda hand, tell: 7)
    until(lambda: not errand.doing)
    assert "measure" not in errand.ended, "what went wrong before is no longer said"
    assert errand.found == {"measure": 7}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (child.Failed("took more than 3 s"), "It failed: took more than 3 s."),
        (UserError("Base model: none.", "Choose one."), "Base model: none. Choose one."),
        (ValueError("shapes"), "log.txt"),
    ],
)
def test_what_goes_wrong_is_said(error: Exception, words: str) -> None:
    told, logged = list[int](), list[str]()
    errand = Errands(lambda: told.append(1), logged.append)

    def broken(hand: Hand, tell: Any) -> None:
        raise error

    errand.begin("compare", broken)
    until(lambda: not errand.doing)
    assert words in errand.ended["compare"] and len(told) >= 2
    assert bool(logged) == isinstance(error, ValueError)


# on the page


@pytest.fixture
def desk(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(trainer.workspace.root))
    desk = Desk(trainer.workspace, Access(trainer.workspace))
    desk.is_warm, desk.machine = True, imagined(12, "Card A")
    desk.project.change(trainer.values, "test")
    yield desk
    desk.close()


@pytest.fixture
def tab(desk: Desk) -> Measuring:
    with gr.Blocks():
        tab = Measuring(desk)
        tab.build()
    until(lambda: desk.look().fit)
    return tab


def shown(tab: Measuring) -> dict[Any, Any]:
    return tab.show(tab.desk.look())


def finish(tab: Measuring) -> dict[Any, Any]:
    until(lambda: not tab.desk.errands.doing)
    return shown(tab)


def is_enabled(tab: Measuring) -> list[bool]:
    """Whether measure, compare and the two stops can be pressed."""
    updates = shown(tab)
    buttons = [tab.measure, tab.compare, tab.stop_measure, tab.stop_compare]
    return [updates[button]["interactive"] for button in buttons]


def measure(size: int, **more: Any) -> Callable[[Plan, Hand], Measured]:
    """Stands for the child process."""

    def work(plan: Plan, hand: Hand) -> Measured:
        hand.hear("Taking a training step")
        return Measured({"train": size}, {"train": size}, 1000, **more)

    return work


def test_a_measured_plan_is_shown_whenever_it_is_the_plan(
    tab: Measuring, monkeypatch: pytest.MonkeyPatch, trainer: Trainer
) -> None:
    project = tab.desk.project
    assert "Nothing is learnt" in shown(tab)[tab.measured] and not tab.trust(tab.desk.look())
    monkeypatch.setattr(child, "dry", measure(3 * 2**30))
    tab._begin("measure")
    assert "Measured on Card A: 3.0 GB" in finish(tab)[tab.measured]
    assert not trainer.workspace.runs.exists()
    project.lay({"train.batch_size": 5}, "lora", "test")
    until(lambda: tab.desk.look().fit)
    assert "Nothing is learnt" in shown(tab)[tab.measured], "another plan"
    project.lay({"train.batch_size": 2, "optim.lr": 0.5}, "lora", "test")
    until(lambda: tab.desk.look().fit)
    assert "Measured on Card A: 3.0 GB" in shown(tab)[tab.measured]
    tab.desk.machine = imagined(12, "Card B")
    assert "Nothing is learnt" in shown(tab)[tab.measured], "another card"


def test_memory_that_runs_out_is_told_as_a_result(tab: Measuring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "dry", measure(100, ended="sample"))
    tab._begin("measure")
    said = finish(tab)[tab.measured]
    assert "The memory of Card A ran out while drawing" in said and "Training" in said
    assert not tab.desk.errands.ended


def test_settings_are_compared_and_kept(tab: Measuring, monkeypatch: pytest.MonkeyPatch) -> None:
    hands: list[Hand] = []

    def run(values: Any, images: int, home: Path, hand: Hand, timeout: float) -> dict[str, Any]:
        hands.append(hand)
        if len(hands) == 3:
            until(lambda: go_on.is_set())
        return {"seconds_per_step": 1.0, "peak_bytes": 2**30 * len(hands), "images": images}

    go_on = threading.Event()
    monkeypatch.setattr(child, "setting", run)
    tab._begin("compare")
    until(lambda: len(hands) == 3)
    doing = shown(tab)[tab.compared]
    assert "2 of" in doing and "left" in doing and "2.0 GB" in doing and "3.0 GB" not in doing
    assert is_enabled(tab) == [False, False, False, True]
    go_on.set()
    said = finish(tab)[tab.compared]
    assert is_enabled(tab) == [True, True, False, False]
    assert all(claim.text in said for claim in CLAIMS) and said.count("bar-row") == 2 * len(hands)
    assert Measuring(tab.desk)._compared(tab.desk.look()) == said, "after a reload as well"


def test_a_stopped_comparison_keeps_what_it_found(tab: Measuring, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(values: Any, images: int, home: Path, hand: Hand, timeout: float) -> dict[str, Any]:
        asked.append(values)
        return {"seconds_per_step": 1.0, "peak_bytes": 100} if len(asked) == 1 else waits(hand) or {}

    monkeypatch.setattr(child, "setting", run)
    tab._begin("compare")
    until(lambda: len(asked) == 2)
    tab.desk.errands.close()
    said = finish(tab)[tab.compared]
    assert "It was stopped." in said and "1 s" in said and len(asked) == 2
    kept = settings.load(tab._plan().config, tab.desk.workspace)
    assert kept and len(kept.rows) == 1


def test_a_run_has_the_card_for_itself(tab: Measuring, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that starts ends what is being measured; while it goes on, nothing is measured."""
    goes_on = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.stdin.readline()"]

    def worker(log: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(goes_on, stdin=subprocess.PIPE, text=True)

    monkeypatch.setattr(job, "start_worker", worker)
    monkeypatch.setattr(child, "dry", lambda plan, hand: waits(hand, hand.hear))
    tab._begin("measure")
    until(lambda: "measure" in tab.desk.errands.doing and tab.desk.errands.doing["measure"].progress)
    run = tab.desk.start(tab.desk.project.values)
    until(lambda: not tab.desk.errands.doing)
    assert tab.desk.errands.ended["measure"] == "It was stopped."
    with pytest.raises(UserError, match=f"'{run.name}' is being trained and has the card"):
        tab._begin("measure")


def test_what_cannot_be_trained_is_not_measured(tab: Measuring) -> None:
    tab.desk.project.lay({"data.folder": "/no/such/folder"}, "lora", "test")
    with pytest.raises(UserError, match="/no/such/folder"):
        tab._begin("compare")


def test_the_estimate_is_trusted_by_what_was_measured(tab: Measuring) -> None:
    fit = until(lambda: tab.desk.look().fit)
    known = budget._certainty(fit.ledger, None, "It was 3 % too low.")
    assert ("It was 3 % too low." in known) == (not fit.ledger.unknown)
    if not fit.ledger.unknown:
        assert "15 %" not in known and "15 %" in budget._certainty(fit.ledger, None, "")


# words and pictures


def test_differences_are_of_the_measured_and_name_their_side() -> None:
    lines = (Line("weights", 1000, 1000), Line("train", 2000, 1500), Line("sample", 1000, None))
    one = Measurement("2026-11-22", "a <plan>", Measured({"train": 2000}), lines)
    said = costs.measurement(one, lines, "Card A")
    assert "estimated 1 KB (25 % less)" in said.replace("1.5 KB", "1 KB")
    assert "not known" in said and "under 1 %" in said and "<plan>" not in said


def test_a_comparison_shows_every_number_and_what_follows() -> None:
    good = Setting("fp32", 512, False, "adamw", True)
    bad = Setting("bf16", 512, False, "adamw", True)
    rows = (
        Tried(good, Outcome(0.25, 0.01, 4.0, 3 * 2**30, 0.1234, 32)),
        Tried(bad, Outcome(failure="The card's <memory> does not suffice.")),
    )
    said = costs.comparison(Comparison("Card A", "2026-11-22", "as the card says", rows))
    for told in ("0.25 s ± 0.01", "3.0 GB", "0.1234", "not measurable here", "as the card says"):
        assert told in said
    assert said.count("bar-row") == 2 and "<memory>" not in said


def test_progress_says_how_far_and_how_long() -> None:
    empty = Comparison("Card A", "2026-11-22", "counted")
    assert "Starting" in costs.progress(None, False) and "Stopping" in costs.progress(None, True)
    said = costs.progress(settings.Progress(3, 12, "fp32, 512 px", 125.0, empty), False)
    assert "3 of 12 done, about 2 min left" in said and "fp32, 512 px" in said and "25.0%" in said
