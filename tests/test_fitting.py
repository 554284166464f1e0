"""The plan that fits: the fastest that the card allows, what the user fixed left as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sd3
import sd15
import sdxl
from conftest import Trainer

from sdtrainer import config as configs
from sdtrainer import fitting, planner, presets, storage
from sdtrainer.config import Config
from sdtrainer.fitting import Fit, peak
from sdtrainer.hardware import CPU_ONLY, GIB, imagined
from sdtrainer.memory import estimate
from sdtrainer.plan import Plan
from sdtrainer.section import UserError, override
from sdtrainer.workspace import Workspace

FULL = {"kind": "full", "train_text_encoder": True}
PROMISING = [p for p in presets.presets() if p.promises.get("vram_gib")]
assert len(PROMISING) > 10


@pytest.fixture
def published(published_models: dict[str, str]) -> str:
    """Stable Diffusion 1.5, without weights."""
    return published_models[sd15.HUB_ID]


@pytest.fixture
def sd(trainer: Trainer, published: str) -> Any:
    def config(**changes: Any) -> Config:
        return trainer.config(base__path=published, **changes)

    return config


def fitted(config: Config, workspace: Workspace, gib: float) -> Fit:
    return fitting.draft(config, workspace, imagined(gib))[1]


def chosen(found: Fit) -> dict[str, Any]:
    return {choice.path: choice.value for choice in found.plan.choices}


PRIOR = {"class_prompt": "a robot", "images": 100}
GOALS = {
    "LoRA in 4 GB": (sd15.HUB_ID, 4, {"method": {"kind": "lora"}}),
    "UNet and text encoder in 10 GB": (sd15.HUB_ID, 10, {"method": FULL}),
    "DreamBooth in 12 GB": (sd15.HUB_ID, 12, {"method": FULL, "prior": PRIOR}),
    "SDXL's LoRA in 7 GB": (sdxl.HUB_ID, 7, {"method": {"kind": "lora"}}),
    "SD3's LoRA in 8 GB": ("3 medium", 8, {"method": {"kind": "lora"}}),
    "SDXL's UNet in 15 GB": (sdxl.HUB_ID, 15, {"method": {"kind": "full"}}),
}


@pytest.mark.parametrize("goal", GOALS)
def test_one_image_a_step_of_the_models_own_size_fits(
    workspace: Workspace, published_models: dict[str, str], tmp_path: Path, goal: str
) -> None:
    model, gib, values = GOALS[goal]
    path = published_models.get(model) or str(sd3.write(tmp_path / "sd3", model))
    own = {"base.path": path, "data.folder": "starter", "sample.prompts": ["a picture"]}
    found = fitted(configs.build(override(values, own)), workspace, gib)
    assert found.fits and found.room is not None and peak(found.ledger) <= found.room < gib * GIB
    assert found.plan.resolutions == (found.plan.facts.resolution,)


@pytest.mark.parametrize("preset", PROMISING, ids=lambda preset: preset.name)
def test_every_preset_keeps_its_promise(
    workspace: Workspace, published_models: dict[str, str], preset: presets.Preset
) -> None:
    base = published_models[preset.values["base"]["path"]]
    own = {"base.path": base, "data.folder": "starter", "sample.prompts": ["a picture"]}
    config = configs.build(override(presets.apply({}, preset), own))
    found = fitted(config, workspace, preset.promises["vram_gib"])
    assert found.fits, f"{peak(found.ledger) / GIB:.2f} of {(found.room or 0) / GIB:.2f} GiB"


def test_a_larger_card_is_never_slower(trainer: Trainer, sd: Any) -> None:
    config = sd(method=FULL, train__batch_size=4)

    def slowness(plan: Plan) -> float:
        every = [list(fitting.combinations(plan, [axis])) for axis in fitting.AXES]
        return sum(made.index(plan) for made in every if plan in made)

    slow = [slowness(fitted(config, trainer.workspace, gib).plan) for gib in (10, 12, 16, 24, 48)]
    assert slow == sorted(slow, reverse=True) and slow[0] > slow[-1] == 0


def test_what_is_fixed_stays_and_what_would_help_is_said(trainer: Trainer, sd: Any) -> None:
    config = sd(method=FULL, optim__name="adamw", train__checkpointing="off", train__batch_size=4)
    machine = imagined(12)

    def replan(changed: Config) -> Plan:
        return planner.draft(changed, trainer.workspace, machine).plan

    found = fitted(config, trainer.workspace, 12)
    assert found.fits is False and found.plan.optimizer == "adamw" and not found.plan.checkpointing
    assert not {"optim.name", "train.checkpointing"} & chosen(found).keys()
    ideas = list(fitting.changes(found, machine, replan))
    assert {"optim.name", "method.kind"} <= {idea.path for idea in ideas}
    assert any(idea.fits for idea in ideas) and all(idea.bytes > 0 for idea in ideas)
    for idea in ideas:
        changed = configs.build(override(config.values(), {idea.path: idea.value}))
        again = fitted(changed, trainer.workspace, 12)
        assert again.fits == idea.fits
        assert peak(found.ledger) - peak(again.ledger) == idea.bytes


def test_a_batch_goes_through_in_parts_where_that_is_enough(trainer: Trainer, sd: Any) -> None:
    config = sd(method={"kind": "lora"}, train__batch_size=8, data__caption_dropout=0.0)
    config = configs.build(override(config.values(), {"train.precision": "auto", "train.resolution": 512}))
    found = {gib: fitted(config, trainer.workspace, gib) for gib in (24, 10)}
    assert found[24].plan.batch_parts == 1 < found[10].plan.batch_parts <= 8
    assert found[10].fits and chosen(found[10])["train.batch_parts"] == found[10].plan.batch_parts
    assert found[10].plan.total_steps == found[24].plan.total_steps


def test_while_parts_take_turns_drawing_holds_the_largest_of_them(trainer: Trainer, sd: Any) -> None:
    config = sd(method={"kind": "lora"}, train__precision="bf16", sample__prompts=["a picture"])
    plan = planner.draft(config, trainer.workspace, imagined(8)).plan
    together, in_turn = estimate(plan), estimate(replace(plan, draws_in_turn=True))
    assert not together.unknown or "sample" not in together.unknown
    weights = {row.part: row.bytes for row in together.rows if (row.phase, row.what) == ("sample", "weights")}
    assert max(weights.values()) < in_turn.held("sample") < together.held("sample")
    assert together.held("train") == in_turn.held("train")
    waiting = together.held("sample") - in_turn.held("sample")
    assert waiting > min(weights.values())


def test_every_automatic_choice_gives_its_reason(trainer: Trainer, sd: Any) -> None:
    lean, rich = (fitted(sd(method=FULL), trainer.workspace, gib) for gib in (12, 48))
    assert chosen(rich)["optim.name"] == "adamw" != chosen(lean)["optim.name"]
    for found in (lean, rich):
        assert {"optim.name", "train.checkpointing", "train.weights"} <= chosen(found).keys()
        assert all(choice.why for choice in found.plan.choices)
    why = next(c.why for c in lean.plan.choices if c.path == "optim.name")
    assert "instead of" in why and "slower" in why


def test_where_activations_are_not_known_the_plan_stays_as_it_is(trainer: Trainer) -> None:
    made = planner.draft(trainer.config(), trainer.workspace, imagined(8)).plan
    found = fitting.fit(made, imagined(8))
    assert found.fits is None and found.plan == made
    assert {plan.checkpointing for plan in fitting.unknown(made)} == {True, False}


def test_without_a_card_there_is_nothing_to_fit(trainer: Trainer) -> None:
    found = fitting.draft(trainer.config(), trainer.workspace, CPU_ONLY)[1]
    assert found.fits and found.room is None


def test_main_memory_and_disk_must_suffice(trainer: Trainer, sd: Any) -> None:
    plan = planner.draft(sd(), trainer.workspace, imagined(8)).plan
    ledger = estimate(plan)
    plenty, little = imagined(8), imagined(8).__class__("cuda", imagined(8).card, 2 * GIB, GIB // 2, 4)
    storage.check(plan, ledger, plenty, 100 * GIB)
    with pytest.raises(UserError, match=r"needs about \d\.\d GB of main memory, and 0\.5 GB are free"):
        storage.check(plan, ledger, little, 100 * GIB)
    with pytest.raises(UserError, match=r"needs up to .* on the disk .* and 0\.0 GB are free"):
        storage.check(plan, ledger, plenty, 1000)
    on_cpu = planner.draft(sd(), trainer.workspace, CPU_ONLY).plan
    with pytest.raises(UserError, match="Set Precision to bf16") as refused:
        storage.check(on_cpu, estimate(on_cpu), little, 100 * GIB)
    assert refused.value.path == "train.precision"


def test_a_run_that_the_disk_cannot_hold_is_refused_before_anything_is_loaded(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workspace, "disk_free", 1000)
    folder = trainer.new()
    with pytest.raises(UserError, match="disk"):
        trainer.run(folder)
    assert not folder.plan_file.exists()


def test_the_plan_for_a_card_of_any_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, published: str
) -> None:
    from sdtrainer.__main__ import main

    run = tmp_path / "run.toml"
    run.write_text(f'[base]\npath = "{published}"\n[data]\nfolder = "starter"\n[method]\nkind = "full"\n')
    assert main(["plan", str(run), "--vram", "4", "--json"]) == 0
    small = json.loads(capsys.readouterr().out)
    assert small["fits"] is False and any(change["fits"] for change in small["changes"])
    assert small["rows"] and set(small["peaks"]) == {"cache", "train", "sample", "export"}
    assert small["choices"]["optim.name"]["why"]
    assert main(["plan", str(run), "--vram", "24"]) == 0
    assert "fits: " in capsys.readouterr().out


@pytest.mark.parametrize("size", ["-4", "0", "much", "nan", "1e9"])
def test_no_card_has_such_a_size(capsys: pytest.CaptureFixture[str], tmp_path: Path, size: str) -> None:
    from sdtrainer.__main__ import main

    run = tmp_path / "run.toml"
    run.write_text('[data]\nfolder = "starter"\n')
    assert main(["plan", str(run), f"--vram={size}"]) == 2
    assert f"--vram is '{size}'" in capsys.readouterr().err


def test_a_card_without_bf16_is_told_what_it_can_do(trainer: Trainer, sd: Any) -> None:
    """fp16 needs exact weights and scaled losses: all at once is too much for 8 GB, and less is not."""
    turing = imagined(8, capability=(7, 5))
    config = configs.build(override(sd(method=FULL).values(), {"train.precision": "auto"}))
    found = fitting.draft(config, trainer.workspace, turing)[1]
    assert found.plan.precision == "fp16" and found.fits is False and found.plan.trained_as == "fp32"
    ideas = fitting.changes(found, turing, lambda c: planner.draft(c, trainer.workspace, turing).plan)
    assert {idea.path for idea in ideas if idea.fits} >= {"method.kind"}
    ampere = fitting.draft(config, trainer.workspace, imagined(8))[1]
    assert ampere.fits and ampere.plan.trained_as == "bf16"
