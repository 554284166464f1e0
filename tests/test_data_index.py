"""The index of a folder: a second reading opens only what changed, and finds what a first one would."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_ui_project import wait_for

from sdtrainer import config as configs
from sdtrainer import planner
from sdtrainer.__main__ import main
from sdtrainer.bench import many_images
from sdtrainer.config import Config
from sdtrainer.data import scan as scanning
from sdtrainer.data import sources
from sdtrainer.data.images import open_rgb
from sdtrainer.data.index import Index, Known, index_for
from sdtrainer.data.scan import Told, scan
from sdtrainer.data.section import DataSection
from sdtrainer.data.walk import natural_key, walk
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.section import UserError, override
from sdtrainer.ui import outlook
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset.source import _found
from sdtrainer.ui.outlook import Looker, Outlook, Reading
from sdtrainer.ui.page import _wrong
from sdtrainer.workspace import Workspace

AUTO = DataSection()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert list(many_images.write(tmp_path / "many", 60))[-1] == 60
    return tmp_path / "many"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that a scan opens."""
    names: list[str] = []
    for module, name in ((scanning, "read_header"), (sources, "read_caption")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, real=real: (names.append(path.name), real(path))[1])
    return names


def test_a_second_reading_opens_only_what_changed(folder: Path, tmp_path: Path, opened: list[str]) -> None:
    index = Index(tmp_path / "index.sqlite")
    first = scan(folder, AUTO, None, index)
    assert len(opened) == 120 and first == scan(folder, AUTO)
    opened.clear()
    assert scan(folder, AUTO, None, index) == first and opened == []
    (folder / "0000" / "000007.txt").write_text("something else entirely")
    Image.new("RGB", (30, 20)).save(folder / "0000" / "000004.jpg")
    changed = scan(folder, AUTO, None, index)
    assert sorted(opened) == ["000004.jpg", "000007.txt"]
    assert {s.path: s.caption for s in changed.samples}["0000/000007.png"] == "something else entirely"
    assert (changed.samples[4].width, changed.samples[4].height) == (30, 20)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The SQL that is done."""
    statements: list[str] = []
    real = sqlite3.connect

    def connect(*args: Any, **more: Any) -> sqlite3.Connection:
        base = real(*args, **more)
        base.set_trace_callback(statements.append)
        return base

    monkeypatch.setattr("sdtrainer.data.index.sqlite3.connect", connect)
    return statements


def test_the_index_is_asked_once_however_many_folders_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str], asked: list[str]
) -> None:
    """Folders within folders, read in between the pictures around them."""
    monkeypatch.setattr(many_images, "PER_FOLDER", 2)
    counts = []
    for num in (6, 40):
        folder, index = tmp_path / str(num), Index(tmp_path / f"{num}.sqlite")
        assert list(many_images.write(folder, num))[-1] == num
        for name in ("0000 a.png", "0001/more/b.png", "0001 c.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (9, 9)).save(folder / name)
        first = scan(folder, AUTO, None, index)
        opened.clear(), asked.clear()
        assert scan(folder, AUTO, None, index) == first and opened == []
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0


def test_memory_grows_by_the_list_of_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the list, reading ten times the images takes hardly more."""
    monkeypatch.setattr(many_images, "PER_FOLDER", 50)
    monkeypatch.setattr("sdtrainer.data.scan.ASKED_AT_ONCE", 50)
    beside = {}
    for num in (150, 1500):
        folder, index = tmp_path / str(num), Index(tmp_path / f"{num}.sqlite")
        assert list(many_images.write(folder, num))[-1] == num
        scan(folder, AUTO, None, index)
        tracemalloc.start()
        census = scan(folder, AUTO, None, index)
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(census.samples) == num and held < 600 * num
        beside[num] = most - held
    assert beside[1500] - beside[150] < 150 * 1350


