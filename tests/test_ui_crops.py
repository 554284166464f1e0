"""The page for crops and masks: what is drawn is what the model sees, and what is done is kept."""

from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdtrainer.data.overlay import overlay_for
from sdtrainer.section import UserError, override
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset.crops import Crops
from sdtrainer.ui.dataset.painting import mask_of, painted
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.listen import Given
from sdtrainer.ui.sections import Sections
from sdtrainer.workspace import Workspace


@pytest.fixture
def folder(workspace: Workspace) -> Path:
    folder = workspace.uploads / "set"
    folder.mkdir(parents=True)
    Image.new("RGB", (600, 100), "red").save(folder / "a.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "b.png")
    return folder


@pytest.fixture
def crops(workspace: Workspace, folder: Path) -> Crops:
    desk = Desk(workspace, Access(workspace))
    desk.project.change(override(desk.project.values, {"data.folder": str(folder)}), "")
    sections = Sections("parts")
    crops = Crops(desk, sections)
    with gr.Blocks():
        sections.build({crops.title: crops.build})
    return crops


def asked(crops: Crops, path: str = "a.png", clicked=None, **values) -> Given:
    fields = {crops.chosen: path, crops.seen: "", crops.is_open: True, crops.number: 1}
    return Given(fields | {getattr(crops, k): v for k, v in values.items()}, "owner", "page", clicked or {})


def overlay(crops: Crops, folder: Path):
    return overlay_for(crops.desk.workspace.root, folder)


def test_a_click_moves_the_window_and_a_drag_crops(crops: Crops, folder: Path) -> None:
    before = crops._open(asked(crops))
    shown = crops._point(asked(crops, clicked={"act": "focus", "point": [0.05, 0.5]}))
    assert overlay(crops, folder).entries("focus") == {"a.png": [0.05, 0.5]}
    assert 'class="focus" style="left:5.00%;top:50.00%"' in shown[crops.stage]
    assert "inset:0.000%" in shown[crops.stage] and shown[crops.window] != before[crops.window]
    shown = crops._point(asked(crops, clicked={"act": "crop", "box": [0.5, 0, 0.75, 1]}))
    assert overlay(crops, folder).entries("crops") == {"a.png": [0.5, 0, 0.75, 1]}
    assert "Your crop is 150 x 100 px." in shown[crops.facts]
    assert shown[crops.seen] == crops._view(crops.desk.look(), "a.png")[crops.seen], "as a new look finds it"
    assert (
        crops.show(crops.desk.look(), asked(crops, seen=shown[crops.seen])).keys() == crops.card.show().keys()
    )


def test_the_whole_picture_can_be_had_back(crops: Crops, folder: Path) -> None:
    overlay(crops, folder).lay("crops", {"a.png": [0, 0, 0.5, 1]})
    overlay(crops, folder).lay("focus", {"a.png": [0, 0]})
    shown = crops._lay(crops.now(asked(crops)), None, None)
    assert not overlay(crops, folder).entries("crops") and not overlay(crops, folder).entries("focus")
    assert "cropped" not in shown[crops.stage] and shown[crops.edges[2]] == 100


def test_numbers_that_make_no_crop_are_refused(crops: Crops, folder: Path) -> None:
    fields = dict(zip([*crops.edges, *crops.point], [60, 0, 40, 100, None, None], strict=True))
    request = asked(crops)
    with pytest.raises(UserError, match="left must be smaller"):
        crops._apply(Given({**request.values, **fields}, "owner", "page"))
    fields[crops.edges[2]] = 100
    crops._apply(Given({**request.values, **fields}, "owner", "page"))
    assert overlay(crops, folder).entries("crops") == {"a.png": [0.6, 0.0, 1.0, 1.0]}


def test_no_place_that_a_browser_could_make_up_is_taken(crops: Crops) -> None:
    for said in (None, [0.1], [0.1, "x"], {"x": 1}):
        with pytest.raises(UserError, match="no place"):
            crops._point(asked(crops, clicked={"act": "focus", "point": said}))


def test_pictures_are_stepped_through_and_shown_by_shape(crops: Crops) -> None:
    assert crops._step(asked(crops), 1)[crops.chosen] == "b.png"
    assert crops._step(asked(crops), -1)[crops.chosen] == "b.png"
    assert crops._go(asked(crops, number=99))[crops.chosen] == "b.png"
    shapes = crops._shapes(asked(crops))[crops.shapes]
    assert shapes.count("1 picture") == 2 and shapes.count("data-picture") == 2


def test_what_is_painted_is_kept_and_can_be_turned_round(crops: Crops, folder: Path) -> None:
    canvas = crops.painting._canvas(crops.now(asked(crops)).sample)[crops.painting.canvas]
    paint = Image.new("L", canvas["background"].size, 0)
    paint.paste(255, (0, 0, 100, 100))
    request = asked(crops)
    request = Given(
        {**request.values, crops.painting.canvas: canvas | {"layers": [painted(paint)]}}, "owner", "page"
    )
    shown = crops.painting._save(request)
    assert 'class="mask"' in shown[crops.stage]
    mask = Image.open(crops.desk.look().census.samples[0].mask)
    assert mask.size == (600, 100) and np.asarray(mask)[:, 110:].max() == 0 < np.asarray(mask)[:, :90].min()
    crops.painting._invert(request)
    turned = Image.open(crops.desk.look().census.samples[0].mask)
    assert np.array_equal(np.asarray(turned), 255 - np.asarray(mask))
    crops.painting._clear(request)
    assert crops.desk.look().census.samples[0].mask is None
    empty = {**request.values, crops.painting.canvas: canvas | {"layers": []}}
    with pytest.raises(UserError, match="Nothing is painted"):
        crops.painting._save(Given(empty, "owner", "page"))


@settings(max_examples=30)
@given(grey=st.integers(0, 255))
def test_paint_and_mask_are_each_other(grey: int) -> None:
    mask = Image.new("L", (4, 4), grey)
    assert abs(mask_of([painted(mask)]).getpixel((0, 0)) - grey) <= 1
