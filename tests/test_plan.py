"""The plan: everything "auto" is decided once, on any machine one can imagine, and says why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import DRAWING, Trainer

from sdtrainer import planner
from sdtrainer.hardware import CPU_ONLY, Machine, imagined
from sdtrainer.plan import PHASES, Plan, output_names
from sdtrainer.planner import Draft
from sdtrainer.seams import DENOISER, VAE
from sdtrainer.section import UserError

ENCODER = "text_encoder"
TURING, AMPERE = (7, 5), (8, 6)
MAC = dataclasses.replace(CPU_ONLY, device="mps")


def planned(trainer: Trainer, machine: Machine = CPU_ONLY, **changes: Any) -> Plan:
    return drafted(trainer, machine, **changes).plan


def drafted(trainer: Trainer, machine: Machine = CPU_ONLY, **changes: Any) -> Draft:
    return planner.draft(trainer.config(**changes), trainer.workspace, machine)


def refusal(trainer: Trainer, machine: Machine = CPU_ONLY, **changes: Any) -> UserError:
    with pytest.raises(UserError) as raised:
        planned(trainer, machine, **changes)
    assert raised.value.hint
    return raised.value


# -- what is decided automatically ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "precision"),
    [
        (CPU_ONLY, "fp32"),
        (MAC, "fp32"),
        (imagined(12, capability=AMPERE), "bf16"),
        (imagined(24, capability=(9, 0)), "bf16"),
        (imagined(8, capability=TURING), "fp16"),
        (imagined(8, capability=(6, 1)), "fp16"),
    ],
)
def test_precision_is_what_the_machine_computes_best(
    trainer: Trainer, machine: Machine, precision: str
) -> None:
    plan = planned(trainer, machine)
    assert plan.precision == precision
    assert plan.place(DENOISER, "train").precision == precision
    assert plan.place(VAE, "cache").precision == "fp32"


@pytest.mark.parametrize(
    ("machine", "optimizer"), [(CPU_ONLY, "adamw"), (imagined(8), "adamw8bit"), (imagined(24), "adamw")]
)
def test_optimizer_is_8_bit_on_small_cards(trainer: Trainer, machine: Machine, optimizer: str) -> None:
    assert planned(trainer, machine).optimizer == optimizer


@pytest.mark.parametrize(
    ("machine", "resolution", "is_on"),
    [
        (CPU_ONLY, 512, False),
        (imagined(8), 512, True),
        (imagined(8), [256, 512], True),
        (imagined(8), 256, False),
        (imagined(24), 512, False),
    ],
)
def test_checkpointing_is_on_where_memory_is_short(
    trainer: Trainer, machine: Machine, resolution: Any, is_on: bool
) -> None:
    plan = planned(trainer, machine, train__resolution=resolution)
    assert plan.checkpointing is is_on
    assert plan.place(DENOISER, "train").is_checkpointed is is_on
    assert not any(p.is_checkpointed for p in plan.placements if p.phase != "train")


@pytest.mark.parametrize(
    ("changes", "latents", "text"),
    [
        ({}, True, True),
        ({"data__flip": True, "data__caption_dropout": 0.1}, True, True),
        ({"data__crop": "random"}, False, True),
        ({"data__shuffle_tags": True}, True, False),
        ({"data__tag_dropout": 0.1}, True, False),
        ({"method__train_text_encoder": True}, True, False),
        ({"data__cache_latents": "off", "data__cache_text": "off"}, False, False),
    ],
)
def test_caches_are_used_wherever_the_settings_allow(
    trainer: Trainer, changes: dict[str, Any], latents: bool, text: bool
) -> None:
    plan = planned(trainer, **changes)
    assert (plan.cache_latents, plan.cache_text) == (latents, text)


def test_resolution_is_the_models_own_unless_given(trainer: Trainer) -> None:
    assert planned(trainer, train__resolution=0).resolutions == (64,)
    assert planned(trainer, train__resolution=[64, 128]).resolutions == (64, 128)


def test_every_automatic_decision_is_listed_with_a_reason(trainer: Trainer) -> None:
    plan = planned(trainer, imagined(8), train__resolution=0)
    assert {choice.path for choice in plan.choices} == {
        "train.precision", "train.resolution", "train.checkpointing", "optim.name", "data.cache_text",
        "data.cache_latents",
    }  # fmt: skip
    assert all(choice.why for choice in plan.choices)
    assert next(c.value for c in plan.choices if c.path == "train.resolution") == 64
    settled = planned(
        trainer, imagined(8), train__precision="fp32", train__checkpointing="off", optim__name="lion",
        data__cache_text="on", data__cache_latents="off",
    )  # fmt: skip
    assert settled.choices == ()
    assert (settled.precision, settled.checkpointing, settled.optimizer) == ("fp32", False, "lion")
    assert (settled.cache_text, settled.cache_latents) == (True, False)


# -- what contradicts itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "path", "title"),
    [
        ({"data__cache_latents": "on", "data__crop": "random"}, "data.cache_latents", "Cache latents"),
        ({"data__cache_text": "on", "data__shuffle_tags": True}, "data.cache_text", "Cache text"),
        ({"data__cache_text": "on", "method__train_text_encoder": True}, "data.cache_text", "Cache text"),
        ({"train__precision": "fp16"}, "train.precision", "Precision"),
        ({"noise__zero_terminal_snr": True}, "noise.zero_terminal_snr", "Zero terminal SNR"),
        ({"method__targets": "own list"}, "method.own_targets", "Own list of layers"),
        ({"data__folder": ""}, "data.folder", "Images"),
        ({"base__path": "/nowhere/at/all"}, "base.path", "Base model"),
    ],
)
def test_contradictions_are_refused_by_the_name_of_the_setting(
    trainer: Trainer, changes: dict[str, Any], path: str, title: str
) -> None:
    error = refusal(trainer, **changes)
    assert error.path == path
    assert error.what.startswith(title)


def test_what_is_forbidden_on_a_processor_is_allowed_on_a_card(trainer: Trainer) -> None:
    assert planned(trainer, imagined(8), train__precision="fp16").precision == "fp16"


def test_zero_terminal_snr_is_allowed_where_v_is_predicted(trainer: Trainer) -> None:
    plan = planned(trainer, base__prediction_type="v_prediction", noise__zero_terminal_snr=True)
    assert plan.facts.prediction_type == "v_prediction"


# -- how long ---------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_with_its_repeats(trainer: Trainer) -> None:
    plan = planned(trainer, data__repeats=3, train__batch_size=2, train__steps="4 epochs")
    assert (plan.num_images, plan.images_per_epoch) == (5, 15)
    assert (plan.micro_batches, plan.steps_per_epoch, plan.total_steps) == (8, 8, 32)
    assert plan.epochs == 4


def test_folders_repeat_their_images(trainer: Trainer, tmp_path: Path) -> None:
    tiny.make_images(tmp_path / "set" / "10_zib disc", 3)
    plan = planned(trainer, data__folder=str(tmp_path / "set"), data__repeats=2, train__batch_size=1)
    assert (plan.num_images, plan.images_per_epoch, plan.steps_per_epoch) == (3, 60, 60)


def test_buckets_do_not_mix_in_a_batch(trainer: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    tiny.make_images(folder / "square", 3)
    tiny.make_images(folder / "wide", 3, size=(128, 32))
    plan = planned(trainer, data__folder=str(folder), train__batch_size=2, train__steps="1 epoch")
    assert len(plan.buckets) == 2 and sum(plan.buckets.values()) == 6
    assert plan.micro_batches == plan.total_steps == 4


def test_several_resolutions_show_each_image_at_each(trainer: Trainer) -> None:
    plan = planned(trainer, train__resolution=[64, 128], train__batch_size=5)
    assert (plan.images_per_epoch, plan.micro_batches) == (10, 2)


@pytest.mark.parametrize(
    ("accumulation", "epochs", "steps"), [(1, 10, 30), (2, 10, 15), (4, 10, 8), (64, 10, 1), (64, 100, 5)]
)
def test_accumulation_does_not_lengthen_epochs(
    trainer: Trainer, accumulation: int, epochs: int, steps: int
) -> None:
    """Three batches make an epoch; ten epochs are thirty batches, whatever the number in a step."""
    plan = planned(trainer, optim__accumulation=accumulation, train__steps=f"{epochs} epochs")
    assert plan.micro_batches == 3
    assert plan.total_steps == steps
    assert plan.epochs == pytest.approx(steps * accumulation / 3)


def test_several_processes_share_an_epoch(trainer: Trainer) -> None:
    two = dataclasses.replace(CPU_ONLY, processes=2)
    plan = planned(trainer, two, train__batch_size=1, train__steps="2 epochs")
    assert (plan.processes, plan.micro_batches, plan.total_steps) == (2, 3, 6)


def test_intervals_become_steps_of_this_run(trainer: Trainer) -> None:
    plan = planned(
        trainer, train__steps="150", sample__every="1 epoch", checkpoint__every="25%", optim__warmup="5%",
        train__validate_every="40",
    )  # fmt: skip
    assert (plan.sample_every, plan.checkpoint_every, plan.warmup_steps) == (3, 38, 8)
    assert plan.validate_every == 40


def test_without_held_out_images_nothing_is_validated(trainer: Trainer) -> None:
    plan = planned(trainer, data__validation_folder="")
    assert (plan.num_validation, plan.validate_every) == (0, 0)
    split = planned(trainer, data__validation_folder="", data__validation_split=0.4)
    assert (split.num_images, split.num_validation, split.validate_every) == (3, 2, 6)


# -- where things are -------------------------------------------------------------------------------


def test_parts_wait_on_the_processor_until_they_are_used(trainer: Trainer) -> None:
    plan = planned(trainer, imagined(8))
    assert {(p.part, p.phase) for p in plan.placements if p.device == "cuda"} == {
        (DENOISER, "train"), (DENOISER, "sample"), (VAE, "cache"), (VAE, "sample"), (ENCODER, "cache"),
        (ENCODER, "sample"),
    }  # fmt: skip
    assert len(plan.placements) == len(PHASES) * 3
    assert plan.trained_parts == (DENOISER,)


def test_parts_without_a_cache_stay_for_training(trainer: Trainer) -> None:
    plan = planned(trainer, imagined(8), data__crop="random", method__train_text_encoder=True)
    assert {p.part for p in plan.placements if p.phase == "train" and p.device == "cuda"} == {
        DENOISER, VAE, ENCODER,
    }  # fmt: skip
    assert plan.trained_parts == (DENOISER, ENCODER)
    assert not plan.place(VAE, "train").is_trainable


def test_own_list_may_train_the_text_encoder_alone(trainer: Trainer) -> None:
    only = {"method__targets": "own list", "method__own_targets": ["text_encoder.*q_proj"]}
    assert planned(trainer, **only).trained_parts == (ENCODER,)


# -- what is said before the start ------------------------------------------------------------------


def test_advice_offers_a_way_out(trainer: Trainer, tmp_path: Path) -> None:
    folder = tiny.make_images(tmp_path / "few", 2)
    plan = planned(
        trainer, data__folder=str(folder), sample__prompts=[], train__steps="2000", data__trigger="zib",
        train__resolution=256,
    )  # fmt: skip
    said = " ".join(a.text for a in plan.advice)
    assert "Only 2 images" in said and "No sample prompts" in said and "soft" in said
    assert "2000 times" in said
    fix = next(a.fix for a in plan.advice if "No sample prompts" in a.text)
    captions = {f"zib {text.read_text().strip()}" for text in folder.glob("*.txt")}
    assert set(fix["sample.prompts"]) == {text.replace("zib a zib", "a zib") for text in captions}
    assert not planned(trainer, sample__prompts=["x"], train__steps="10").advice


@pytest.mark.parametrize("method", [{"kind": "lora"}, {"kind": "full"}, {"kind": "textual_inversion"}])
def test_a_learning_rate_of_ten_is_warned_of_and_can_be_mended(
    trainer: Trainer, method: dict[str, str]
) -> None:
    def ruins(**changes: Any) -> list[Any]:
        plan = planned(trainer, method=method, **changes)
        return [a.fix for a in plan.advice if "times what suits" in a.text]

    assert ruins(optim__lr=10) == [{"optim.lr": 0}]
    assert not ruins(optim__lr=0) and not ruins(optim__lr=10, optim__name="prodigy")


def test_own_pictures_on_the_starter_are_told_what_it_is(trainer: Trainer) -> None:
    assert any("toy" in a.text for a in planned(trainer, base__path="starter", train__resolution=128).advice)
    assert not any("toy" in a.text for a in planned(trainer).advice)


def test_repeats_count_as_showings_in_the_advice(trainer: Trainer) -> None:
    plan = planned(trainer, data__repeats=100, train__steps="5 epochs")
    assert any("500 times" in a.text for a in plan.advice)


def test_pictures_without_any_words_are_warned_of(trainer: Trainer, tmp_path: Path) -> None:
    folder = tiny.make_images(tmp_path / "wordless", 5)
    for caption in folder.glob("*.txt"):
        caption.unlink()
    assert any("No captions" in a.text for a in planned(trainer, data__folder=str(folder)).advice)


def test_files_are_named_before_they_are_written(trainer: Trainer) -> None:
    plan = planned(trainer, run__name="my zib", export__formats=["webui", "diffusers"])
    assert output_names(plan) == ("my zib.safetensors", "my zib-diffusers.safetensors")


# -- on disk ----------------------------------------------------------------------------------------


def test_a_plan_comes_back_from_disk_as_it_was(trainer: Trainer) -> None:
    folder = trainer.new(train__resolution=0, **DRAWING)
    made = drafted(trainer, imagined(8), train__resolution=0)
    assert planner.load(folder) is None
    planner.save(made, folder)
    assert planner.load(folder) == made


def test_a_revision_is_a_new_number_and_the_rest_unchanged(trainer: Trainer) -> None:
    folder = trainer.new(**DRAWING)
    made = drafted(trainer)
    planner.save(made, folder)
    revised = made.plan.revised(lr_scale=0.5, skipped=(7,))
    planner.save_plan(revised, folder)
    loaded = planner.load(folder)
    assert loaded is not None and loaded.plan == revised
    assert (revised.revision, revised.lr_scale, revised.skipped) == (2, 0.5, (7,))
    assert dataclasses.replace(revised, revision=1, lr_scale=1.0, skipped=()) == made.plan


@pytest.mark.parametrize(
    ("changes", "denoiser", "encoder"),
    [
        ({"optim__lr": 0}, 1e-4, 5e-5),
        ({"optim__lr": 0, "optim__text_encoder_lr": 2e-5}, 1e-4, 2e-5),
        ({"optim__lr": 3e-4}, 3e-4, 3e-4),
        ({"optim__lr": 3e-4, "optim__text_encoder_lr": 2e-5}, 3e-4, 2e-5),
    ],
)
def test_a_learning_rate_of_zero_is_the_methods_own(trainer, changes, denoiser, encoder):
    plan = planned(trainer, **changes)
    assert (plan.lrs.denoiser, plan.lrs.text_encoder) == (denoiser, encoder)
    assert ("optim.lr" in {choice.path for choice in plan.choices}) == (changes["optim__lr"] == 0)


def test_a_format_that_the_method_does_not_have_is_refused(trainer):
    with pytest.raises(UserError, match="LoRA has no 'pt' file"):
        planned(trainer, export__formats=["pt"])
