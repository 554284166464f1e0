"""Fixtures shared by all tests: a tiny base model and pictures, made once, and a way to train a run in this
process.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared by the test processes

import sd3 as published_sd3
import sd15
import sdxl as published_sdxl
import tiny

from sdtrainer import config as configs
from sdtrainer import workspace as workspaces
from sdtrainer.events import Event
from sdtrainer.training.control import Control
from sdtrainer.workspace import RunFolder, Workspace

hypothesis.settings.register_profile("busy", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("busy")

LONGEST = ("test_processes.py", "test_browser.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no core waits for one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture(scope="session")
def published_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The models that presets are made for, by their ids on the hub: folders without weights."""
    models = tmp_path_factory.mktemp("published")
    return {
        sd15.HUB_ID: str(sd15.write(models / "sd15")),
        published_sdxl.HUB_ID: str(published_sdxl.write(models / "sdxl")),
        published_sd3.HUB_ID: str(published_sd3.write(models / "sd3")),
    }


@pytest.fixture(scope="session")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_sd3(tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_images(tmp_path_factory.mktemp("pictures") / "images", 5)


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_images(tmp_path_factory.mktemp("held") / "images", 2)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test may not ask another computer for anything, and swallow that it could not."""
    asked: list[object] = []

    def refuse(*where: object, **_: object) -> None:
        asked.append(where)
        raise OSError("this machine is offline")

    for way in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, way, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not asked


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def other_precisions() -> Iterator[None]:
    """accelerate allows one precision in a process; runs before and after are of another."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


DRAWING: dict[str, Any] = {"sample__prompts": ["a zib disc"]}


@dataclass
class Trainer:
    """Trains runs on the tiny base model, in this process, for a few steps."""

    workspace: Workspace
    values: dict[str, Any]

    def config(self, **changes: Any) -> configs.Config:
        """Settings by dotted name with `__` for the dot: train__steps=10."""
        dotted = {path.replace("__", "."): value for path, value in changes.items()}
        return configs.build(configs.override(self.values, dotted))

    def new(self, **changes: Any) -> RunFolder:
        """A run that draws no pictures unless it is asked to."""
        return workspaces.create_run(self.workspace.runs, self.config(**{"sample__prompts": []} | changes))

    def run(
        self,
        folder: RunFolder,
        more_steps: int = 0,
        on_event: Callable[[Event, Control], None] = lambda event, control: None,
    ) -> list[Event]:
        """Train to the end, or until `on_event` raises Killed, as a crash would."""
        from sdtrainer.training import run as training

        control, happened = Control(), []
        stream = training.record(folder, training.train(folder, self.workspace, control, more_steps))
        try:
            for event in stream:
                happened.append(event)
                on_event(event, control)
        except Killed:
            stream.close()
        return happened


class Killed(Exception):
    """Raised by a test to leave a run where it stands."""


@pytest.fixture
def trainer(workspace: Workspace, base: Path, images: Path, held_out: Path) -> Trainer:
    return make_trainer(workspace, base, images, held_out)


def make_trainer(workspace: Workspace, base: Path, images: Path, held_out: Path) -> Trainer:
    values = {
        "run": {"name": "test"},
        "base": {"path": str(base)},
        "data": {"folder": str(images), "validation_folder": str(held_out)},
        "method": {"kind": "lora", "rank": 2, "alpha": 4.0, "dropout": 0.1},
        "train": {"steps": "12", "batch_size": 2, "resolution": 64, "validate_every": "6"},
        "optim": {"lr": 1e-3, "warmup": "2", "schedule": "cosine"},
        "sample": {"prompts": ["a zib disc"], "steps": 2, "every": "6"},
        "checkpoint": {"every": "4"},
        "export": {"precision": "fp32"},
    }
    return Trainer(workspace, values)
