"""Crops and focus points: what is drawn on the page is what the loader yields, and no old latent is used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from skimage import data as photos

from sdtrainer.data.buckets import crop_of, fit, table_for, window
from sdtrainer.data.cache import Cache
from sdtrainer.data.images import seen_by_model
from sdtrainer.data.items import Draw, epoch_batches, plan_items
from sdtrainer.data.loading import Loader
from sdtrainer.data.overlay import overlay_for
from sdtrainer.data.scan import scan
from sdtrainer.data.section import DataSection
from sdtrainer.data.stores import LatentStore

SIDES = st.integers(1, 4000)
PARTS = st.floats(0, 1, allow_nan=False)
POINTS = st.tuples(PARTS, PARTS)
BOXES = st.tuples(PARTS, PARTS, PARTS, PARTS)


@pytest.fixture(scope="module")
def photo():
    """A photograph without the finest detail, which every way of scaling treats differently."""
    return Image.fromarray(photos.coffee()).filter(ImageFilter.GaussianBlur(3))


@pytest.fixture
def folder(tmp_path, photo):
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        photo.resize((300, 200)).save(tmp_path / "set" / name)
    return tmp_path / "set"


def items_of(folder, overlay=None, **section):
    settings = DataSection(**section)
    return plan_items(scan(folder, settings, overlay).samples, settings, [64])


@settings(max_examples=150)
@given(width=SIDES, height=SIDES, box=st.none() | BOXES, focus=st.none() | POINTS, upscale=st.booleans())
def test_the_window_fills_its_bucket_and_stays_inside(width, height, box, focus, upscale):
    crop = crop_of(box, (width, height)) if box else None
    table = table_for(512, DataSection())
    seen = window(crop.size if crop else (width, height), table, upscale, crop, focus)
    assert seen.whole == (width, height)
    left, top, right, bottom = seen.seen
    outer = crop.box if crop else (0, 0, width, height)
    assert outer[0] <= left < right <= outer[2] + 1e-6 and outer[1] <= top < bottom <= outer[3] + 1e-6
    assert 0 <= seen.left <= seen.scale_to[0] - seen.size[0]
    assert 0 <= seen.top <= seen.scale_to[1] - seen.size[1]


@settings(max_examples=100)
@given(size=st.tuples(SIDES, SIDES), focus=POINTS)
def test_no_window_comes_nearer_to_the_focus_point(size, focus):
    table = table_for(512, DataSection())
    aimed, centred = window(size, table, True, None, focus), fit(*size, window(size, table, True).size)
    for axis in (0, 1):
        pixel = aimed.source[axis] / aimed.scale_to[axis]
        point = focus[axis] * size[axis]
        off, before = (abs((f.seen[axis] + f.seen[axis + 2]) / 2 - point) for f in (aimed, centred))
        assert off <= before + pixel


@settings(max_examples=25)
@given(box=st.none() | BOXES, focus=st.none() | POINTS)
def test_the_rectangle_on_the_page_is_what_the_model_sees(photo, box, focus):
    crop = crop_of(box, photo.size) if box else None
    if crop and min(crop.size) < 40:  # of a few pixels every way of enlarging makes something else
        return
    table = table_for(64, DataSection())
    seen = window(crop.size if crop else photo.size, table, True, crop, focus)
    by_model = seen_by_model(photo, seen, "coffee.png")
    by_rectangle = photo.resize(seen.size, Image.Resampling.LANCZOS, box=seen.seen)
    off = np.abs(np.asarray(by_model, float) - np.asarray(by_rectangle, float))
    assert by_model.size == seen.size
    assert off.mean() < 1.5


def test_a_crop_decides_the_bucket_and_what_is_loaded(tmp_path, folder):
    overlay = overlay_for(tmp_path, folder)
    overlay.lay("crops", {"a.png": [0.0, 0.0, 0.25, 1.0]})
    cropped, plain = items_of(folder, overlay)
    assert (cropped.sample.width, cropped.sample.height) == (75, 200)
    assert cropped.bucket[0] < cropped.bucket[1] and plain.bucket[0] > plain.bucket[1]
    loader = Loader([cropped], tokenize=lambda captions: {})
    batch = loader.batch([Draw(0)])
    with Image.open(folder / "a.png") as image:
        wanted = image.convert("RGB").resize(cropped.bucket, Image.Resampling.LANCZOS, box=cropped.fit.seen)
    loaded = (batch.pixels[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(loaded - np.asarray(wanted, float)).mean() < 2
    assert batch.sizes[0, :2].tolist() == [200, 75]


def test_a_focus_point_moves_the_window_and_outweighs_chance(tmp_path, folder):
    overlay = overlay_for(tmp_path, folder)
    overlay.lay("focus", {"a.png": [0.0, 0.0]})
    items = items_of(folder, overlay, crop="random", bucket_min=64, bucket_max=64)
    assert items[0].fit.left == 0 < items[1].fit.left
    draws = [draw for epoch in range(4) for batch in epoch_batches(items, 1, 0, epoch) for draw in batch]
    assert {draw.position for draw in draws if draw.item == 0} == {(0.5, 0.5)}
    assert len({draw.position for draw in draws if draw.item == 1}) == 4


def test_another_crop_or_focus_never_finds_an_old_latent(tmp_path, folder):
    overlay, store = overlay_for(tmp_path, folder), LatentStore(Cache(tmp_path / "cache"), "vae", "fp32")
    keys = [store.key(items_of(folder, overlay)[0], False)]
    for table, entry in (
        ("crops", [0.0, 0.0, 0.5, 1.0]),
        ("crops", [0.5, 0.0, 1.0, 1.0]),
        ("focus", [0.9, 0.1]),
    ):
        overlay.lay(table, {"a.png": entry})
        keys.append(store.key(items_of(folder, overlay)[0], False))
    overlay.lay("crops", {"a.png": None})
    overlay.lay("focus", {"a.png": None})
    assert len(set(keys)) == 4
    assert store.key(items_of(folder, overlay)[0], False) == keys[0]
