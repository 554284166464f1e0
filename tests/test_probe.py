"""What a model predicts is settled by asking it, where its file does not say: before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trainer
from PIL import Image
from test_single_file import foreign

from sdtrainer import families, planner, probe
from sdtrainer.diffusion import PredictionType
from sdtrainer.events import Event, Finished, Said
from sdtrainer.families import ASSETS, STARTER, BaseSection, single_file
from sdtrainer.seams import DENOISER, Parts
from sdtrainer.section import UserError

NOISE = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
PICTURE = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (NOISE, "epsilon"),
        (0.95 * NOISE + 0.3 * PICTURE, "epsilon"),
        (0.07 * NOISE - PICTURE, "v_prediction"),
        (0.07 * NOISE - 0.3 * PICTURE, "v_prediction"),
        (NOISE + 1.5 * PICTURE, None),
        (torch.zeros_like(NOISE), None),
        (NOISE * torch.nan, None),
        (-NOISE, None),
    ],
)
def test_what_an_answer_says(answer: torch.Tensor, expected: str | None) -> None:
    assert probe.conclude(NOISE, answer).type == expected


class SeesAPicture(torch.nn.Module):
    """A denoiser that predicts v, and sees this picture in every noise: v = alpha eps - sigma x0."""

    def __init__(self, parts: Parts, latents: torch.Tensor) -> None:
        super().__init__()
        self.schedule, self.latents = parts.schedule, torch.nn.Parameter(latents)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, *_: Any, **__: Any) -> Any:
        alpha, sigma = self.schedule.alpha_sigma(timesteps, noisy)
        return ((alpha * (noisy - alpha * self.latents) / sigma - sigma * self.latents),)


@pytest.mark.parametrize("expected", ["epsilon", "v_prediction"])
def test_the_starter_is_seen_through(expected: PredictionType) -> None:
    """It predicts eps; in its place, a model that predicts v is asked."""
    facts = families.recognise(BaseSection(path=STARTER))
    family = families.family_of(facts)
    parts = family.load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))
    if expected == "v_prediction":
        with Image.open(ASSETS / "starter-images" / "01.png") as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB").resize((256, 256)))).permute(2, 0, 1)
        seen = family.encode_images(parts, pixels[None] / 127.5 - 1.0)
        parts.modules[DENOISER] = SeesAPicture(parts, seen.mean.detach())
    brought: list[Any] = []
    answer = probe.ask(family, parts, "cpu", bring=brought.append)
    assert answer.type == expected
    assert brought == [facts.encoders, (DENOISER,)]
    told = answer.of(facts)
    assert told.prediction_type == expected and not told.is_undecided
    assert f"correlation {answer.correlation:.2f}" in told.why


# -- in a run --------------------------------------------------------------------------------------


@pytest.fixture
def runs(trainer: Trainer, tmp_path: Path) -> Trainer:
    """Runs on a file that says nothing, whose random weights answer with anything but the noise."""
    foreign(tmp_path / "some.safetensors", words=single_file.WORDS, scale=0.05)
    values = {
        "base": {"path": str(tmp_path / "some.safetensors")},
        "train": {"steps": "1", "batch_size": 1, "resolution": 64},
        "data": {"folder": trainer.values["data"]["folder"]},
        "sample": {"prompts": []},
    }
    return Trainer(trainer.workspace, trainer.values | values)


def said(happened: list[Event]) -> list[str]:
    return [event.text for event in happened if isinstance(event, Said)]


def test_a_run_asks_says_and_keeps_what_it_found(runs: Trainer) -> None:
    assert families.recognise(runs.config().base).is_undecided
    folder = runs.new()
    happened = runs.run(folder)
    assert isinstance(happened[-1], Finished)
    first, second = said(happened)[:2]
    assert "The model was asked" in first and "so it predicts v_prediction" in first
    assert "made for a model that predicts epsilon" in second
    kept = planner.load(folder)
    assert kept is not None and not kept.plan.facts.is_undecided
    assert kept.plan.facts.prediction_type == "v_prediction" and "asked about" in kept.plan.facts.why
    again = runs.run(folder, more_steps=1)
    assert isinstance(again[-1], Finished) and not any("asked" in text for text in said(again))


def test_who_has_chosen_is_not_asked(runs: Trainer) -> None:
    folder = runs.new(base__prediction_type="epsilon")
    assert not any("asked" in text for text in said(runs.run(folder)))
    kept = planner.load(folder)
    assert kept is not None and kept.plan.facts.prediction_type == "epsilon"


def test_zero_terminal_snr_is_judged_by_the_answer(runs: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(runs.run(runs.new(noise__zero_terminal_snr=True))[-1], Finished)
    monkeypatch.setattr(probe, "conclude", lambda noise, answer: probe.Answer("epsilon", 0.99))
    with pytest.raises(UserError, match="Zero terminal SNR cannot be used"):
        runs.run(runs.new(noise__zero_terminal_snr=True))
    with pytest.raises(UserError, match="Zero terminal SNR cannot be used"):
        runs.run(runs.new(noise__zero_terminal_snr=True, base__prediction_type="epsilon"))
