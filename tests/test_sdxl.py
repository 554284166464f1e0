"""Stable Diffusion XL, on a tiny real model: held to diffusers' own, and trained with every method."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import sdxl as published_sdxl
import tiny
import torch
from conftest import DRAWING, Trainer
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionXLPipeline

from sdtrainer import families, methods, planner, result
from sdtrainer.diffusion import NoiseSection
from sdtrainer.events import Finished, Sampled, Stepped, Validated
from sdtrainer.families import BaseSection
from sdtrainer.formats.safetensors_file import read_header
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.sample import RESCALE, Request, Sampler
from sdtrainer.seams import Facts, Parts
from sdtrainer.section import UserError
from sdtrainer.training.run import accelerator_of

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


@pytest.mark.parametrize(("clip_skip", "theirs"), [(0, None), (1, None), (2, 1)])
def test_text_is_encoded_as_by_diffusers(
    parts: Parts, reference: Any, clip_skip: int, theirs: int | None
) -> None:
    """diffusers counts from the layer that SDXL uses, A1111 and we from the last."""
    family = families.family_of(parts.facts)
    with torch.no_grad():
        said = family.encode_text(parts, family.tokenize(parts, CAPTIONS, 1), clip_skip, torch.zeros(2, 6))
        embeds, _, pooled, _ = reference.encode_prompt(
            CAPTIONS, device="cpu", do_classifier_free_guidance=False, clip_skip=theirs
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


@pytest.mark.parametrize("kind", ["epsilon", "v, zero terminal SNR"])
def test_a_picture_is_drawn_as_by_diffusers(sdxl: Path, tmp_path: Path, kind: str) -> None:
    path, scheduler = sdxl, DPMSolverMultistepScheduler
    if kind != "epsilon":
        scheduler, path = DDIMScheduler, tiny.make_sdxl(
            tmp_path / "v", prediction_type="v_prediction", rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        )  # fmt: skip
    parts, reference = load(path), StableDiffusionXLPipeline.from_pretrained(path)
    assert parts.schedule.has_zero_terminal == (kind != "epsilon")
    request = Request("a zib disc", "", 64, 64, 2, 3.0, 7)
    mine = Sampler(families.family_of(parts.facts), parts, "cpu", None).draw(request)
    reference.scheduler = scheduler.from_config(reference.scheduler.config)
    reference.set_progress_bar_config(disable=True)
    (theirs,) = reference(
        "a zib disc", negative_prompt="", width=64, height=64, num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7), guidance_rescale=0.0 if kind == "epsilon" else RESCALE,
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


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 2, "train_text_encoder": True},
    "full": {"kind": "full"},
    "textual_inversion": {"kind": "textual_inversion", "tokens": ["<zib>"]},
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_run_goes_from_pictures_to_a_file_that_draws(runs: Trainer, sdxl: Path, kind: str) -> None:
    folder = runs.new(method=METHODS[kind], sample__every="2", sample__at_start=False, **DRAWING)
    happened = runs.run(folder)
    assert isinstance(happened[-1], Finished)
    assert [event.step for event in happened if isinstance(event, Sampled)] == [2]
    assert [event for event in happened if isinstance(event, Validated)]
    file = result.exported_file(folder)
    assert methods.recognise(file).kind == kind
    header = read_header(file).metadata
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["modelspec.architecture"].partition("/")[0] == "stable-diffusion-xl-v1-base"
    plain, drawn = (
        result.sampler(BaseSection(path=str(sdxl)), adapter).draw(
            Request("a <zib> disc", "", 64, 64, 1, 3.0, 7)
        )
        for adapter in (None, file)
    )
    assert plain.tobytes() != drawn.tobytes()


def test_cached_text_is_what_would_be_encoded_in_each_step(runs: Trainer) -> None:
    """The loss of a run is the same with text from the cache, pooled and sizes included."""
    losses = [
        [event.losses for event in runs.run(runs.new(**options)) if isinstance(event, Stepped)]
        for options in (
            {"data__cache_text": cached, "sample__prompts": [], "method__dropout": 0.0}
            for cached in ("on", "off")
        )
    ]
    assert losses[0] and losses[0] == losses[1]


@pytest.mark.parametrize("learns", [True, False])
def test_several_processes_wait_for_no_layer_that_a_text_does_not_pass(runs: Trainer, learns: bool) -> None:
    """The last layer of the first encoder is never used, and so has no gradient to share."""
    config = runs.config(method={"kind": "lora", "train_text_encoder": learns})
    plan = planner.draft(config, runs.workspace, CPU_ONLY).plan
    handler = accelerator_of(plan, runs.new()).ddp_handler
    assert handler is not None and handler.find_unused_parameters == learns


def test_a_size_far_below_the_models_own_is_advised_against(
    runs: Trainer, published_models: dict[str, str]
) -> None:
    for side, is_warned in ((512, True), (768, False)):
        config = runs.config(base__path=published_models[published_sdxl.HUB_ID], train__resolution=side)
        advice = planner.draft(config, runs.workspace, CPU_ONLY).plan.advice
        fixes = [a.fix for a in advice if "was made for 1024 px" in a.text]
        assert fixes == [{"train.resolution": 1024}] * is_warned


def test_class_images_are_drawn_before_it_learns(runs: Trainer) -> None:
    prior = {"class_prompt": "a disc", "images": 2, "steps": 1}
    folder = runs.new(prior=prior, sample__prompts=[])
    assert isinstance(runs.run(folder)[-1], Finished)
    assert len(list(runs.workspace.class_images.rglob("*.png"))) == 2


def test_a_hypernetwork_is_refused_before_anything_is_loaded(runs: Trainer) -> None:
    folder = runs.new(method={"kind": "hypernetwork"})
    with pytest.raises(UserError, match="needs Stable Diffusion 1 or 2"):
        runs.run(folder)
