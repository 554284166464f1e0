"""Batches from real photos: cached and uncached agree, broken images are left out, threads change nothing."""

import json
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data as photos

from sdtrainer.data.cache import Cache
from sdtrainer.data.items import Draw, captions_of, epoch_batches, fixed_batches, order, plan_items
from sdtrainer.data.loading import Loader, ahead, check_images, fill_latents, fill_text, without
from sdtrainer.data.scan import scan
from sdtrainer.data.section import DataSection
from sdtrainer.data.stores import LatentStore, TextStore
from sdtrainer.seams import Conditioning, Latents
from sdtrainer.section import UserError


def encode(pixels):
    """Stand in for a VAE: 8 pixels to a side of a latent, means and deviations that depend on them."""
    mean = torch.nn.functional.avg_pool2d(pixels, 8)
    return Latents(mean, mean.abs() + 0.1)


def tokenize(captions):
    return {"clip": torch.tensor([list(caption.encode()[:10].ljust(10, b"\0")) for caption in captions])}


def encode_text(captions):
    tokens = tokenize(captions)["clip"].float()
    embeds = tokens[:, :, None].repeat(1, 1, 4)
    return Conditioning(embeds, tokens[:, :3], torch.zeros(len(captions), 6, dtype=torch.float16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in ("astronaut", "cat", "coffee", "rocket"):
        image = Image.fromarray(getattr(photos, name)())
        image.resize((image.width // 3, image.height // 3)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{name}, tag")
    return folder


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def items_of(folder, resolutions=(64, 96), **settings):
    section = DataSection(**settings)
    return plan_items(scan(folder, section).samples, section, list(resolutions))


def latents_of(cache, model="vae"):
    return LatentStore(cache, model, "fp32")


def texts_of(cache, clip_skip=0):
    return TextStore(cache, "clip", clip_skip, 1, "fp32")


def run(filling):
    return list(filling)[-1]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    return all(equal(vars(a)[name], vars(b)[name]) for name in vars(a)) if a is not None else b is None


def test_cached_batches_equal_uncached_ones(folder, cache):
    items = items_of(folder, flip=True, caption_dropout=0.3, trigger="ohwx")
    run(fill_latents(items, latents_of(cache), encode, batch_size=2))
    run(fill_text(captions_of(items), texts_of(cache), encode_text))
    draws = epoch_batches(items, 2, 0, 0)
    assert {draw.flip for batch in draws for draw in batch} == {True, False}
    plain = Loader(items, tokenize=tokenize).batches(draws)
    cached = Loader(items, latents_of(cache), texts_of(cache), keep_bytes=10**8).batches(draws)
    pairs = list(zip(plain, cached, strict=True))
    assert len(pairs) == len(draws) >= 4
    for fresh, kept in pairs:
        assert (
            kept.pixels is None
            and kept.tokens is None
            and fresh.latents is None
            and fresh.conditioning is None
        )
        assert torch.equal(encode(fresh.pixels).mean, kept.latents.mean)
        assert torch.equal(encode(fresh.pixels).std, kept.latents.std)
        embeds = fresh.tokens["clip"].float()
        assert torch.equal(embeds[:, :, None].repeat(1, 1, 4), kept.conditioning.prompt_embeds)
        assert torch.equal(embeds[:, :3], kept.conditioning.pooled)
        assert torch.equal(kept.sizes, fresh.sizes)
        assert torch.equal(kept.conditioning.time_ids, kept.sizes.half())


def test_threads_change_neither_order_nor_values(folder, cache):
    items = items_of(folder, flip=True, crop="random", shuffle_tags=True)
    batches = [
        list(Loader(items, tokenize=tokenize, threads=n).batches(epoch_batches(items, 2, 0, 0)))
        for n in (0, 3)
    ]
    assert len(batches[0]) == len(batches[1]) >= 4
    assert all(equal(a.pixels, b.pixels) and equal(a.sizes, b.sizes) for a, b in zip(*batches, strict=True))
    assert all(equal(a.tokens["clip"], b.tokens["clip"]) for a, b in zip(*batches, strict=True))


@pytest.mark.parametrize("keep_bytes", [0, 9000, 10**8])
def test_memory_budget_changes_no_value(folder, cache, keep_bytes):
    items = items_of(folder, (64,))
    run(fill_latents(items, latents_of(cache), encode))
    loader = Loader(items, latents_of(cache), tokenize=tokenize, keep_bytes=keep_bytes)
    for _ in range(2):
        for draws in fixed_batches(items, 2):
            means = loader.batch(draws).latents.mean
            assert torch.equal(means, encode(Loader(items, tokenize=tokenize).batch(draws).pixels).mean)


def test_endless_order_can_be_left(folder):
    items = items_of(folder)
    before = threading.active_count()
    batches = Loader(items, tokenize=tokenize).batches(order(items, 2, seed=0))
    assert len(list(islice(batches, 11))) == 11
    batches.close()
    assert threading.active_count() == before


def test_sizes_are_those_sdxl_is_conditioned_on(folder):
    items = items_of(folder, (64,), bucket_min=64, bucket_max=64)
    index = next(i for i, item in enumerate(items) if item.fit.scale_to[0] > item.bucket[0])
    draws = [Draw(index, position=(0, 0)), Draw(index, True, (0, 0)), Draw(index, False, (1, 1))]
    batch = Loader(items, tokenize=tokenize).batch(draws)
    bucket, scaled, (width, height) = items[index].bucket, items[index].fit.scale_to, items[index].fit.source
    assert batch.sizes[:, :2].tolist() == [[height, width]] * 3
    assert batch.sizes[:, 4:].tolist() == [[bucket[1], bucket[0]]] * 3
    assert batch.sizes[0, 2:4].tolist() == [0, 0]
    assert batch.sizes[1, 2:4].tolist() == [0, scaled[0] - bucket[0]], (
        "mirrored, the left edge is the right one"
    )
    assert batch.sizes[2, 2:4].tolist() == [scaled[1] - bucket[1], scaled[0] - bucket[0]]
    assert batch.pixels.shape == (3, 3, bucket[1], bucket[0])


def test_weights_reach_the_batch(folder):
    section = DataSection()
    (item,) = plan_items(scan(folder, section).samples[:1], section, [64])
    items = [item, replace(item, weight=0.25)]
    assert Loader(items, tokenize=tokenize).batch([Draw(0), Draw(1)]).weight.tolist() == [1, 0.25]


def test_cache_is_filled_once_and_only_anew_where_something_changed(folder, cache):
    items = items_of(folder, (64,))
    steps = list(fill_latents(items, latents_of(cache), encode))
    assert [(step.done, step.total) for step in steps] == [(0, 0)] * 4 + [(done, 4) for done in range(5)]
    assert run(fill_latents(items, latents_of(Cache(cache.folder)), encode)).total == 0
    assert run(fill_latents(items_of(folder, (64,), trigger="x"), latents_of(cache), encode)).total == 0
    assert run(fill_latents(items_of(folder, (64,), flip=True), latents_of(cache), encode)).total == 4
    assert run(fill_latents(items_of(folder, (64, 128)), latents_of(cache), encode)).total == 4
    assert run(fill_latents(items, latents_of(cache, "other vae"), encode)).total == 4


def test_changed_image_is_encoded_anew_and_alone(tmp_path, cache):
    for shade in ("red", "blue"):
        Image.new("RGB", (64, 64), shade).save(tmp_path / f"{shade}.png")
    run(fill_latents(items_of(tmp_path, (64,)), latents_of(cache), encode))
    Image.new("RGB", (64, 64), "lime").save(tmp_path / "red.png")
    items = items_of(tmp_path, (64,))
    assert run(fill_latents(items, latents_of(cache), encode)).total == 1
    green = Loader(items, latents_of(cache), tokenize=tokenize).batch([Draw(1)]).latents.mean
    assert green[0, :, 0, 0].tolist() == [-1, 1, -1]


def test_changed_caption_is_encoded_anew_and_alone(folder, cache):
    captions = captions_of(items_of(folder))
    assert run(fill_text(captions, texts_of(cache), encode_text, batch_size=2)).total == 5
    assert run(fill_text(captions, texts_of(cache), encode_text)).total == 0
    assert run(fill_text([*captions, "another"], texts_of(cache), encode_text)).total == 1
    assert run(fill_text(captions, texts_of(cache, clip_skip=2), encode_text)).total == 5


def test_torn_cache_file_is_made_again(folder, cache):
    items = items_of(folder, (64,))
    run(fill_latents(items, latents_of(cache), encode))
    torn = sorted(cache.folder.rglob("*.safetensors"))[0]
    torn.write_bytes(torn.read_bytes()[:-1])
    assert run(fill_latents(items, latents_of(cache), encode)).total == 1


def test_broken_images_are_reported_and_left_out(folder, tmp_path, cache):
    content = (folder / "cat.png").read_bytes()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "good.png").write_bytes(content)
    for name in ("cut.png", "cut copy.png"):  # the end is there, what is before it is not
        (tmp_path / "set" / name).write_bytes(content[: len(content) // 2] + content[-12:])
    Image.new("RGB", (64, 64)).save(tmp_path / "set" / "gone.png")
    items = items_of(tmp_path / "set", (64,), flip=True)
    (tmp_path / "set" / "gone.png").unlink()
    for last in (run(fill_latents(items, latents_of(cache), encode)), run(check_images(items, cache))):
        assert {(problem.file, problem.kind, problem.level) for problem in last.problems} == {
            ("cut.png", "truncated", "skipped"),
            ("cut copy.png", "truncated", "skipped"),
            ("gone.png", "missing", "skipped"),
        }
        assert [item.sample.path for item in without(items, last)] == ["good.png"]
    sound = without(items, last)
    assert (
        len(list(Loader(sound, latents_of(cache), tokenize=tokenize).batches(fixed_batches(sound, 2)))) == 1
    )


def test_images_are_checked_once(folder, cache, monkeypatch):
    items = items_of(folder)
    assert run(check_images(items, cache)).problems == ()
    monkeypatch.setattr("sdtrainer.data.loading.verify", lambda sample: pytest.fail("decoded again"))
    assert run(check_images(items, Cache(cache.folder))).done == 4


def test_run_with_cached_latents_needs_no_images(tmp_path, cache):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    items = items_of(tmp_path, (64,))
    run(fill_latents(items, latents_of(cache), encode))
    loader = Loader(items, latents_of(cache), tokenize=tokenize)
    (tmp_path / "a.png").unlink()
    assert loader.batch([Draw(0)]).latents.mean.shape == (1, 3, 8, 8)


def test_lost_cache_says_what_to_do(folder, cache):
    items = items_of(folder)
    with pytest.raises(UserError, match="start again"):
        Loader(items, latents_of(cache), tokenize=tokenize).batch([Draw(0)])


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"crop": "random"}, "data.cache_latents"),
        ({"shuffle_tags": True}, "data.cache_text"),
        ({"tag_dropout": 0.1}, "data.cache_text"),
    ],
)
def test_caches_refuse_settings_that_they_would_silence(folder, cache, settings, path):
    with pytest.raises(UserError) as caught:
        Loader(items_of(folder, **settings), latents_of(cache), texts_of(cache))
    assert caught.value.path == path


def test_caching_touches_no_original(folder, cache):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    items = items_of(folder, flip=True)
    run(fill_latents(items, latents_of(cache), encode))
    list(Loader(items, latents_of(cache), tokenize=tokenize).batches(fixed_batches(items, 2)))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_work_ahead_is_bounded_and_raises_in_its_place():
    drawn = []

    def arguments():
        for number in range(100):
            drawn.append(number)
            yield number

    def work(number):
        if number == 5:
            raise ValueError("five")
        return number * 2

    results = ahead(work, arguments(), threads=2)
    assert [next(results) for _ in range(5)] == [(n, n * 2) for n in range(5)]
    assert len(drawn) < 12
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_settings_and_scanning_do_not_load_torch():
    import subprocess
    import sys

    modules = ["section", "census", "scan", "overlay", "captions", "buckets", "items", "images", "cache"]
    imports = "; ".join(f"import sdtrainer.data.{name}" for name in modules)
    code = f"import json, sys; {imports}; print(json.dumps('torch' in sys.modules))"
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert json.loads(result.stdout) is False
