"""Stable Diffusion 3, on a tiny real model: held to diffusers' own, and trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import DRAWING, Killed, Trainer
from diffusers import StableDiffusion3Pipeline

from sdtrainer import families
from sdtrainer.diffusion import NoiseSection
from sdtrainer.events import Finished, Sampled, Saved, Stepped
from sdtrainer.families import BaseSection
from sdtrainer.seams import T5, Facts, Parts
from sdtrainer.section import UserError
from sdtrainer.training import checkpoint

ENCODER, ENCODER_2 = "text_encoder", "text_encoder_2"
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}
CAPTIONS = ["a zib disc", "red"]


def recognised(path: Path, **base: Any) -> Facts:
    return families.recognise(BaseSection(path=str(path), **base))


def load(path: Path, **base: Any) -> Parts:
    facts = recognised(path, **base)
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))


@pytest.fixture(scope="module")
def with_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_sd3(tmp_path_factory.mktemp("models") / "sd3-t5", with_t5=True)


def reference_of(path: Path) -> Any:
    """diffusers' own pipeline, told the true end of text as true models' configs mean it."""
    absent = {} if families.recognise(BaseSection(path=str(path))).encoders[2:] else WITHOUT_T5
    reference = StableDiffusion3Pipeline.from_pretrained(path, **absent)
    for encoder in (reference.text_encoder, reference.text_encoder_2):
        encoder.eos_token_id = encoder.config.eos_token_id = encoder.config.vocab_size - 1
    reference.set_progress_bar_config(disable=True)
    return reference


@pytest.fixture(scope="module")
def parts(sd3: Path) -> Parts:
    return load(sd3)


# -- what it is -------------------------------------------------------------------------------------


def test_a_folder_is_recognised_with_and_without_t5(sd3: Path, with_t5: Path) -> None:
    facts = recognised(sd3)
    assert (facts.family, facts.title) == ("sd3", "Stable Diffusion 3.5 Medium")
    assert (facts.prediction_type, facts.resolution, facts.latent_channels) == ("flow", 64, 16)
    assert facts.encoders == (ENCODER, ENCODER_2) and facts.text_width == 48
    assert recognised(with_t5).encoders == (ENCODER, ENCODER_2, T5)
    assert recognised(with_t5, t5="off").encoders == (ENCODER, ENCODER_2)


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({"dual_attention_layers": [], "qk_norm": None}, "Stable Diffusion 3 Medium"),
        ({"dual_attention_layers": []}, "Stable Diffusion 3.5 Large"),
    ],
)
def test_its_relatives_are_told_apart(tmp_path: Path, values: dict[str, Any], title: str) -> None:
    config = tiny.make_sd3(tmp_path / "model") / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values), encoding="utf-8")
    assert recognised(tmp_path / "model").title == title


# -- what it is told --------------------------------------------------------------------------------


@pytest.mark.parametrize(("has_t5", "clip_skip"), [(False, 0), (False, 1), (True, 2)])
def test_text_is_encoded_as_by_diffusers(sd3: Path, with_t5: Path, has_t5: bool, clip_skip: int) -> None:
    path = with_t5 if has_t5 else sd3
    mine, reference = load(path), reference_of(path)
    family = families.family_of(mine.facts)
    with torch.no_grad():
        said = family.encode_text(mine, family.tokenize(mine, CAPTIONS, 1), clip_skip, torch.zeros(2, 6))
        embeds, _, pooled, _ = reference.encode_prompt(
            CAPTIONS,
            None,
            None,
            device="cpu",
            do_classifier_free_guidance=False,
            clip_skip=max(0, clip_skip - 1) or None,
        )
    assert said.prompt_embeds.shape == (2, 77 + 256, 48) and said.pooled is not None
    assert (said.prompt_embeds[:, 77:].abs().max() > 0) == has_t5
    torch.testing.assert_close(said.prompt_embeds, embeds)
    torch.testing.assert_close(said.pooled, pooled)


def test_a_long_caption_continues_and_the_first_window_is_pooled(parts: Parts) -> None:
    family = families.family_of(parts.facts)
    with torch.no_grad():
        whole, start = (
            family.encode_text(parts, family.tokenize(parts, [text], chunks), 0, torch.zeros(1, 6))
            for text, chunks in (("a " * 100, 2), ("a " * 75, 1))
        )
    assert whole.prompt_embeds.shape == (1, 2 * 77 + 256, 48)
    assert whole.pooled is not None and start.pooled is not None
    torch.testing.assert_close(whole.pooled, start.pooled)


# -- noise ------------------------------------------------------------------------------------------


def test_noise_is_a_straight_path_and_the_target_its_direction(parts: Parts) -> None:
    family, latents = families.family_of(parts.facts), torch.randn(4, 16, 8, 8)
    noised = family.noise(parts, latents, torch.Generator().manual_seed(0), NoiseSection())
    s = (noised.timesteps / 1000).view(-1, 1, 1, 1)
    assert ((s > 0) & (s < 1)).all() and torch.equal(noised.weight, torch.ones(4))
    torch.testing.assert_close(noised.noisy_latents - s * noised.target, latents)
    noise = latents + noised.target
    assert abs(noise.std() - 1) < 0.05 and abs((noise * latents).mean()) < 0.05


@pytest.mark.parametrize(
    ("values", "below"),  # which part of all timesteps lies below 500
    [
        ({"shift": 1}, 0.5),
        ({"density": "uniform"}, 0.25),  # the model's own shift is 3: s = 3 u / (1 + 2 u)
        ({"density": "uniform", "shift": 1}, 0.5),
        ({"density": "uniform", "shift": 1, "min_timestep": 400}, 1 / 6),
        ({"density": "mode", "shift": 1}, 0.5),
        ({"max_timestep": 500}, 1.0),
    ],
)
def test_timesteps_are_drawn_as_the_settings_say(parts: Parts, values: dict[str, Any], below: float) -> None:
    section, family = NoiseSection(**values), families.family_of(parts.facts)
    noised = family.noise(parts, torch.zeros(8000, 16, 1, 1), torch.Generator().manual_seed(0), section)
    t = noised.timesteps
    assert section.min_timestep <= t.min() and t.max() <= section.max_timestep
    assert (t < 500).float().mean().item() == pytest.approx(below, abs=0.02)


def test_the_prediction_depends_on_all_it_is_told(parts: Parts) -> None:
    family = families.family_of(parts.facts)
    with torch.no_grad():
        said = family.encode_text(parts, family.tokenize(parts, ["a"], 1), 0, torch.zeros(1, 6))
        noised = family.noise(
            parts, torch.randn(1, 16, 8, 8), torch.Generator().manual_seed(0), NoiseSection()
        )
        assert said.pooled is not None
        plain = family.predict(parts, noised, said)
        others = (
            family.predict(parts, dataclasses.replace(noised, timesteps=noised.timesteps / 2), said),
            family.predict(parts, noised, dataclasses.replace(said, pooled=-said.pooled)),
            family.predict(parts, noised, dataclasses.replace(said, prompt_embeds=-said.prompt_embeds)),
        )
    assert plain.shape == (1, 16, 8, 8)
    assert all(not torch.equal(plain, other) for other in others)


# -- drawing ----------------------------------------------------------------------------------------


def test_a_picture_is_drawn_as_by_diffusers(sd3: Path, parts: Parts) -> None:
    from sdtrainer.sample import Request, Sampler

    request = Request("a zib disc", "", 64, 64, 2, 3.0, 7)
    mine = Sampler(families.family_of(parts.facts), parts, "cpu", None).draw(request)
    (theirs,) = reference_of(sd3)(
        "a zib disc", negative_prompt="", width=64, height=64, num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    assert mine.size == (64, 64)
    assert max(abs(a - b) for a, b in zip(mine.tobytes(), theirs.tobytes(), strict=True)) <= 1


# -- training ---------------------------------------------------------------------------------------


@pytest.fixture
def runs(trainer: Trainer, sd3: Path) -> Trainer:
    values = {"base": {"path": str(sd3)}, "train": {"steps": "2", "batch_size": 2, "resolution": 64}}
    return Trainer(trainer.workspace, trainer.values | values)


def test_a_lora_is_trained_and_drawn(runs: Trainer) -> None:
    happened = runs.run(runs.new(sample__every="2", **DRAWING))
    assert isinstance(happened[-1], Finished)
    assert [event.step for event in happened if isinstance(event, Sampled)] == [0, 2]


def test_stopping_and_resuming_is_as_if_it_had_never_stopped(runs: Trainer) -> None:
    few = {"sample__prompts": [], "data__validation_folder": "", "checkpoint__every": "1"}
    whole, halved = runs.new(run__name="whole", **few), runs.new(run__name="halved", **few)

    def kill(event: Any, control: Any) -> None:
        if isinstance(event, Saved):
            raise Killed

    runs.run(whole)
    runs.run(halved, on_event=kill)
    assert isinstance(runs.run(halved)[-1], Finished)
    first, second = (checkpoint.saved(folder.checkpoints)[-1] for folder in (whole, halved))
    assert checkpoint.step_of(first) == checkpoint.step_of(second) == 2
    assert (first / "weights.safetensors").read_bytes() == (second / "weights.safetensors").read_bytes()


def test_t5_is_heard_and_never_taught(runs: Trainer, with_t5: Path) -> None:
    """Every text encoder learns that can; nothing is cached, so T5 reads in each step."""
    change = {"base__path": str(with_t5), "method__train_text_encoder": True, "sample__prompts": []}
    happened = runs.run(runs.new(**change, train__checkpointing="on"))
    assert isinstance(happened[-1], Finished)
    rates = next(event.lr for event in happened if isinstance(event, Stepped))
    assert set(rates) == {"denoiser", "text encoder", "text encoder 2"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base__prediction_type": "epsilon"}, "Prediction type: .* flow matching"),
        ({"method__targets": "with convolutions"}, "Layers to train: .* is a transformer"),
        ({"method__blocks": ["up"]}, "Blocks to train: .* no way down and up"),
        (
            {"method": {"kind": "full", "layers": "cross-attention"}},
            "Weights to train: .* no cross-attention",
        ),
        ({"method": {"kind": "hypernetwork"}}, "Method: a hypernetwork needs"),
        ({"sample__width": 72}, "Width: pictures would be 72 px, .* multiples of 16"),
        ({"train__resolution": 72, "data__bucket_step": 8}, "Bucket step: pictures would be 72 px"),
        ({"noise__zero_terminal_snr": True}, "Zero terminal SNR has no meaning"),
    ],
)
def test_what_makes_no_sense_here_is_refused(runs: Trainer, change: dict[str, Any], words: str) -> None:
    from sdtrainer import planner
    from sdtrainer.hardware import detect

    with pytest.raises(UserError, match=words):
        planner.draft(runs.config(**change), runs.workspace, detect())


def test_the_page_draws_every_block_once(runs: Trainer, with_t5: Path) -> None:
    from sdtrainer import planner
    from sdtrainer.hardware import CPU_ONLY
    from sdtrainer.memory import estimate
    from sdtrainer.ui import figure

    plan = planner.draft(runs.config(base__path=str(with_t5)), runs.workspace, CPU_ONLY).plan
    assert {"base.t5": "off"} in [advice.fix for advice in plan.advice], "it can be left out"
    blocks = estimate(plan).blocks
    shown = [block for block in blocks if block.kind != "others"]
    assert {block.part for block in shown} == {"denoiser", ENCODER, ENCODER_2, T5}
    drawn = figure.model(blocks, 1)
    assert drawn.count("<title>") == len(shown) > 10
    assert drawn.count('class="lit-') > sum(block.trained > 0 for block in shown) > 0
