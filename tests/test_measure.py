"""One step measured: what is measured is the plan's own step, and what was measured is found again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdtrainer import config as configs
from sdtrainer import memory, planner
from sdtrainer.__main__ import main
from sdtrainer.bench import child, dry, measured
from sdtrainer.bench.measured import Kept, Line, Measured, Measurement
from sdtrainer.data.census import Sample
from sdtrainer.data.items import bucket_counts, plan_items
from sdtrainer.data.section import DataSection
from sdtrainer.hardware import CPU_ONLY, imagined
from sdtrainer.plan import Plan
from sdtrainer.sample import Sampler
from sdtrainer.training.step import TrainStep
from sdtrainer.workspace import PROJECT

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_tables(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that tests make are kept between them, apart from those of this machine."""
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(tmp_path_factory.getbasetemp() / "tables"))


def plan_of(trainer: Trainer, **changes: Any) -> Plan:
    return planner.draft(trainer.config(**changes), trainer.workspace, CPU_ONLY).plan


def silent(words: str) -> None:
    pass


# the dry step


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(60, 900), st.integers(60, 900)), min_size=1, max_size=4),
    sides=st.sampled_from([(64,), (128,), (256,), (512, 256), (64, 320)]),
    upscale=st.booleans(),
    limit=st.sampled_from([0, 256]),
)
def test_its_pictures_are_of_the_largest_size_trained_at(
    trainer: Trainer, tmp_path: Path, sizes: list[tuple[int, int]], sides: tuple[int, ...], upscale: bool,
    limit: int,
) -> None:  # fmt: skip
    section = DataSection(folder="x", upscale=upscale, bucket_max=limit)
    samples = [Sample("a.png", tmp_path, *size, "", "", "", 1, 0, 0) for size in sizes]
    own = plan_of(trainer)
    config = own.config.model_copy(update={"data": section})
    counts = bucket_counts(plan_items(samples, section, sides))
    buckets = {f"{width} x {height}": count for (width, height), count in counts.items()}
    made = dry.draft(replace(own, config=config, buckets=buckets, resolutions=sides), tmp_path / "pictures")
    items = plan_items(made.census.samples, section, made.plan.resolutions)
    assert len(items) == own.batch_size
    (bucket,) = {item.bucket for item in items}
    assert bucket[0] * bucket[1] == max(width * height for width, height in counts)


def test_a_dry_step_is_the_plans_own_and_leaves_nothing_behind(trainer: Trainer) -> None:
    plan, said = (
        plan_of(trainer, optim__accumulation=2, train__batch_size=3, train__batch_parts=3),
        list[str](),
    )
    there = sorted(trainer.workspace.root.rglob("*"))
    found = dry.measure(plan, said.append)
    assert found.allocated.keys() == {"train", "sample"} and not found.ended
    kept = found.weights + found.optimizer
    assert kept < min(found.allocated.values()) and found.optimizer
    whole = dry.measure(replace(plan, batch_parts=1), said.append)
    assert whole.allocated["train"] > found.allocated["train"], "parts hold less than the whole"
    assert (whole.weights, whole.optimizer) == (found.weights, found.optimizer)
    assert "Taking a training step" in said and len(said) > 4
    assert sorted(trainer.workspace.root.rglob("*")) == there


def test_words_that_are_learnt_stand_in_its_captions(trainer: Trainer) -> None:
    """Else nothing would be learnt, and no optimizer would hold anything."""
    plan = plan_of(trainer, method={"kind": "textual_inversion", "tokens": ["<zib>"]}, sample__prompts=[])
    found = dry.measure(plan, silent)
    assert found.optimizer and found.allocated.keys() == {"train"}, "without prompts nothing is drawn"


