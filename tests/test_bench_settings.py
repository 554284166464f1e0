"""Settings compared: which are tried, what follows from the numbers, and what is kept for the page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Trainer
from hypothesis import given
from hypothesis import strategies as st

from sdtrainer import config as configs
from sdtrainer import planner
from sdtrainer.__main__ import main
from sdtrainer.bench import child, drawing, outcomes, setting, settings
from sdtrainer.bench.outcomes import Comparison, Outcome, Setting, Tried
from sdtrainer.hardware import CPU_ONLY, imagined
from sdtrainer.plan import Plan
from sdtrainer.section import UserError

OWN = Setting("fp32", 512, False, "adamw", True)
Output = pytest.CaptureFixture[str]


def tried(seconds: float = 1.0, peak: int = 1000, spread: float = 0.0, **changes: Any) -> Tried:
    return Tried(replace(OWN, **changes), Outcome(seconds, spread, 1 / seconds, peak, 0.1, 32))


def decision(words: str, *rows: Tried) -> str:
    (one,) = [c for c in outcomes.conclusions(rows) if words in c.text]
    assert one.words, "a conclusion gives its numbers or its reason"
    return one.decision


# what follows from numbers


@pytest.mark.parametrize(
    ("seconds", "peak", "expected"),
    [
        (0.5, 500, "confirmed"),
        (0.5, 900, "contradicted"),
        (1.5, 500, "contradicted"),
        (0.98, 500, "not measurable here"),
        (0.98, 950, "contradicted"),
    ],
)
def test_mixed_precision_must_save_half_of_both(seconds: float, peak: int, expected: str) -> None:
    assert decision("Mixed", tried(), tried(seconds, peak, precision="bf16")) == expected


def test_checkpointing_must_save_memory() -> None:
    for peak, expected in ((600, "confirmed"), (1000, "contradicted"), (1100, "contradicted")):
        assert decision("checkpointing", tried(), tried(1.3, peak, checkpointing=True)) == expected


def test_a_lower_resolution_must_save_time_wherever_it_was_tried() -> None:
    low, lower = tried(0.6, resolution=384), tried(0.3, resolution=256)
    assert decision("resolution", tried(), low, lower) == "confirmed"
    assert decision("resolution", tried(), low, replace(lower, outcome=tried(0.7).outcome)) == "contradicted"


@given(st.floats(0.2, 5.0), st.floats(0.0, 1.0))
def test_times_within_their_spreads_decide_nothing(seconds: float, spread: float) -> None:
    one, other = tried(1.0, spread=spread), tried(seconds, spread=spread, resolution=256)
    expected = "confirmed" if seconds < 1 else "contradicted"
    if abs(1 - seconds) < max(outcomes.NOISE, 2 * spread):
        expected = "not measurable here"
    assert decision("resolution", one, other) == expected


def test_only_what_differs_in_one_thing_is_compared() -> None:
    """A smaller picture in 16 bit says nothing of either."""
    rows = (tried(), tried(0.2, 200, precision="bf16", resolution=256))
    assert {one.decision for one in outcomes.conclusions(rows)} == {"not measurable here"}


def test_what_could_not_be_trained_is_the_reason() -> None:
    failed = Tried(replace(OWN, precision="bf16"), Outcome(failure="The card's memory does not suffice."))
    (mixed, *_) = outcomes.conclusions((tried(), failed))
    assert mixed.decision == "not measurable here"
    assert "bf16, 512 px, adamw: The card's memory does not suffice." in mixed.words


# which are tried


@pytest.fixture
def plan(trainer: Trainer) -> Plan:
    config = trainer.config(train__resolution=256)
    return planner.draft(config, trainer.workspace, CPU_ONLY).plan


def test_the_plans_own_settings_come_first_and_most_differ_in_one_thing(plan: Plan) -> None:
    found = settings.settings(plan, CPU_ONLY)
    assert found[0] == settings.setting_of(plan) and len(set(found)) == len(found)
    differing = [
        sum(a != b for a, b in zip(asdict(s).values(), asdict(found[0]).values(), strict=True)) for s in found
    ]
    assert differing.count(1) >= 7 and max(differing) == 2
    assert {s.resolution for s in found} == {256, 192, 128}


def test_every_usual_claim_can_be_decided_from_what_is_tried(plan: Plan) -> None:
    for machine in (CPU_ONLY, imagined(8), imagined(8, capability=(7, 5))):
        rows = [Tried(one, tried().outcome) for one in settings.settings(plan, machine)]
        texts = [" ".join(c.words) for c in outcomes.conclusions(rows)]
        assert all("than" in text for text in texts)


def test_a_card_without_bf16_is_not_asked_for_it(plan: Plan) -> None:
    found = settings.settings(plan, imagined(8, capability=(7, 5)))
    assert {one.precision for one in found} == {"fp32", "fp16"}


def test_every_setting_is_a_run_that_the_plan_takes_as_it_is(trainer: Trainer, plan: Plan) -> None:
    for one in settings.settings(plan, CPU_ONLY):
        config = configs.build(settings.values_of(plan, one))
        made = planner.draft(config, trainer.workspace, CPU_ONLY).plan
        assert settings.setting_of(made) == one
        assert not (made.config.sample.prompts or made.validate_every or made.checkpoint_every)
        assert "auto" not in {made.config.train.precision, made.config.optim.name}


# the course


class Runs:
    """Stands for the processes."""

    def __init__(self, **outcome: Any) -> None:
        self.asked: list[dict[str, Any]] = []
        self.outcome = asdict(replace(tried().outcome, **outcome))

    def __call__(self, values: dict[str, Any], images: int, home: Path) -> dict[str, Any]:
        self.asked.append(values)
        if values["optim"]["name"] == "adafactor":
            raise child.Failed("took more than 300 s")
        return self.outcome


def test_a_comparison_is_told_as_it_goes_and_kept(trainer: Trainer, plan: Plan) -> None:
    home, runs = trainer.workspace, Runs()
    assert settings.load(plan.config, home) is None
    progress = list(settings.compare(plan, CPU_ONLY, home, 8, runs))
    assert [p.done for p in progress] == list(range(len(runs.asked) + 1))
    assert progress[0].seconds_left is None and progress[-1].seconds_left == 0.0
    assert [len(p.found.rows) for p in progress] == [p.done for p in progress]
    found = progress[-1].found
    assert settings.load(plan.config, home) == found
    (failed,) = [row for row in found.rows if row.outcome.failure]
    assert failed.setting.optimizer == "adafactor" and "took more than 300 s" in failed.outcome.failure
    renamed = configs.build(configs.override(plan.config.values(), {"run.name": "other", "train.steps": "7"}))
    assert settings.load(renamed, home) == found
    other = configs.build(configs.override(plan.config.values(), {"method.rank": 3}))
    assert settings.load(other, home) is None


def test_a_comparison_that_is_broken_off_leaves_the_one_before(trainer: Trainer, plan: Plan) -> None:
    *_, whole = settings.compare(plan, CPU_ONLY, trainer.workspace, 8, Runs())
    again = settings.compare(plan, CPU_ONLY, trainer.workspace, 8, Runs(loss=9.0))
    next(again), next(again)
    again.close()
    assert settings.load(plan.config, trainer.workspace) == whole.found


def test_no_images_are_refused(trainer: Trainer, plan: Plan) -> None:
    with pytest.raises(UserError, match="--images is 0"):
        next(settings.compare(plan, CPU_ONLY, trainer.workspace, 0, Runs()))


def test_a_real_run_is_timed_and_counted(trainer: Trainer, plan: Plan) -> None:
    """Twice the picture takes more memory and sees as many images."""
    own = settings.setting_of(plan)
    small, large = (
        Outcome(
            **setting.measure(settings.values_of(plan, replace(own, resolution=side)), 8, trainer.workspace)
        )
        for side in (64, 128)
    )
    assert not small.failure and small.images == large.images >= 8
    assert 0 < small.peak_bytes < large.peak_bytes < 10 * small.peak_bytes
    assert small.seconds_per_step > 0 and small.loss is not None
    assert small.images_per_second == pytest.approx(plan.batch_size / small.seconds_per_step)


def test_what_cannot_be_trained_says_why(trainer: Trainer, plan: Plan) -> None:
    values = settings.values_of(plan, replace(settings.setting_of(plan), precision="fp16"))
    refused = Outcome(**setting.measure(values, 8, trainer.workspace))
    assert "Precision is fp16" in refused.failure and not refused.seconds_per_step


# what is said


def test_the_table_has_every_number_and_every_conclusion() -> None:
    rows = (tried(0.25, 3 * 2**30), Tried(OWN, Outcome(failure="Too little memory.")))
    found = Comparison("A Card", "2026-11-22", "as the card says", rows)
    text = outcomes.as_text(found)
    assert "0.250" in text and "3.00 GiB" in text and "Too little memory." in text
    assert all(claim.text in text for claim in outcomes.CLAIMS)
    told = json.loads(outcomes.as_json(found))
    assert told["rows"][0]["outcome"]["peak_bytes"] == 3 * 2**30 and len(told["conclusions"]) == 3
    drawn = ET.fromstring(drawing.bars(outcomes.times(found), "Seconds per step"))
    assert len([r for r in drawn.iter("{http://www.w3.org/2000/svg}rect") if r.get("rx")]) == 1


def test_the_longest_bar_is_the_largest_value() -> None:
    drawn = ET.fromstring(drawing.bars([("a", 1.0, "1"), ("b", 4.0, "4"), ("c", 2.0, "2")], "Title"))
    widths = [
        float(r.get("width", "0")) for r in drawn.iter("{http://www.w3.org/2000/svg}rect") if r.get("rx")
    ]
    assert widths[1] == 4 * widths[0] == 2 * widths[2]


def test_the_command_line_prints_a_table_and_draws_a_chart(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, trainer: Trainer, tmp_path: Path
) -> None:
    runs = Runs()
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(trainer.workspace.root))
    monkeypatch.setattr(child, "look", lambda: asdict(CPU_ONLY) | {"cuda": ""})
    monkeypatch.setattr(child, "setting", runs)
    configs.save(trainer.config(), tmp_path / "run.toml")
    words = [str(tmp_path / "run.toml"), "method.rank=3", "--json", "--picture", str(tmp_path / "bars.svg")]
    assert main(["bench", "settings", *words]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["rows"]) == len(runs.asked) == said.err.count("\n")
    assert all(values["method"]["rank"] == 3 for values in runs.asked)
    assert "fp32" in (tmp_path / "bars.svg").read_text(encoding="utf-8")
    assert main(["bench", "settings", "no-such.toml"]) == 2
