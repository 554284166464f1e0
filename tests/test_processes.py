"""Runs in processes of their own: killed at any instant and resumed, two at a time, driven by the page's job
queue.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
import torch
from conftest import Trainer, make_trainer
from safetensors.torch import load_file

from sdtrainer import config as configs
from sdtrainer import events
from sdtrainer.events import Event, Finished, PhaseBegan, Saved, Stepped
from sdtrainer.job import Jobs, last_word, status_of
from sdtrainer.workspace import RunFolder, Workspace

LONG = 240.0


@pytest.fixture
def run_file(trainer: Trainer, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    configs.save(settings(trainer), path)
    return path


@pytest.fixture(scope="module")
def whole(
    base: Path, images: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """The file of an uninterrupted run of the same settings, and how many seconds it took."""
    home = tmp_path_factory.mktemp("whole")
    file = home / "run.toml"
    configs.save(settings(make_trainer(Workspace(home / "workspace"), base, images, held_out)), file)
    began = time.monotonic()
    return made(Workspace(home / "workspace"), "train", file), time.monotonic() - began


def settings(trainer: Trainer) -> configs.Config:
    return trainer.config(train__steps="40", checkpoint__every="5", data__flip=True)


def environment(workspace: Workspace) -> dict[str, str]:
    return os.environ | {"SDTRAINER_WORKSPACE": str(workspace.root), "OMP_NUM_THREADS": "1"}


def made(workspace: Workspace, *words: object) -> Path:
    """Train to the end; returns the path on the last line of stdout."""
    done = forked.run(*words, environment=environment(workspace), timeout=LONG)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def kill_when(run_file: Path, workspace: Workspace, is_time: Callable[[list[Event]], bool]) -> RunFolder:
    """Start a run and kill it with signal 9 as soon as its log says that it is time."""
    known = set(workspace.runs.iterdir()) if workspace.runs.is_dir() else set()
    process = forked.start("train", run_file, environment=environment(workspace))
    folder: RunFolder | None = None
    while process.exitcode is None:
        new = [p for p in (set(workspace.runs.glob("test*")) - known if workspace.runs.is_dir() else ())]
        folder = RunFolder(new[0]) if new else folder
        if folder and is_time([event for event, _ in events.read(folder.events_file)]):
            process.kill()
        time.sleep(0.002)
    assert folder is not None
    return folder


def assert_same_file(one: Path, other: Path) -> None:
    a, b = load_file(one), load_file(other)
    assert a and a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


INSTANTS: dict[str, Callable[[list[Event]], bool]] = {
    "while caching": lambda log: any(isinstance(e, PhaseBegan) and e.phase == "cache" for e in log),
    "before the first checkpoint": lambda log: any(isinstance(e, Stepped) for e in log),
    "just after a checkpoint": lambda log: any(isinstance(e, Saved) for e in log),
    "while exporting": lambda log: any(isinstance(e, PhaseBegan) and e.phase == "export" for e in log),
}


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_killed_run_resumes_to_the_same_file(
    run_file: Path, workspace: Workspace, whole: tuple[Path, float], instant: str
) -> None:
    cut = kill_when(run_file, workspace, INSTANTS[instant])
    assert not any(isinstance(e, Finished) for e, _ in events.read(cut.events_file)), "it was too late"
    assert_same_file(whole[0], made(workspace, "train", "--resume", cut.path))


@pytest.mark.slow
def test_killed_at_twenty_random_instants(run_file: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    path, length = whole
    chance = random.Random(7)
    for number in range(20):
        home = Workspace(tmp_path / f"home-{number}")
        deadline = time.monotonic() + chance.uniform(0.3, 1.0) * length
        cut = kill_when(run_file, home, lambda log, deadline=deadline: time.monotonic() > deadline)
        assert_same_file(path, made(home, "train", "--resume", cut.path))


def test_two_processes_share_the_images_and_write_once(run_file: Path, workspace: Workspace) -> None:
    class_images = ["prior.class_prompt=a disc", "prior.images=6", "prior.steps=2"]
    resting = ["method.train_text_encoder=true", "optim.text_encoder_until=50%"]
    words = ("train", run_file, "train.steps=6", *class_images, *resting)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [environment(workspace) | group | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    with ThreadPoolExecutor() as both:  # as torchrun starts them
        first, second = both.map(lambda e: forked.run(*words, environment=e, timeout=LONG), places)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    (folder,) = (RunFolder(path) for path in workspace.runs.iterdir())
    assert first.stdout.splitlines()[-1] == str(folder.output / "test.safetensors")
    log = [event for event, _ in events.read(folder.events_file)]
    assert sum(isinstance(e, Finished) for e in log) == 1
    assert len(list(workspace.class_images.rglob("*.png"))) == 6
    assert max(e.images_seen for e in log if isinstance(e, Stepped)) == 6 * 2 * 2
    assert all(t.isfinite().all() for t in load_file(folder.output / "test.safetensors").values())


@pytest.fixture(scope="module")
def queue(
    base: Path, images: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Trainer, Jobs]]:
    """The page's jobs: each takes the child that waits warm."""
    home = Workspace(tmp_path_factory.mktemp("queue") / "workspace")
    jobs = Jobs(home)
    yield make_trainer(home, base, images, held_out), jobs
    jobs.close()


def endless(trainer: Trainer) -> configs.Config:
    return trainer.config(train__steps="100000", sample__prompts=[])


def test_the_queue_runs_one_after_the_other_and_obeys(queue: tuple[Trainer, Jobs]) -> None:
    trainer, jobs = queue
    long = jobs.start(endless(trainer))
    short = jobs.start(trainer.config(train__steps="3", sample__prompts=[]))
    _wait(lambda: any(isinstance(e, Stepped) for e, _ in events.read(long.events_file)))
    assert jobs.status(long, last_word(long)) == "running"
    assert jobs.status(short, last_word(short)) == "waiting"
    jobs.tell(long.name, "pause")
    _wait(lambda: jobs.status(long, last_word(long)) == "paused")
    jobs.tell(long.name, "go")
    _wait(lambda: jobs.status(long, last_word(long)) == "running")
    jobs.tell(long.name, "stop")
    _wait(lambda: jobs.status(long, last_word(long)) == "stopped")
    _wait(lambda: jobs.status(short, last_word(short)) == "finished")


def test_a_killed_trainer_leaves_an_honest_sentence(queue: tuple[Trainer, Jobs]) -> None:
    trainer, jobs = queue
    folder = jobs.start(endless(trainer))
    _wait(lambda: any(isinstance(e, Stepped) for e, _ in events.read(folder.events_file)))
    assert jobs._child is not None
    jobs._child.kill()
    _wait(lambda: jobs.status(folder, last_word(folder)) == "failed")
    *_, (last, _) = events.read(folder.events_file)
    assert "memory ran out" in last.what  # type: ignore[attr-defined]


def test_closing_the_app_suspends_the_run(queue: tuple[Trainer, Jobs]) -> None:
    trainer, jobs = queue
    folder = jobs.start(endless(trainer))
    _wait(lambda: any(isinstance(e, Stepped) for e, _ in events.read(folder.events_file)))
    jobs.close()
    assert status_of(folder, last_word(folder), is_current=False) == "interrupted"
    assert list(folder.checkpoints.iterdir())


def test_bad_input_is_one_line_and_code_2(run_file: Path, workspace: Workspace) -> None:
    words = ("train", run_file, "data.folder=/no/such/folder")
    done = forked.run(*words, environment=environment(workspace), timeout=LONG)
    assert done.returncode == 2 and done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "/no/such/folder" in line]


def _wait(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
