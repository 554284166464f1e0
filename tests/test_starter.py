"""The starter model that ships with the app: it loads, it is small, and it draws what it is asked for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from sdtrainer.starter import world
from sdtrainer.starter.prompts import ROBOT_PROMPTS, WORLD_PROMPTS

ASSETS = Path(__file__).resolve().parents[1] / "assets"
MODEL = ASSETS / "starter-model"
MEGABYTE = 1_000_000

needs_font = pytest.mark.skipif(not world.FONT_PATH.exists(), reason="needs the Noto Color Emoji font")


@pytest.fixture(scope="module")
def pipeline():
    from sdtrainer.starter.grid import load_pipeline

    return load_pipeline(MODEL)


@pytest.fixture(scope="module")
def judge():
    from sdtrainer.starter.judge import Judge

    return Judge.load(MODEL)


def test_the_folder_is_small_enough_for_a_repository():
    sizes = [file.stat().st_size for file in MODEL.rglob("*") if file.is_file()]
    assert sum(sizes) <= 30 * MEGABYTE
    assert max(sizes) <= 15 * MEGABYTE


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_part_loads_without_missing_or_unexpected_weights(part):
    import diffusers
    import transformers

    kind = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }[part]
    _, report = kind.from_pretrained(MODEL / part, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]


def test_the_text_encoder_has_the_keys_that_all_tools_know():
    from safetensors import safe_open

    with safe_open(MODEL / "text_encoder" / "model.safetensors", framework="pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118


def test_old_and_new_tokenizer_files_give_the_same_tokens(tmp_path):
    from transformers import CLIPTokenizer

    text = "A zib robot, on a Green background! 42 \u00e4"
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((MODEL / "tokenizer" / name).read_bytes())
    shipped, old = (CLIPTokenizer.from_pretrained(folder) for folder in (MODEL / "tokenizer", tmp_path))
    assert shipped(text).input_ids == old(text).input_ids
    assert shipped.model_max_length == 77
    decoded = shipped.decode(shipped(text).input_ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.lower().replace(" ", "")


def test_the_robots_name_is_no_word_the_tokenizer_knows():
    vocabulary = json.loads((MODEL / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert "robot</w>" in vocabulary
    assert "zib</w>" not in vocabulary
    assert len(vocabulary) <= 4000


@needs_font
def test_a_scene_of_one_seed_is_always_the_same_picture():
    first, second = (world.draw_scene(random.Random(5)) for _ in range(2))
    assert first == second
    assert world.render(first).tobytes() == world.render(second).tobytes()


@needs_font
def test_latents_have_unit_variance_and_the_decoder_beats_the_linear_one(pipeline):
    import torch

    from sdtrainer.starter.drawing import world_batch
    from sdtrainer.starter.latents import fit_patch_space
    from sdtrainer.starter.vae_training import psnr, psnr_of_world

    pictures, _ = world_batch(random.Random("held-out psnr"), 12)
    with torch.no_grad():
        latents = pipeline.vae.encode(pictures).latent_dist.mean
    assert float(latents.std()) == pytest.approx(1.0, abs=0.15)
    linear = fit_patch_space(pictures)
    floor = psnr(pictures, linear.decode(linear.encode(pictures)))
    assert psnr_of_world(pipeline.vae, 12) > floor + 2


@needs_font
def test_the_judge_names_clean_renderings(judge):
    from sdtrainer.starter.judge_training import accuracy_of

    assert judge.accuracy > 0.95
    assert accuracy_of(judge, count=100, seed="test") > 0.93


def test_the_judge_sees_the_robot_and_nothing_in_an_empty_picture(judge):
    from sdtrainer.starter.judge import NOTHING

    drawings = [Image.open(file) for file in sorted((ASSETS / "starter-held-out").glob("*.png"))]
    assert judge.names(drawings) == ["zib robot"] * len(drawings)
    assert judge.names([Image.new("RGB", (128, 128), "gray")]) == [NOTHING]
    assert judge.names([]) == []


def test_the_prompts_are_distinct_and_name_known_things():
    assert len({prompt.text for prompt in WORLD_PROMPTS}) == len({p.name for p in WORLD_PROMPTS}) == 48
    assert len({prompt.text for prompt in ROBOT_PROMPTS}) == 8
    assert {prompt.name for prompt in WORLD_PROMPTS} <= set(world.thing_names())
    assert all(prompt.name in prompt.text for prompt in WORLD_PROMPTS + ROBOT_PROMPTS)


def test_the_robot_prompts_and_held_out_drawings_use_backgrounds_never_trained():
    trained = {_background(text) for text in _captions(ASSETS / "starter-images", 12)}
    held_out = {_background(text) for text in _captions(ASSETS / "starter-held-out", 4)}
    asked = {_background(prompt.text) for prompt in ROBOT_PROMPTS}
    assert len(trained) == 6
    assert not trained & held_out
    assert not trained & asked


def test_a_few_prompts_are_drawn_so_that_the_judge_names_them(pipeline, judge):
    from sdtrainer.starter.grid import draw

    some = WORLD_PROMPTS[::12]
    names = judge.names(draw(pipeline, [prompt.text for prompt in some], steps=15))
    assert sum(name == prompt.name for name, prompt in zip(names, some, strict=True)) >= 3


def _captions(folder: Path, count: int) -> list[str]:
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == count
    assert all(Image.open(picture).size == (256, 256) for picture in pictures)
    return [picture.with_suffix(".txt").read_text(encoding="utf-8").strip() for picture in pictures]


def _background(text: str) -> str:
    return text.removesuffix(" background").split()[-1]
