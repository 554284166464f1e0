"""Cached tensors: found again when nothing changed, never when something did, and never half."""

import os
from dataclasses import replace

import pytest
import torch

from sdtrainer.data.buckets import fit
from sdtrainer.data.cache import Cache
from sdtrainer.data.stores import latent_key, text_key

TENSORS = {"mean": torch.arange(12.0).reshape(3, 4), "std": torch.ones(2, dtype=torch.bfloat16)}
FIT = fit(640, 480, (512, 384))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_what_is_put_is_found_by_a_later_run(tmp_path):
    key = Cache(tmp_path).key("latents", 1, "x")
    assert Cache(tmp_path).get(key) is None and not Cache(tmp_path).has(key)
    Cache(tmp_path).put(key, TENSORS)
    assert Cache(tmp_path).has(key)
    assert same(Cache(tmp_path).get(key), TENSORS)


def test_slices_are_stored_alone(tmp_path):
    cache, big = Cache(tmp_path), torch.zeros(1000, 4, 4)
    cache.put("k" * 64, {"mean": big[3].T})
    assert next(tmp_path.rglob("*.safetensors")).stat().st_size < 500


@pytest.mark.parametrize("damage", ["torn", "empty", "zeros", "header"])
def test_damaged_file_is_a_miss_and_goes(tmp_path, damage):
    cache = Cache(tmp_path)
    for check in (cache.get, cache.has):
        cache.put("k" * 64, TENSORS)
        path = next(tmp_path.rglob("*.safetensors"))
        content = path.read_bytes()
        path.write_bytes(
            {
                "torn": content[:-5],
                "empty": b"",
                "zeros": bytes(len(content)),
                "header": b"\xff" * 8 + content[8:],
            }[damage]
        )
        assert not check("k" * 64)
        assert not path.exists()


def test_keys_do_not_depend_on_the_process(tmp_path):
    assert Cache(tmp_path).key("a", 1, {"y": 2, "x": [True, None]}) == (
        Cache(tmp_path / "other").key("a", 1, {"x": [True, None], "y": 2})
    )


def test_every_fact_is_in_the_key_of_latents(tmp_path):
    cache = Cache(tmp_path)
    facts = {"content": "c", "fit": FIT, "flip": False, "background": "white", "model": "m", "dtype": "fp32"}
    others = {
        "content": ["d"],
        "fit": [
            replace(FIT, left=1),
            replace(FIT, top=1),
            fit(640, 480, (448, 448)),
            fit(641, 480, (512, 384)),
        ],
        "flip": [True],
        "background": ["black"],
        "model": ["n"],
        "dtype": ["fp16"],
    }
    assert others.keys() == facts.keys()
    variants = [facts | {name: value} for name, values in others.items() for value in values]
    keys = [latent_key(cache, **variant) for variant in (facts, *variants)]
    assert len(set(keys)) == len(keys) == 10
    assert latent_key(cache, **facts) == keys[0]


def test_every_fact_is_in_the_key_of_text(tmp_path):
    cache = Cache(tmp_path)
    variants = [
        ("a", "m", 1, 1, "fp32"),
        ("b", "m", 1, 1, "fp32"),
        ("a", "n", 1, 1, "fp32"),
        ("a", "m", 2, 1, "fp32"),
    ]
    variants += [("a", "m", 1, 2, "fp32"), ("a", "m", 1, 1, "fp16")]
    assert len({text_key(cache, *variant) for variant in variants}) == 6


def test_content_is_hashed_once_until_the_file_changes(tmp_path):
    cache, image, asked = Cache(tmp_path / "cache"), tmp_path / "a.png", []

    def find_out(path):
        asked.append(path)
        return path.read_text()

    image.write_text("one")
    assert cache.fact(image, "text", find_out) == cache.fact(image, "text", find_out) == "one"
    assert Cache(tmp_path / "cache").fact(image, "text", find_out) == "one"
    assert len(asked) == 1
    image.write_text("two")
    os.utime(image, ns=(1, 1))
    assert Cache(tmp_path / "cache").fact(image, "text", find_out) == "two"
    assert cache.fact(image, "text", find_out) == "two"


def test_equal_images_have_equal_content_wherever_they_lie(tmp_path):
    cache = Cache(tmp_path / "cache")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same")
    assert cache.content(tmp_path / "a") == cache.content(tmp_path / "b")


def test_torn_memory_of_facts_is_only_forgotten(tmp_path):
    cache = Cache(tmp_path / "cache")
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        cache.content(tmp_path / name)
    facts = tmp_path / "cache" / "facts.jsonl"
    facts.write_bytes(facts.read_bytes()[:-20])
    assert Cache(tmp_path / "cache").content(tmp_path / "b") == cache.content(tmp_path / "b")


def test_memory_of_facts_does_not_grow_without_end(tmp_path):
    image = tmp_path / "a.png"
    for turn in range(300):
        image.write_text("x" * turn)
        Cache(tmp_path / "cache").content(image)
    assert len((tmp_path / "cache" / "facts.jsonl").read_text().splitlines()) <= 104
