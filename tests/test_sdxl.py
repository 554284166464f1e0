"""Stable Diffusion XL, on a tiny real model: held to diffusers' own, and trained with every method."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import Trainer
from diffusers import StableDiffusionXLPipeline

from sdtrainer import families
from sdtrainer.diffusion import NoiseSection
from sdtrainer.events import Finished, Sampled
from sdtrainer.families import BaseSection
from sdtrainer.seams import Facts, Parts
from sdtrainer.section import UserError

ENCODER, ENCODER_2 = "text_encoder", "text_encoder_2"
CAPTIONS = ["a zib disc", "red"]


def recognised(path: Path) -> Facts:
    return families.recognise(BaseSection(path=str(path)))


def load(path: Path) -> Parts:
    facts = recognised(path)
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))


@pytest.fixture(scope="module")
def parts(sdxl: Path) -> Parts:
    return load(sdxl)


@pytest.fixture(scope="module")
def reference(sdxl: Path) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(sdxl)


def changed(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


# -- what it is -------------------------------------------------------------------------------------


def test_a_folder_is_recognised_with_both_encoders(sdxl: Path) -> None:
    facts = recognised(sdxl)
    assert (facts.family, facts.title, facts.layout) == ("sdxl", "Stable Diffusion XL", "folder")
    assert facts.encoders == (ENCODER, ENCODER_2) and facts.text_width == 80
    assert (facts.prediction_type, facts.resolution) == ("epsilon", 64)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("model_index.json", {"text_encoder": [None, None]}, "the refiner"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, file: str, values: Any, words: str) -> None:
    folder = tiny.make_sdxl(tmp_path / "model")
    changed(folder, file, **values)
    with pytest.raises(UserError, match=words):
        recognised(folder)


# -- what it is told --------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_text_is_encoded_as_by_diffusers(parts: Parts, reference: Any, clip_skip: int) -> None:
    family = families.family_of(parts.facts)
    with torch.no_grad():
        said = family.encode_text(parts, family.tokenize(parts, CAPTIONS, 1), clip_skip, torch.zeros(2, 6))
        embeds, _, pooled, _ = reference.encode_prompt(
            CAPTIONS, device="cpu", do_classifier_free_guidance=False, clip_skip=clip_skip or None
        )
    torch.testing.assert_close(said.prompt_embeds, embeds)
    assert said.pooled is not None and said.pooled.std() > 0
    torch.testing.assert_close(said.pooled, pooled)


def test_a_long_caption_continues_and_the_first_window_is_pooled(parts: Parts) -> None:
    family, long = families.family_of(parts.facts), "a " * 100
    with torch.no_grad():
        whole, start = (
            family.encode_text(parts, family.tokenize(parts, [text], chunks), 0, torch.zeros(1, 6))
            for text, chunks in ((long, 2), ("a " * 75, 1))
        )
    assert whole.prompt_embeds.shape == (1, 2 * 77, 80)
    assert family.count_tokens(parts, long) == 100
    ids = family.tokenize(parts, [long], 2)
    assert ids[ENCODER][0, -1] == parts.tokenizers[ENCODER].eos_token_id and ids[ENCODER_2][0, -1] == 0
    assert whole.pooled is not None and start.pooled is not None
    torch.testing.assert_close(whole.pooled, start.pooled)


def test_the_sizes_of_a_picture_are_told(parts: Parts) -> None:
    family = families.family_of(parts.facts)
    noisy, generator = torch.randn(1, 4, 8, 8), torch.Generator().manual_seed(0)
    sizes = torch.tensor([[1000, 800, 3, 5, 64, 64]])
    with torch.no_grad():
        said = family.encode_text(parts, family.tokenize(parts, ["a"], 1), 0, sizes)
        noised = family.noise(parts, noisy, generator, NoiseSection())
        other = dataclasses.replace(said, time_ids=said.time_ids.flip(1))
        assert torch.equal(said.time_ids, sizes.float())
        a, b = (family.predict(parts, noised, c) for c in (said, other))
    assert a.shape == (1, 4, 8, 8) and not torch.equal(a, b)


# -- drawing ----------------------------------------------------------------------------------------


def test_a_picture_is_drawn_as_by_diffusers(parts: Parts, reference: Any) -> None:
    from diffusers import DPMSolverMultistepScheduler

    from sdtrainer.sample import Request, Sampler

    request = Request("a zib disc", "", 64, 64, 2, 3.0, 7)
    mine = Sampler(families.family_of(parts.facts), parts, "cpu", None).draw(request)
    reference.scheduler = DPMSolverMultistepScheduler.from_config(reference.scheduler.config)
    reference.set_progress_bar_config(disable=True)
    (theirs,) = reference(
        "a zib disc", negative_prompt="", width=64, height=64, num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    assert (
        mine.size == (64, 64)
        and max(abs(a - b) for a, b in zip(mine.tobytes(), theirs.tobytes(), strict=True)) <= 1
    )


# -- training ---------------------------------------------------------------------------------------


@pytest.fixture
def runs(trainer: Trainer, sdxl: Path) -> Trainer:
    values = {"base": {"path": str(sdxl)}, "train": {"steps": "2", "batch_size": 2, "resolution": 64}}
    return Trainer(trainer.workspace, trainer.values | values)


def test_a_lora_is_trained_and_drawn(runs: Trainer) -> None:
    folder = runs.new(sample__every="2")
    happened = runs.run(folder)
    assert isinstance(happened[-1], Finished)
    assert [event.step for event in happened if isinstance(event, Sampled)] == [0, 2]
