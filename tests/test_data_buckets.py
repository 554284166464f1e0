"""Bucket tables against the figures of kohya's trainer, and crops against the image they are cut from."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtrainer.data.buckets import CENTER, assign, automatic_step, bucket_sizes, fit, table_for
from sdtrainer.data.section import DataSection

quick = settings(deadline=None, max_examples=60)
SIDES = st.integers(1, 8000)
RESOLUTIONS = st.sampled_from([64, 128, 256, 512, 768, 1024, 1536])


@pytest.mark.parametrize(
    ("resolution", "shortest", "longest", "count"),
    [(512, 256, 1024, 17), (1024, 256, 1024, 25), (1024, 256, 2048, 41), (1024, 512, 2048, 33)],
)
def test_tables_have_as_many_buckets_as_kohyas(resolution, shortest, longest, count):
    """Figures: counted from make_bucket_resolutions of sd-scripts."""
    assert len(bucket_sizes(resolution, 64, shortest, longest)) == count


def test_automatic_tables_are_the_usual_ones():
    small, large = table_for(512, DataSection()), table_for(1024, DataSection())
    assert (small.step, small.min_side, small.max_side) == (64, 256, 1024)
    assert small.sizes[0] == (256, 832)
    assert (large.min_side, large.max_side) == (512, 2048)
    assert {(832, 1216), (896, 1152), (768, 1344), (1024, 1024), (1216, 832)} <= set(large.sizes)


@pytest.mark.parametrize(
    ("resolution", "step"), [(1024, 64), (512, 64), (384, 32), (256, 32), (128, 16), (64, 8)]
)
def test_automatic_step_shrinks_with_the_resolution(resolution, step):
    assert automatic_step(resolution) == step


@quick
@given(resolution=RESOLUTIONS, step=st.sampled_from([0, 8, 32, 64, 128]), low=st.integers(0, 256), high=SIDES)
def test_tables_keep_to_their_limits(resolution, step, low, high):
    section = DataSection(bucket_step=step, bucket_min=low * 8, bucket_max=max(low, min(high // 8, 256)) * 8)
    table = table_for(resolution, section)
    assert table.sizes == tuple(sorted(set(table.sizes)))
    for size in table.sizes:
        assert all(side % table.step == 0 and table.step <= side <= table.max_side for side in size)
        assert size[::-1] in table.sizes


@quick
@given(resolution=RESOLUTIONS)
def test_no_bucket_costs_more_than_the_square(resolution):
    assert all(w * h <= resolution * resolution for w, h in table_for(resolution, DataSection()).sizes)


@quick
@given(width=SIDES, height=SIDES, resolution=RESOLUTIONS)
def test_portrait_and_landscape_are_treated_alike(width, height, resolution):
    table = table_for(resolution, DataSection())
    assert assign(width, height, table, True) == assign(height, width, table, True)[::-1]


@quick
@given(
    width=SIDES,
    height=SIDES,
    resolution=RESOLUTIONS,
    upscale=st.booleans(),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_every_crop_lies_inside_its_image_and_fills_its_bucket(width, height, resolution, upscale, x, y):
    bucket = assign(width, height, table_for(resolution, DataSection()), upscale)
    for cut in (fit(width, height, bucket, (x, y)), fit(width, height, bucket, (x, y)).mirrored()):
        assert cut.size == bucket
        assert 0 <= cut.left <= cut.scale_to[0] - bucket[0]
        assert 0 <= cut.top <= cut.scale_to[1] - bucket[1]
        assert bucket[0] == cut.scale_to[0] or bucket[1] == cut.scale_to[1]


@quick
@given(width=SIDES, height=SIDES, resolution=RESOLUTIONS)
def test_without_enlarging_no_image_is_enlarged_unless_thinner_than_the_step(width, height, resolution):
    table = table_for(resolution, DataSection())
    bucket = assign(width, height, table, False)
    if min(bucket) > table.step:
        assert fit(width, height, bucket).enlargement <= 1
        assert bucket[0] * bucket[1] <= resolution * resolution
    assert max(bucket) <= table.max_side


def test_shape_between_two_buckets_goes_to_the_same_turned():
    """1.138 lies above the geometric mean of 512:512 and 576:448 and below the arithmetic one."""
    table = table_for(512, DataSection())
    assert assign(1138, 1000, table, True) == assign(1000, 1138, table, True)[::-1] == (576, 448)


def test_small_image_without_enlarging_trains_at_its_own_size():
    assert assign(300, 500, table_for(512, DataSection()), False) == (256, 448)


@pytest.mark.parametrize("size", [(512, 512), (768, 1024), (4000, 3000), (640, 427)])
def test_common_photos_lose_little(size):
    cut = fit(*size, assign(*size, table_for(512, DataSection()), True))
    assert cut.part_lost < 0.12  # 3:2 lies between the buckets 576 x 448 and 640 x 384


def test_ends_of_the_crop_reach_the_edges():
    assert fit(1000, 500, (512, 512), (0, 0)).left == 0
    last = fit(1000, 500, (512, 512), (1, 1))
    assert last.left == last.scale_to[0] - 512
    assert fit(1000, 500, (512, 512), CENTER).left == (1024 - 512) // 2


def test_limits_that_cross_are_refused_at_the_field():
    with pytest.raises(ValueError, match="longest side"):
        DataSection(bucket_min=1024, bucket_max=512)