def test_a_reading_that_is_broken_off_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    monkeypatch.setattr(scanning, "TOLD_EVERY", 20)
    index, heard = Index(tmp_path / "index.sqlite"), []

    def told(done: int, num: int) -> None:
        heard.append((done, num))
        if done == 40:
            raise UserError("Stop.", "")

    with pytest.raises(UserError, match=r"Stop\."):
        scan(folder, AUTO, None, index, told)
    assert heard == [(0, 60), (20, 60), (40, 60)] and len(opened) == 80
    opened.clear()
    assert scan(folder, AUTO, None, index) == scan(folder, AUTO)
    assert len(opened) == 40 + 120


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_to_a_folder_the_index_agrees_with_it(
    folder: Path, tmp_path: Path, seed: int
) -> None:
    index, rng = Index(tmp_path / "index.sqlite"), random.Random(seed)
    changes = (
        lambda file: file.unlink(),
        lambda file: file.rename(file.with_name(f"renamed {file.name}")),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(b""),
        lambda file: os.utime(file, ns=(1, 1)),
    )
    for _ in range(4):
        for file in rng.sample(sorted(p for p in folder.rglob("*") if p.is_file()), 6):
            rng.choice(changes)(file)
        assert scan(folder, AUTO, None, index) == scan(folder, AUTO)
    there = {found.path for found in walk(folder, [])}
    known = set(_paths_in(index, "header"))
    assert known and known <= there, "what is gone is forgotten"


def _paths_in(index: Index, kind: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(index.path)) as base:
        return [path for (path,) in base.execute("SELECT path FROM facts WHERE kind = ?", (kind,))]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "foreign", "old"])
def test_a_damaged_index_is_made_anew(folder: Path, tmp_path: Path, opened: list[str], damage: str) -> None:
    index = Index(tmp_path / "index.sqlite")
    first = scan(folder, AUTO, None, index)
    content = index.path.read_bytes()
    if damage == "old":
        with sqlite3.connect(index.path) as base:
            base.execute("PRAGMA user_version = 999")
        base.close()
    else:
        damaged = {"cut": content[:3000], "noise": os.urandom(5000), "empty": b"", "foreign": b"hello"}
        index.path.write_bytes(damaged[damage])
    assert scan(folder, AUTO, None, index) == first
    scan(folder, AUTO, None, index)
    opened.clear()
    assert scan(folder, AUTO, None, index) == first and opened == []


def test_an_index_in_use_is_done_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdtrainer.data.index.BUSY_SECONDS", 0.01)
    index = Index(tmp_path / "index.sqlite")
    first = scan(folder, AUTO, None, index)
    holder = sqlite3.connect(index.path)
    holder.execute("BEGIN EXCLUSIVE")
    assert scan(folder, AUTO, None, index) == first
    holder.close()
    assert index.count("header") == 60, "it was not thrown away"
    assert scan(folder, AUTO, None, Index(tmp_path / "index.sqlite" / "no folder")) == first


def test_what_is_no_json_is_not_known(folder: Path, tmp_path: Path) -> None:
    index, file = Index(tmp_path / "index.sqlite"), next(iter(walk(folder, [])))
    index.note("header", [(file.path, (file.num_bytes, file.mtime_ns, "{torn"))])
    assert Known(index, "header").get(file) is None


def test_planning_keeps_the_index_in_the_workspace(workspace: Workspace, folder: Path) -> None:
    config = configs.build({"data": {"folder": str(folder)}})
    assert planner.look(config, workspace) == planner.look(config, workspace)
    index = index_for(workspace.root, folder)
    assert index.count("header") == 60 and index.path.is_relative_to(workspace.cache)


def test_names_are_sorted_as_a_person_would() -> None:
    names = ["a2", "a10", "A1", "b", "a", "1", "02", "a1b", "a1", "\u00e41"]
    assert sorted(names, key=natural_key) == ["1", "02", "a", "A1", "a1", "a1b", "a2", "a10", "b", "\u00e41"]


