"""Captions from the page: a try, all of them, and back."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import tiny

from sdtrainer.captioners import Name, captioners, work
from sdtrainer.data.overlay import overlay_for
from sdtrainer.section import checked, override
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset.browse import Browse
from sdtrainer.ui.dataset.captioning import ALL, MISSING, PICKED, Captioning
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.listen import Given
from sdtrainer.workspace import Workspace


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tiny.make_images(tmp_path / "photos", 3)
    for number, name in (("01", "blue house"), ("02", "red car")):
        (folder / f"{number}.png").rename(folder / f"{name}.png")
        (folder / f"{number}.txt").unlink()
    return folder


@pytest.fixture
def part(workspace: Workspace, photos: Path) -> Iterator[Captioning]:
    desk = Desk(workspace, Access(workspace))
    with gr.Blocks():
        part = Captioning(desk, Browse(desk))
        part.build()
    looks_at(part, photos)
    yield part
    desk.close()


def looks_at(part: Captioning, folder: Path) -> None:
    project = part.desk.project
    project.change(override(project.values, {"data.folder": str(folder)}), "test")


def given(part: Captioning, by: Name, which: str = MISSING, **values: Any) -> Given:
    fields = {f.widget: f.show(values.get(n, f.knob.default)) for n, f in part.card.fields.items()}
    return Given({part.by: by, part.which: which, **fields}, "owner", "page")


def when_done(part: Captioning, asked: Given) -> dict[Any, Any]:
    def done() -> dict[Any, Any] | None:
        return None if part.card.doing else part._all(asked)

    return until(done)


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (answer := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def test_the_settings_shown_are_those_that_count(part: Captioning) -> None:
    strange = {"threshold": 0.5, "instruction": "x", "detail": "long", "mode": "after", "precision": "fp32"}
    for by, which in itertools.product(captioners(), (MISSING, ALL, PICKED)):
        asked = given(part, by.name, which, **strange)
        shown = part._choose(asked)
        visible = {name for name, field in part.card.fields.items() if shown[field.widget]["visible"]}
        sent = {n: v for n, v in part.card.values(asked).items() if n in part._wanted(asked)}
        assert visible == set(sent) and visible < set(part.card.fields)
        chosen = {"captioner": by.name, "overwrite": which != MISSING, "folder": "x"}
        work.check(checked(work.Settings, sent | chosen, "caption"), by)


def test_a_picture_is_tried_then_all_are_captioned_then_none(
    part: Captioning, workspace: Workspace, photos: Path, tmp_path: Path
) -> None:
    asked = given(part, "file-name")
    first = part._all(asked)
    assert first[part.card.start]["value"] == "Caption 2 pictures"
    assert "no caption" in first[part.preview] and "nothing to download" in first[part.about]
    part._begin(asked, is_try=True)
    tried = when_done(part, asked)
    assert "<b>File names: </b>blue house" in tried[part.preview] and "not kept" in tried[part.card.news]
    assert overlay_for(workspace.root, photos).captions == {}
    looks_at(part, shutil.copytree(photos, tmp_path / "others"))
    elsewhere = part._all(asked)
    assert elsewhere[part.card.news] == "" and "File names:" not in elsewhere[part.preview]
    looks_at(part, photos)

    part._begin(asked)
    done = when_done(part, asked)
    assert "2 captions by File names" in done[part.card.news]
    assert done[part.card.start] == gr.update(value="All have a caption", interactive=False)
    assert done[part.see]["visible"] and done[part.undo]["visible"]
    assert set(overlay_for(workspace.root, photos).captions.values()) == {"red car", "blue house"}

    part._undo(asked)
    back = part._all(asked)
    assert overlay_for(workspace.root, photos).captions == {}
    assert back[part.card.start]["value"] == "Caption 2 pictures" and not back[part.undo]["visible"]


def test_only_selected_pictures_are_captioned(part: Captioning, workspace: Workspace, photos: Path) -> None:
    asked = given(part, "file-name", PICKED)
    assert part._all(asked)[part.card.start]["value"] == "No picture is selected"
    part.views["page"] = replace(part.views["page"], picked=frozenset({"red car.png", "gone.png"}))
    assert part._all(asked)[part.card.start]["value"] == "Caption 1 picture"
    part._begin(asked)
    when_done(part, asked)
    assert overlay_for(workspace.root, photos).captions == {"red car.png": "red car"}


def test_what_is_downloaded_is_said_before(part: Captioning, photos: Path) -> None:
    for model, words in (
        ("", "once: about 379 MB"),
        (str(photos), "in the folder"),
        ("some/tagger", "once;"),
        ("SmilingWolf/wd-eva02-large-tagger-v3", "once: about 1.3 GB;"),
        (
            "",
            "a larger or smaller one: SmilingWolf/wd-swinv2-tagger-v3 (467 MB)",
        ),
    ):
        shown = part._all(given(part, "wd-tagger", model=model))
        assert words in shown[part.about], model


def test_a_captioning_that_was_stopped_says_that_it_goes_on(part: Captioning, photos: Path) -> None:
    from sdtrainer.captioners.record import Record

    record = Record(part.desk.workspace.root, photos)
    record.begin({"captioner": "blip"}, "BLIP")
    record.write({"red car.png": "a car"})
    part.desk.errands.ended["caption"] = "It was stopped."
    shown = part._all(given(part, "blip"))
    assert "It was stopped." in shown[part.card.news] and "after 1 picture. Begin" in shown[part.card.news]
    assert shown[part.card.start]["value"] == "Caption 1 picture" and shown[part.undo]["visible"]
