"""The classic pictures: the numbers of Stable Diffusion 1.5 as every course shows them, from the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sd15

from sdtrainer import activations, classics, families
from sdtrainer.__main__ import main
from sdtrainer.bench import models
from sdtrainer.classics import Drawn
from sdtrainer.families import BaseSection, published
from sdtrainer.hardware import GIB
from sdtrainer.memory import structure_of
from sdtrainer.seams import Facts


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """Stable Diffusion 1.5, without weights."""
    path = sd15.write(tmp_path_factory.mktemp("models") / "sd15")
    return families.recognise(BaseSection(path=str(path)))


@pytest.fixture(scope="module")
def drawn(facts: Facts) -> dict[str, Drawn]:
    return {one.classic.name: one for one in classics.drawn(facts)}


def model(one: Drawn) -> list[float]:
    """GiB of weights, gradients and optimizer."""
    return [one.sums[what] / GIB for what in ("weights", "gradients", "optimizer")]  # type: ignore[index]


def test_the_numbers_of_sd15(drawn: dict[str, Drawn]) -> None:
    everything = sd15.UNET + sd15.TEXT_ENCODER + sd15.VAE
    trained = sd15.UNET + sd15.TEXT_ENCODER
    assert model(drawn["fp32"]) == pytest.approx([3.97, 3.66, 7.32], abs=0.005)
    assert sum(model(drawn["fp32"])) == pytest.approx(14.95, abs=0.005)
    assert sum(model(drawn["fp16"])) * GIB == pytest.approx(
        2 * everything + 2 * trained + 8 * trained, rel=1e-3
    )
    assert sum(model(drawn["fp16"])) == pytest.approx(11.1, abs=0.05)
    assert model(drawn["mixed"]) == pytest.approx(model(drawn["fp32"])), "what is trained stays fp32"
    assert sum(model(drawn["bf16"])) < 12 < sum(model(drawn["mixed"]))


def test_which_of_them_fit_sixteen_gigabytes(drawn: dict[str, Drawn]) -> None:
    assert {name for name, one in drawn.items() if not one.fits} == {"fp32", "mixed"}
    assert drawn["lora"].bytes < drawn["8-bit"].bytes < drawn["fp16"].bytes < drawn["mixed"].bytes
    assert drawn["8-bit"].bytes < 11 * GIB and drawn["lora"].bytes < 5 * GIB, "these leave room"


def test_their_activations_are_known_without_tracing(drawn: dict[str, Drawn]) -> None:
    assert all(one.fits is not None for one in drawn.values())
    assert drawn["lora"].sums["activations"] > GIB


@pytest.mark.parametrize("model", ["SD2", "SDXL", "SD3", "SD3.5 medium", "SD3.5 large"])
def test_so_are_those_of_the_other_base_models(tmp_path: Path, model: str) -> None:
    """Where this fails, layers have changed: `python -m sdtrainer trace --ship BASE classics` makes them
    anew.
    """
    path = models.write_configs(published.MODELS[model], tmp_path)
    made = classics.plans(families.recognise(BaseSection(path=str(path))))["lora"]
    assert not activations.missing(made, structure_of(made))


def test_what_is_only_drawn_is_what_no_trainer_runs(facts: Facts) -> None:
    plans = classics.plans(facts)
    only_drawn = {one.name for one in classics.CLASSICS if one.is_drawn}
    assert only_drawn == {name for name, plan in plans.items() if plan.trained_as == "fp16"} == {"fp16"}


def test_they_are_printed_beside_a_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, facts: Facts
) -> None:
    run = tmp_path / "run.toml"
    run.write_text(f'[base]\npath = "{facts.path}"\n[data]\nfolder = "starter"\n')
    assert main(["plan", str(run), "--vram", "16", "--classics", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["classics"]
    assert told.keys() == {one.name for one in classics.CLASSICS}
    assert told["fp32"]["fits"] is False and told["lora"]["fits"] is True
    assert main(["plan", str(run), "--vram", "16", "--classics"]) == 0
    assert "as usually drawn: weights 1.99, gradients 1.83, optimizer 7.32" in capsys.readouterr().out