def test_a_large_folder_does_not_hold_up_the_page(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is read anew, what was found before counts."""
    monkeypatch.setattr(outlook, "SCAN_WAIT_SECONDS", 0.05)
    real, slow = planner.look, [True]

    def look(*args):
        time.sleep(0.2 if slow[0] else 0)
        return real(*args)

    monkeypatch.setattr("sdtrainer.ui.outlook.planner.look", look)
    looker = Looker(workspace, Access(workspace))
    values = {"base": {"path": "starter"}, "data": {"folder": str(folder)}}
    seen = looker.look(values, CPU_ONLY)
    assert seen.census is None and seen.error and "being counted" in seen.error.what
    wait_for(lambda: looker.num_answers == 1)
    seen = looker.look(values, CPU_ONLY)
    assert seen.census and len(seen.census.samples) == 60 and seen.plan
    assert looker.look(values, CPU_ONLY).draft is seen.draft, "decided once"
    (folder / "0000" / "000007.txt").write_text("new words")
    looker.forget()
    assert looker.look(values, CPU_ONLY).census == seen.census, "the one before, while it is read anew"
    wait_for(lambda: looker.num_answers == 2)
    assert "new words" in {s.caption for s in looker.look(values, CPU_ONLY).census.samples}


def test_it_is_said_how_far_the_first_reading_is_and_another_folder_ends_it(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "SCAN_WAIT_SECONDS", 0.05)
    real, goes_on, ended = planner.look, threading.Event(), []

    def look(config: Config, workspace: Workspace, told: Told) -> planner.Found:
        if config.data.folder != str(folder):
            return real(config, workspace, told)
        told(30, 60)
        goes_on.wait(10)
        try:
            told(31, 60)
        except UserError as error:
            ended.append(error)
            raise
        return real(config, workspace, told)

    monkeypatch.setattr("sdtrainer.ui.outlook.planner.look", look)
    looker = Looker(workspace, Access(workspace))
    error = looker.look({"data": {"folder": str(folder)}}, CPU_ONLY).error
    assert isinstance(error, Reading) and "30 of the 60 pictures" in error.what
    assert looker.reading == (30, 60) and _wrong(error) == ""
    assert "Reading" in _found(Outlook({}, error=error), None)
    other = {"data": {"folder": str(folder / "0000")}}
    wait_for(lambda: looker.look(other, CPU_ONLY).census is not None)
    goes_on.set()
    wait_for(lambda: bool(ended))
    assert looker.reading is None and looker.look(other, CPU_ONLY).census


def test_pictures_are_read_again_for_the_settings_that_matter_alone(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, looked, real = set(), [], planner.look

    class Watched(DataSection):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    values = {"base": {"path": "starter"}, "data": {"folder": str(folder)}}
    config = configs.build(values)
    real(config.model_copy(update={"data": Watched(**config.data.model_dump())}), workspace)
    assert read & set(DataSection.model_fields) == set(planner.LOOKED_AT)
    monkeypatch.setattr(planner, "look", lambda *given: (looked.append(1), real(*given))[1])
    looker = Looker(workspace, Access(workspace))
    for changes in ({}, {"data.flip": True}, {"train.seed": 5}, {"data.trigger": "zib"}):
        assert looker.look(override(values, changes), CPU_ONLY).census
    assert len(looked) == 1
    looker.look(override(values, {"data.caption_from": "none"}), CPU_ONLY)
    assert len(looked) == 2


def test_generated_images_are_valid_and_all_different(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*.*") if p.suffix != ".txt")
    assert len(files) == 60 == len({file.read_bytes() for file in files})
    assert {open_rgb(file, "white").size for file in files} == set(many_images.SIZES)


def test_reading_many_images_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "dataset", "--images", "150"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("150 images\nfirst reading")
    rows = {line[:15].strip(): line.split() for line in told.splitlines()}
    assert float(rows["ratio"][-1]) > 1, "the second reading is not quicker"
    assert float(rows["Dataset tab"][-2]) >= 0 and "60 thumbnails" in rows
