"""How each family is drawn with: the scheduler, steps, guidance and size that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sd3 as published_sd3
import tiny
import torch
from conftest import Trainer
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from sdtrainer import planner, result
from sdtrainer.bench import models
from sdtrainer.families import BaseSection
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.sample import RESCALE, Request
from sdtrainer.training import class_images
from sdtrainer.training.looking import requests

USUAL = {
    "SD 1.5": (25, 7.0, 512),
    "SD 2.1": (25, 7.0, 768),
    "SDXL": (25, 5.0, 1024),
    "3 medium": (28, 7.0, 1024),
    "3.5 medium": (40, 4.5, 1024),
    "3.5 large": (28, 3.5, 1024),
}
REQUEST = Request("a zib disc", "", 64, 64, 2, 5.0, 7)


@pytest.mark.parametrize("model", USUAL)
def test_what_is_left_to_auto_is_what_suits_the_model(trainer: Trainer, tmp_path: Path, model: str) -> None:
    path = models.write(model, tmp_path) if model in models.MODELS else published_sd3.write(tmp_path, model)
    auto = {"base__path": str(path), "train__resolution": 0, "sample__steps": 0}
    prior = {"prior__class_prompt": "a disc", "prior__images": 1}
    made = planner.draft(trainer.config(**auto, **prior), trainer.workspace, CPU_ONLY)
    (drawn,) = requests(made.plan)
    assert made.class_images is not None
    of_class = class_images.request_of(made.class_images.samples[0], made.plan)
    for request in (drawn, of_class):
        assert (request.steps, request.guidance, request.width, request.height) == (
            *USUAL[model], USUAL[model][-1]
        )  # fmt: skip
    own = {"sample__steps": 3, "sample__guidance": 2.5, "prior__steps": 3, "prior__guidance": 2.5}
    plan = planner.draft(trainer.config(**auto | own, **prior), trainer.workspace, CPU_ONLY).plan
    for request in (*requests(plan), class_images.request_of(made.class_images.samples[0], plan)):
        assert (request.steps, request.guidance) == (3, 2.5)


@pytest.fixture(scope="module")
def predicts_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("models") / "v", "v_prediction")


def scheduler_of(path: Path, **options: Any) -> Any:
    return result.sampler(BaseSection(path=str(path)), **options).pipeline.scheduler


def test_each_kind_of_noise_has_its_scheduler(base: Path, sdxl: Path, sd3: Path, predicts_v: Path) -> None:
    for path, prediction in ((base, "epsilon"), (sdxl, "epsilon"), (predicts_v, "v_prediction")):
        scheduler = scheduler_of(path)
        assert isinstance(scheduler, DPMSolverMultistepScheduler)
        assert scheduler.config["prediction_type"] == prediction
    flow = scheduler_of(sd3)
    assert isinstance(flow, FlowMatchEulerDiscreteScheduler) and flow.config["shift"] == 3.0


def test_a_model_that_starts_from_pure_noise_is_drawn_as_its_paper_says(predicts_v: Path) -> None:
    """From the last timestep on, with guidance rescaled: Lin et al. 2023, sections 3.3 and 3.4."""
    drawing = result.sampler(BaseSection(path=str(predicts_v)), zero_terminal_snr=True)
    scheduler = drawing.pipeline.scheduler
    assert isinstance(scheduler, DDIMScheduler) and scheduler.alphas_cumprod[-1] == 0
    mine = drawing.draw(REQUEST)
    assert scheduler.timesteps[0] == 999
    theirs, plain = (
        drawing.pipeline(
            "a zib disc", negative_prompt="", width=64, height=64, num_inference_steps=2, guidance_scale=5.0,
            guidance_rescale=rescale, generator=torch.Generator().manual_seed(7),
        ).images[0]
        for rescale in (RESCALE, 0.0)
    )  # fmt: skip
    assert mine.tobytes() == theirs.tobytes() != plain.tobytes()


def test_a_result_is_drawn_with_the_base_as_the_settings_say(base: Path) -> None:
    said = BaseSection(path=str(base), prediction_type="v_prediction")
    drawing = result.sampler(said)
    assert drawing.parts.facts.prediction_type == "v_prediction"
    assert drawing.pipeline.scheduler.config["prediction_type"] == "v_prediction"
    plain = result.sampler(BaseSection(path=str(base)))
    assert drawing.draw(REQUEST).tobytes() != plain.draw(REQUEST).tobytes()


def test_a_result_is_drawn_without_t5_if_the_run_left_it_out(tmp_path: Path) -> None:
    path = str(tiny.make_sd3(tmp_path / "model", with_t5=True))
    without, with_it = (result.sampler(BaseSection(path=path, t5=use)) for use in ("off", "auto"))
    assert set(with_it.parts.modules) - set(without.parts.modules) == {"text_encoder_3"}
    assert without.draw(REQUEST).tobytes() != with_it.draw(REQUEST).tobytes()
