"""Fetching from the hub, played by a small server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_hub import FakeHub, running
from huggingface_hub import constants

from sdtrainer import hub
from sdtrainer.events import PhaseBegan, Progress
from sdtrainer.section import UserError

FILES = {
    "config.json": b'{"model_type": "blip"}',
    "model.safetensors": bytes(3_000_000),
    "pytorch_model.bin": bytes(1000),
}
WANTED = hub.Wanted(
    "some/model", ("*.json", "*.safetensors"), ("config.json", "*.safetensors"), "model", 3_000_000
)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that gives out some/model, with an empty cache."""
    (tmp_path / "model").mkdir()
    for name, content in FILES.items():
        (tmp_path / "model" / name).write_bytes(content)
    with running(FakeHub(WANTED.repo, tmp_path / "model"), tmp_path / "cache", monkeypatch) as hub_:
        yield hub_


def _all(wanted: hub.Wanted = WANTED) -> tuple[Path, list[Any]]:
    said, doing = [], hub.fetch(wanted)
    while True:
        try:
            said.append(next(doing))
        except StopIteration as end:
            return end.value, said


def test_a_model_is_fetched_once_with_its_size_said_before(played: FakeHub) -> None:
    assert hub.here(WANTED) is None
    folder, said = _all()
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert isinstance(said[0], PhaseBegan) and said[0].what == "Downloading some/model: 3 MB"
    assert [e for e in said if isinstance(e, Progress)][-1].done == 3
    played.num_requests = 0
    assert _all() == (folder, []) and hub.here(WANTED) == folder
    assert played.num_requests == 0


def test_what_lies_in_the_cache_in_part_is_completed(played: FakeHub) -> None:
    folder, _ = _all()
    (folder / "model.safetensors").unlink()
    assert hub.here(WANTED) is None
    assert (_all()[0] / "model.safetensors").stat().st_size == 3_000_000


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (hub.Wanted("no/model", ("*",), (), "model"), "the hub does not give it out"),
        (hub.Wanted("some/model", ("*",), ("model.onnx",), "model"), "has no model.onnx"),
    ],
)
def test_what_the_hub_lacks_is_named(played: FakeHub, wanted: hub.Wanted, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        _all(wanted)
    assert raised.value.path == "model"


def test_offline_the_size_and_the_way_out_are_told(played: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(UserError, match=r"about 3 MB\) is not on this machine.*give a folder"):
        _all()


def test_a_disk_too_small_is_said_before_the_download(
    played: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match="is 3 MB, and 1 MB are free"):
        _all()
    assert played.num_requests and "model.safetensors" not in played.given
