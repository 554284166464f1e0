"""The order of epochs: a pure function of seed and epoch, whole on any number of processes."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtrainer.data.census import Sample
from sdtrainer.data.items import (
    bucket_counts,
    caption_of,
    captions_of,
    epoch_batches,
    fit_of,
    fixed_batches,
    item_problems,
    max_chunks,
    num_batches,
    order,
    plan_items,
    position,
    share,
)
from sdtrainer.data.section import DataSection

quick = settings(deadline=None, max_examples=40)
SHAPES = [(512, 512), (640, 480), (480, 640), (1000, 400)]


def samples(count, caption="one, two, three, four, five, six", repeats=1):
    return [
        Sample(f"{i}.png", Path("/images"), *SHAPES[i % 4], caption, ".txt", "", repeats, 1, 1)
        for i in range(count)
    ]


def test_every_image_appears_once_per_resolution():
    items = plan_items(samples(8), DataSection(repeats=3), [256, 512])
    assert Counter((item.sample.path, item.resolution) for item in items) == Counter(
        {(f"{i}.png", resolution): 1 for i in range(8) for resolution in (256, 512)}
    )
    assert {item.repeats for item in items} == {3}


def test_repeats_of_folder_and_section_multiply():
    assert plan_items(samples(1, repeats=10), DataSection(repeats=2), [512])[0].repeats == 20


@quick
@given(
    count=st.integers(1, 20),
    repeats=st.integers(1, 4),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 99),
)
def test_an_epoch_shows_every_item_as_often_as_its_repeats(count, repeats, batch_size, seed, epoch):
    items = plan_items(samples(count), DataSection(repeats=repeats, flip=True, crop="random"), [512])
    batches = epoch_batches(items, batch_size, seed, epoch)
    assert Counter(draw.item for batch in batches for draw in batch) == {i: repeats for i in range(count)}
    assert all(len({items[draw.item].bucket for draw in batch}) == 1 for batch in batches)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(batches) == num_batches(items, batch_size)
    assert sum(bucket_counts(items).values()) == count * repeats
    assert batches == epoch_batches(items, batch_size, seed, epoch)


def test_epochs_and_seeds_differ():
    items = plan_items(samples(12), DataSection(), [512])
    orders = [
        epoch_batches(items, 2, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1), (10, 1))
    ]
    assert len({str(order) for order in orders}) == 5


def test_order_is_the_same_in_every_process_and_release():
    """Golden: written by this program; a change would break the resuming of runs in progress."""
    items = plan_items(samples(4), DataSection(flip=True), [512])
    assert [draw.item for batch in epoch_batches(items, 1, 7, 3) for draw in batch] == GOLDEN_ORDER


GOLDEN_ORDER = [1, 3, 0, 2]


@quick
@given(count=st.integers(1, 17), world=st.integers(1, 5), batch_size=st.integers(1, 3))
def test_shares_are_complete_and_equal_and_overlap_only_by_padding(count, world, batch_size):
    items = plan_items(samples(count), DataSection(), [512])
    batches = epoch_batches(items, batch_size, 0, 0)
    shares = [share(batches, rank, world) for rank in range(world)]
    assert {len(part) for part in shares} == {num_batches(items, batch_size, world)}
    shown = Counter(str(batch) for part in shares for batch in part)
    assert set(shown) == {str(batch) for batch in batches}
    assert sum(shown.values()) - len(batches) < world


@pytest.mark.parametrize("world", [1, 2])
def test_resuming_needs_only_the_batch_number(world):
    items = plan_items(samples(7), DataSection(flip=True, crop="random"), [512])
    for rank in range(world):
        whole = list(islice(order(items, 2, 5, rank=rank, world=world), 23))
        for start in (0, 1, 4, 5, 13):
            assert list(islice(order(items, 2, 5, start, rank, world), 23 - start)) == whole[start:]


def test_position_is_epoch_and_batch():
    assert [position(batch, 4) for batch in (0, 3, 4, 9)] == [(0, 0), (0, 3), (1, 0), (2, 1)]


def test_mirroring_and_crops_vary_only_where_asked():
    still = epoch_batches(plan_items(samples(20), DataSection(), [512]), 4, 0, 0)
    moved = epoch_batches(plan_items(samples(20), DataSection(flip=True, crop="random"), [512]), 4, 0, 0)
    assert {(draw.flip, draw.position) for batch in still for draw in batch} == {(False, (0.5, 0.5))}
    assert {draw.flip for batch in moved for draw in batch} == {True, False}
    assert len({draw.position for batch in moved for draw in batch}) == 20


def test_random_crops_stay_inside_and_move():
    items = plan_items(samples(20), DataSection(crop="random"), [512])
    cuts = [(items[d.item], fit_of(items[d.item], d)) for b in epoch_batches(items, 4, 0, 0) for d in b]
    assert all(0 <= cut.left <= cut.scale_to[0] - cut.size[0] for _, cut in cuts)
    assert any(cut != item.fit for item, cut in cuts)


def test_shuffled_captions_differ_between_epochs_and_not_between_runs():
    items = plan_items(samples(1), DataSection(shuffle_tags=True), [512])
    captions = [caption_of(items[0], epoch_batches(items, 1, 0, epoch)[0][0]) for epoch in (0, 1, 0)]
    assert captions[0] == captions[2] != captions[1]
    assert sorted(captions[0].split(", ")) == sorted(captions[1].split(", "))


def test_validation_shows_every_item_once_without_chance():
    section = DataSection(
        repeats=5, flip=True, crop="random", shuffle_tags=True, caption_dropout=1, tag_dropout=1
    )
    items = plan_items(samples(9), section, [512])
    draws = [draw for batch in fixed_batches(items, 4) for draw in batch]
    assert sorted(draw.item for draw in draws) == list(range(9))
    assert {caption_of(items[draw.item], draw) for draw in draws} == {samples(1)[0].caption}
    assert all(fit_of(items[draw.item], draw) == items[draw.item].fit and not draw.flip for draw in draws)


def test_needed_captions_are_the_composed_ones_and_the_empty_one():
    items = plan_items(samples(4, caption="dog"), DataSection(trigger="ohwx"), [256, 512])
    assert captions_of(items) == ("", "ohwx, dog")


def test_chunks_hold_captions_whose_trigger_comes_in_front():
    def words(text):
        return len(text.split())

    caption = " ".join(["word,"] * 74 + ["ohwx"])
    items = plan_items(samples(1, caption=caption), DataSection(trigger="ohwx"), [512])
    assert max_chunks(items, words) == 1
    thinned = plan_items(samples(1, caption=caption), DataSection(trigger="ohwx", tag_dropout=0.1), [512])
    assert max_chunks(thinned, words) == 2


def test_chunks_hold_the_longest_template():
    section = DataSection(templates=["short", "word " * 80, "middle"])
    assert max_chunks(plan_items(samples(1), section, [512]), lambda text: len(text.split())) == 2


def test_small_images_are_reported():
    small = [replace(sample, width=200, height=150) for sample in samples(1)]
    (enlarged,) = item_problems(plan_items(small, DataSection(), [512]))
    assert enlarged.kind == "small" and "200 x 150" in enlarged.sentence and "3.0 times" in enlarged.sentence
    (own_size,) = item_problems(plan_items(small, DataSection(upscale=False), [512]))
    assert "192 x 128" in own_size.sentence
    assert list(item_problems(plan_items(samples(4), DataSection(), [512]))) == []
