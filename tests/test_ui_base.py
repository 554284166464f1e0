"""The page says what the base model was recognised as, why, and what is wrong with a file that is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_single_file import foreign

from sdtrainer import presets
from sdtrainer.families import ASSETS, FAMILIES, STARTER, BaseSection, recognise
from sdtrainer.hardware import detect
from sdtrainer.ui import picker
from sdtrainer.ui.access import Access
from sdtrainer.ui.method import _chip
from sdtrainer.ui.outlook import Looker
from sdtrainer.workspace import Workspace


@pytest.fixture
def looker(workspace: Workspace) -> Looker:
    return Looker(workspace, Access(workspace))


def chip(looker: Looker, **base: object) -> str:
    """With no images chosen yet, as on a page that was just opened."""
    return _chip(looker.look({"base": base}, detect()))


def test_what_was_recognised_is_said_with_its_reason(looker: Looker) -> None:
    said = chip(looker, path=STARTER)
    assert "Stable Diffusion 1, 128 px, predicts the noise (epsilon); recognised by" in said
    assert "predicts the velocity (v_prediction), as you set it" in chip(
        looker, path=STARTER, prediction_type="v_prediction"
    )


def test_what_is_undecided_is_called_so(looker: Looker, tmp_path: Path) -> None:
    foreign(tmp_path / "some.safetensors")
    said = chip(looker, path=str(tmp_path / "some.safetensors"))
    assert "512 px, probably predicts the noise (epsilon); the model is asked before" in said


def test_a_wrong_file_is_named_before_images_are_chosen(looker: Looker, tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, tmp_path / "mine.safetensors")
    said = chip(looker, path=str(tmp_path / "mine.safetensors"))
    assert "Cannot be taught" in said and "mine.safetensors is a LoRA" in said and "Choose a whole" in said


def test_a_preset_for_another_model_is_said_to_be_one(base: Path, sdxl: Path) -> None:
    known = presets.presets()
    assert {preset.family for preset in known} == {"", *FAMILIES}
    for path, family in ((base, "sd"), (sdxl, "sdxl"), (ASSETS / "starter-model", "")):
        facts = recognise(BaseSection(path=str(path)))
        told = {preset.family: picker.misfit(preset, facts, known) for preset in known}
        assert not told[family]
        others = [said for other, said in told.items() if other != family]
        assert all(("not made for" in said) == bool(family) for said in others)
