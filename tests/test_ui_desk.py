"""The desk knows where every run stands and what one like it took, from the logs alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import gradio as gr
import pytest

from sdtrainer import config as configs
from sdtrainer import events
from sdtrainer.events import Event
from sdtrainer.job import last_word
from sdtrainer.section import UserError
from sdtrainer.ui.access import Access
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.header import run_words
from sdtrainer.ui.runs import UNKNOWN, Runs
from sdtrainer.ui.train import Train
from sdtrainer.workspace import RunFolder, Workspace, create_run

OUTPUT = "output/robot.safetensors"


@pytest.fixture
def desk(workspace: Workspace) -> Iterator[Desk]:
    desk = Desk(workspace, Access(workspace))
    yield desk
    desk.close()


def run_with(desk: Desk, *happened: Event, **values: object) -> RunFolder:
    run = create_run(desk.workspace.runs, configs.build({"train": values}))
    for event in (events.RunStarted(run.name, 0, 10), *happened):
        events.append(run.events_file, event)
    return run


def stepped(seconds: float) -> Event:
    return events.Stepped(5, 10, [0.1], [1.0], {"denoiser": 1e-4}, seconds, 1.0, 5, 0)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ((events.Finished(10, OUTPUT, False),), "finished"),
        ((events.Finished(5, OUTPUT, True),), "stopped"),
        ((events.Failed("It broke.", "Mend it."),), "failed"),
        ((events.Suspended(5),), "interrupted"),
        ((stepped(1.0),), "interrupted"),
        ((events.Finished(10, OUTPUT, False), events.RunStarted("robot", 10, 20)), "interrupted"),
    ],
)
def test_where_a_run_stands_follows_from_its_log(desk: Desk, ending: tuple[Event, ...], status: str) -> None:
    run = run_with(desk, *ending)
    (run.path / OUTPUT).write_bytes(b"weights")
    assert desk.status(run) == status == desk.jobs.status(run, last_word(run))


def test_a_run_is_over_when_its_log_says_so_though_its_child_has_not_ended(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the end of an earlier try does not count for one that was only just resumed."""
    run = run_with(desk, events.Finished(5, OUTPUT, True))
    (run.path / OUTPUT).write_bytes(b"weights")
    began, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(desk.jobs, "_drive", lambda order, child: (began.set(), may_end.wait(30)))
    monkeypatch.setattr(desk.jobs, "_spawn", lambda: None)
    desk.jobs.resume(run)
    assert began.wait(30)
    assert desk.status(run) == "running" and run_words(desk) != "idle"
    events.append(run.events_file, events.RunStarted(run.name, 5, 10))
    assert desk.status(run) == "running"
    events.append(run.events_file, events.Finished(10, OUTPUT, False))
    assert desk.status(run) == "finished" and run_words(desk) == "idle"
    may_end.set()


def test_the_header_says_what_else_was_asked_for(desk: Desk) -> None:
    may_end = threading.Event()
    desk.errands.begin("measure", lambda hand, tell: may_end.wait(30), needs_card=True)
    assert run_words(desk) == "measuring"
    may_end.set()


def test_after_a_run_the_train_tab_leads_on(desk: Desk) -> None:
    with gr.Blocks():
        train = Train(desk)
        train.build()
    shown = train.show(run_with(desk, stepped(1.0)))  # nobody trains it: it was interrupted
    assert shown[train.afterwards]["visible"] and not shown[train.attempt]["visible"]
    run = run_with(desk, events.Finished(10, OUTPUT, False))
    (run.path / OUTPUT).write_bytes(b"weights")
    shown = train.show(run)
    assert shown[train.attempt]["visible"] and not shown[train.steering]["visible"]
    assert train.show(None)[train.steering]["visible"]


def test_where_to_put_it_names_the_file_that_there_is(desk: Desk) -> None:
    with gr.Blocks():
        runs = Runs(desk)
        runs.build()
    run = run_with(desk, events.Stepped(5, 10, [0.1], [1.0], {}, 1.0, 1.0, 5, 0))
    run.plan_file.write_text('{"facts": {"family": "sd"}}')
    run.output.mkdir(exist_ok=True)
    for name in ("my-lora-5", "my-lora"):
        file = run.output / f"{name}.safetensors"
        file.write_bytes(b"weights")
        shown = runs.open("page", run.name)[runs.files]
        assert f"lora:{name}:1" in shown and f"{name}.safetensors&quot;" in shown
        file.unlink()


def test_a_finished_run_without_its_file_has_failed(desk: Desk) -> None:
    assert desk.status(run_with(desk, events.Finished(10, OUTPUT, False))) == "failed"


def test_the_pace_is_that_of_the_newest_run_like_this(desk: Desk) -> None:
    run_with(desk, stepped(4.0), batch_size=2)
    assert desk.pace(configs.build({"train": {"batch_size": 2, "steps": "99"}})) == 4.0
    assert desk.pace(configs.build({"train": {"batch_size": 3}})) is None


def test_a_run_of_another_version_is_listed_and_hinders_nothing(desk: Desk) -> None:
    old = run_with(desk, stepped(1.0))
    old.config_file.write_text("schema = 2\n[base]\nforgotten = 1\n", "utf-8")
    assert desk.pace(configs.build({})) is None
    with gr.Blocks():
        runs = Runs(desk)
        runs.build()
    assert UNKNOWN in runs.show("page")[runs.cards] and old.name in runs.show("page")[runs.cards]
    runs.chosen["page"] = old.name
    assert runs.show("page")[runs.files]


@pytest.mark.parametrize("name", ["nothing", "../runs", "", None, "."])
def test_only_runs_that_exist_can_be_named(desk: Desk, name: str | None) -> None:
    run_with(desk)
    with pytest.raises(UserError, match="There is no run"):
        desk.run(name)


def test_the_gallery_goes_with_the_newest_run_until_another_is_chosen(desk: Desk) -> None:
    from sdtrainer.ui.gallery import Gallery
    from sdtrainer.ui.listen import Given

    with gr.Blocks():
        gallery = Gallery(desk)
        gallery.build()

    def choosing(run: str) -> Given:
        return Given({gallery.run: run}, "owner", "page")

    first = run_with(desk)
    assert gallery.shown("page") == first
    second = run_with(desk)
    assert gallery.shown("page") == second
    gallery.choose(choosing(first.name))
    assert gallery.shown("page") == first and gallery.shown("another page") == second
    gallery.choose(choosing(second.name))
    third = run_with(desk)
    assert gallery.shown("page") == third
    gallery.picked["page"] = "a run that was deleted"
    assert gallery.shown("page") == third


def test_a_run_that_the_disk_cannot_hold_is_not_started(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdtrainer.workspace import Workspace

    desk.is_warm = True
    values = desk.project.values
    deadline = time.monotonic() + 300
    while desk.look().fit is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert desk.look().error is None
    monkeypatch.setattr(Workspace, "disk_free", 1000)
    assert "on the disk of the workspace" in str(desk.look().error)
    with pytest.raises(UserError, match="disk"):
        desk.start(values)