@pytest.mark.parametrize(
    ("owner", "what", "ended"), [(TrainStep, "forward", "train"), (Sampler, "draw", "sample")]
)
def test_memory_that_runs_out_is_a_result(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, owner: Any, what: str, ended: str
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(owner, what, full)
    plan = plan_of(trainer)
    found = dry.measure(plan, silent)
    assert found.ended == ended and found.weights
    assert {line.what for line in measured.lines(found, memory.estimate(plan))} == (
        {"weights"} if ended == "train" else {"weights", "train"}
    )


def test_another_error_is_none(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **more: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(TrainStep, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        dry.measure(plan_of(trainer), silent)


# what is kept


def test_a_plan_is_known_by_what_its_memory_depends_on(trainer: Trainer) -> None:
    own = measured.key(plan_of(trainer))
    same: list[dict[str, Any]] = [
        {"optim__lr": 0.5}, {"train__steps": "99"}, {"run__name": "other"}, {"sample__prompts": ["x", "y"]},
        {"train__seed": 3}, {"sample__steps": 9},
    ]  # fmt: skip
    other: list[dict[str, Any]] = [
        {"train__batch_size": 3}, {"train__resolution": 128}, {"method__rank": 3}, {"optim__ema": True},
        {"train__checkpointing": "on"}, {"optim__name": "adafactor"}, {"sample__prompts": []},
        {"sample__width": 128}, {"train__batch_parts": 2}, {"data__cache_latents": "off"},
        {"train__precision": "bf16"}, {"optim__accumulation": 2},
    ]  # fmt: skip
    assert {measured.key(plan_of(trainer, **changes)) for changes in same} == {own}
    keys = [measured.key(plan_of(trainer, **changes)) for changes in other]
    assert len({own, *keys}) == 1 + len(other)


def test_every_field_of_a_plan_matters_or_is_known_not_to() -> None:
    """A new way to save memory that nobody thought of here would mix up measurements."""
    elsewhere = {"config", "facts", "resolutions", "buckets", "accumulation"}  # told in parts of their own
    follows = {"placements", "lrs", "choices", "advice"}
    durations = {
        "num_images", "num_validation", "num_class_images", "images_per_epoch", "micro_batches",
        "steps_per_epoch", "total_steps", "warmup_steps", "encoder_steps", "sample_every", "checkpoint_every",
        "validate_every", "revision", "lr_scale", "skipped", "first_total_steps",
    }  # fmt: skip
    known = elsewhere | follows | durations | set(measured._MATTERS)
    assert {field.name for field in fields(Plan)} == known


def made(phases: dict[str, int], **more: Any) -> Measured:
    return Measured(dict(phases), {phase: 2 * size for phase, size in phases.items()}, 1000, **more)


def test_measurements_are_found_again_by_card_and_model(trainer: Trainer) -> None:
    home, plan, card = trainer.workspace, plan_of(trainer), imagined(8, "Card A")
    other, ledger = plan_of(trainer, train__batch_size=3), memory.estimate(plan)
    assert measured.load(plan, card, home) == Kept("Card A", plan.facts.path)
    one = measured.keep(plan, card, home, made({"train": 5000}), ledger)
    two = measured.keep(other, card, home, made({"train": 9000}, ended="sample"), ledger)
    kept = measured.load(plan, card, home)
    assert (kept.of(plan), kept.of(other)) == (one, two) and kept.card == "Card A"
    again = measured.keep(plan, card, home, made({"train": 6000}), ledger)
    assert measured.load(other, card, home).of(plan) == again != one
    assert not measured.load(plan, imagined(8, "Card B"), home).found
    elsewhere = replace(plan, facts=replace(plan.facts, path="/another/model"))
    assert not measured.load(elsewhere, card, home).found


def test_a_file_of_another_version_counts_as_none(trainer: Trainer) -> None:
    plan = plan_of(trainer)
    file = measured.file_for(plan, CPU_ONLY, trainer.workspace)
    file.parent.mkdir(parents=True)
    file.write_text('{"what": "is this"}', encoding="utf-8")
    assert not measured.load(plan, CPU_ONLY, trainer.workspace).found


def test_what_is_taken_from_the_card_is_told_where_it_is_known(trainer: Trainer) -> None:
    """Else the tensors are held against the estimate of the tensors, without what CUDA takes beside."""
    ledger = memory.estimate(plan_of(trainer))
    extra = memory.Row("", "train", "overhead", 7000)
    ledger = replace(ledger, rows=(*ledger.rows, extra), unknown=("sample",))
    phases = {"train": 5000, "sample": 4000}
    tensors, whole = (
        {line.what: line for line in measured.lines(made(phases, context=context), ledger)}
        for context in (0, 300)
    )
    assert (tensors["train"].measured, whole["train"].measured) == (5000, 2 * 5000 + 300)
    assert tensors["sample"].estimated is None
    assert (whole["train"].estimated or 0) - (tensors["train"].estimated or 0) == 7000


def kept_with(*errors: float, ended: str = "") -> Kept:
    found = {
        str(number): Measurement(
            "2026-11-22", "a plan", Measured(ended=ended), (Line("train", 1000, round(1000 + 1000 * error)),)
        )
        for number, error in enumerate(errors)
    }
    return Kept("a card", "a model", found)


def test_how_far_the_estimate_can_be_trusted_is_the_worst_that_was_seen() -> None:
    assert measured.trust(kept_with()) == ""
    assert measured.trust(kept_with(0.5, ended="train")) == "", "what ran out of memory says nothing"
    assert "right to within 1 %" in measured.trust(kept_with(0.001))
    assert "with one plan" in measured.trust(kept_with(0.03))
    words = measured.trust(kept_with(0.03, -0.08, 0.01))
    assert "3 plans" in words and "at most 8 % too low" in words


# the process


def test_a_step_can_be_stopped(trainer: Trainer) -> None:
    heard, hand = threading.Event(), child.Hand(lambda words: heard.set())
    stopper = threading.Thread(target=lambda: (heard.wait(60), hand.stop()))
    stopper.start()
    with pytest.raises(child.Stopped):
        child.dry(plan_of(trainer), hand)
    stopper.join()
    with pytest.raises(child.Stopped):  # and nothing begins after that
        child.dry(plan_of(trainer), hand)


def test_a_process_ends_with_its_input(trainer: Trainer) -> None:
    """Nothing goes on working once the app is gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdtrainer", "bench", "cell"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=PROJECT,
    )  # fmt: skip
    assert process.stdin and process.stdout
    plan = child._PLAN.dump_python(plan_of(trainer), mode="json")
    process.stdin.write(json.dumps({"work": "dry", "plan": plan}) + "\n")
    process.stdin.flush()
    assert "said" in json.loads(process.stdout.readline())
    process.stdin.close()
    began = time.monotonic()
    assert process.wait(20) == 1 and time.monotonic() - began < 10
    process.stdout.close()


@pytest.mark.slow
def test_the_command_line_measures_what_was_estimated_and_keeps_it(
    trainer: Trainer, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(trainer.workspace.root))
    method = {"kind": "full", "train_text_encoder": True}
    config = trainer.config(method=method, sample__prompts=[], data__cache_latents="off", optim__ema=True)
    configs.save(config, tmp_path / "run.toml")
    assert main(["measure", str(tmp_path / "run.toml"), "train.checkpointing=on"]) == 0
    said = capsys.readouterr()
    file = Path(said.out.splitlines()[-1])
    assert file.is_relative_to(trainer.workspace.root) and not trainer.workspace.runs.exists()
    assert "training" in said.out and "Measured on this computer" in said.out
    assert "Taking a training step" in said.err
    (kept,) = json.loads(file.read_text(encoding="utf-8"))["found"].values()
    weights, train = (Line(**line) for line in kept["lines"])
    assert (weights.what, train.what) == ("weights", "train")
    assert abs(weights.error) < 0.01 and abs(train.error) < 0.05


@pytest.mark.parametrize(
    ("answer", "code"), [(lambda: Measured(ended="train", weights=5), 0), (child.Failed("broke"), 1)]
)
def test_the_command_line_tells_what_went_wrong(
    trainer: Trainer, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    answer: Callable[[], Measured] | Exception, code: int,
) -> None:  # fmt: skip
    def work(plan: Plan, hand: child.Hand) -> Measured:
        if isinstance(answer, Exception):
            raise answer
        return answer()

    monkeypatch.setattr(child, "look", lambda: {"device": "cpu"})
    monkeypatch.setattr(child, "machine_of", lambda seen: CPU_ONLY)
    monkeypatch.setattr(child, "dry", work)
    configs.save(trainer.config(), tmp_path / "run.toml")
    assert main(["measure", str(tmp_path / "run.toml")]) == code
    said = capsys.readouterr()
    assert ("ran out while training" in said.out) if code == 0 else ("broke" in said.err)
    assert main(["measure", str(tmp_path / "no-such.toml")]) == 2
