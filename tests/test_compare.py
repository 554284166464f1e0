"""The comparison of methods: what it concludes from numbers, what it writes, and that it goes on after a
kill.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdtrainer import config as configs
from sdtrainer.__main__ import main
from sdtrainer.compare import child, claims, course, numbers, pictures, report, sheet
from sdtrainer.compare.contestants import CONTESTANTS, choose
from sdtrainer.compare.course import Course, Outcome, Scale
from sdtrainer.compare.numbers import COLUMNS, Cost, Losses, Named, Numbers, Score, Summary, Trial
from sdtrainer.compare.progress import Progress
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.methods import METHODS, method_of
from sdtrainer.presets import preset
from sdtrainer.section import UserError, override
from sdtrainer.workspace import RunFolder, Workspace

BASE = Losses(concept=0.5, others=0.2)
TINY = Scale(seeds=1, has_grid=False, num_robots=1, num_others=2, drawing_steps=1)

three = st.tuples(*[st.floats(-100, 100)] * 3).map(Numbers)


def trial(seed: int = 1, concept: float = 0.4, robots: float = 1.0, **changes: Any) -> Trial:
    """A trial that went well."""
    done = Trial(
        1e-3, seed, f"run-{seed}", Cost(1000, 2_000_000, 3_000_000_000, 0.25), Losses(concept, 0.25),
        Named(robots, 0.5, 0.25),
    )  # fmt: skip
    return replace(done, **changes)


def summaries(**columns: Mapping[str, tuple[float, ...]]) -> dict[str, Summary]:
    """Contestants by name with some of their numbers."""
    return {
        name: Summary(name, name, 1e-3, {column: Numbers(values) for column, values in numbers_.items()})
        for name, numbers_ in columns.items()
    }


def decision(text: str, known: Mapping[str, Summary]) -> str:
    (claim,) = [claim for claim in claims.CLAIMS if text in claim.text]
    return claims.decide_one(claim, known).decision


def around(mean: float, step: float = 0.01) -> tuple[float, ...]:
    return (mean - step, mean, mean + step)


# what follows from numbers


@given(three, three)
def test_what_is_smaller_one_way_is_larger_the_other_way(one: Numbers, other: Numbers) -> None:
    opposite = {"confirmed": "contradicted", "contradicted": "confirmed", "not separable": "not separable"}
    assert claims.compare(one, other) == opposite[claims.compare(other, one)]


@given(three, st.floats(-1, 1))
def test_a_gap_within_the_spreads_is_not_separable(one: Numbers, part: float) -> None:
    shifted = one.mapped(lambda value: value + part * 1.9 * one.spread)
    assert claims.compare(one, shifted) == "not separable"


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_one_seed_separates_nothing(one: float, other: float) -> None:
    assert claims.compare(Numbers((one,)), Numbers((other,))) == "not separable"


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_numbers_without_spread_are_told_apart_exactly(one: float, other: float) -> None:
    """File sizes are the same for every seed."""
    expected = "not separable" if one == other else "confirmed" if one < other else "contradicted"
    assert claims.compare(Numbers((one, one)), Numbers((other, other))) == expected


def test_initial_text_is_decided_both_ways() -> None:
    better, worse = {"learnt_loss": around(0.6)}, {"learnt_loss": around(0.9)}
    for begun, random, expected in (
        (better, worse, "confirmed"),
        (worse, better, "contradicted"),
        (worse, {"learnt_loss": around(0.905)}, "not separable"),
    ):
        known = summaries(textual_inversion=begun, textual_inversion_random=random)
        assert decision("good initial text", known) == expected


def test_a_claim_holds_only_if_all_of_it_holds() -> None:
    """The class images must keep more both for the whole model and for LoRA."""
    less, more = {"kept_loss": around(1.1)}, {"kept_loss": around(1.5)}
    known = summaries(full=more, dreambooth=less, lora=more, lora_prior=less)
    assert decision("Prior preservation", known) == "confirmed"
    assert decision("Prior preservation", known | summaries(lora_prior=more)) == "not separable"
    assert decision("Prior preservation", known | summaries(lora=less, lora_prior=more)) == "contradicted"


@pytest.mark.parametrize(
    ("lora", "expected"), [(0.52, "confirmed"), (0.7, "contradicted"), (0.551, "not separable")]
)
def test_nearly_is_nine_tenths_of_what_full_fine_tuning_gains(lora: float, expected: str) -> None:
    """From 1 down to 0.5 is a gain of 0.5; nine tenths of it end at 0.55."""
    known = summaries(lora={"learnt_loss": around(lora)}, full={"learnt_loss": around(0.5)})
    assert decision("nearly as good", known) == expected


def test_what_carries_over_is_decided_for_both() -> None:
    own, none = (0.9, 1.0, 1.0), (0.0, 0.0, 0.1)
    carries, stays = {"learnt": own, "transfer": own}, {"learnt": own, "transfer": none}
    unlearnt = {"learnt": (0.0, 0.0, 0.0), "transfer": (0.0, 0.0, 0.0)}
    for embedding, network, expected in (
        (carries, stays, "confirmed"),
        (carries, carries, "contradicted"),
        (stays, stays, "contradicted"),
        (unlearnt, stays, "not separable"),
    ):
        known = summaries(textual_inversion=embedding, hypernetwork=network)
        assert decision("carries over", known) == expected


def test_dreambooth_must_learn_best_and_be_heavy() -> None:
    light = {"learnt_loss": around(0.8), "file": (1e6,) * 3, "memory": around(1e9, 1e6)}
    heavy = {"learnt_loss": around(0.5), "file": (2e7,) * 3, "memory": around(2e9, 1e6)}
    known = summaries(dreambooth=heavy, lora=light, textual_inversion=light)
    assert decision("learns best", known) == "confirmed"
    better = summaries(lora=light | {"learnt_loss": around(0.3)})
    assert decision("learns best", known | better) == "contradicted"


def test_textual_inversion_must_be_smallest_and_learn_less() -> None:
    """What was not run, as here full fine-tuning, decides nothing."""
    tiny = {"learnt_loss": around(0.9), "learnt": (0.4, 0.5, 0.4), "file": (4e3,) * 3}
    lora = {"learnt_loss": around(0.6), "learnt": (1.0, 1.0, 0.9), "file": (2e7,) * 3}
    known = summaries(textual_inversion=tiny, textual_inversion_free=tiny, lora=lora)
    assert decision("tiny but limited", known) == "confirmed"
    smaller = summaries(hypernetwork={"file": (1e3,) * 3})
    assert decision("tiny but limited", known | smaller) == "contradicted"


def test_claims_on_what_was_not_run_are_not_measured() -> None:
    empty = {"full": Summary("full", "full", 1.0), **summaries(lora={"learnt_loss": around(1)})}
    for known in ({}, empty):
        assert {decided.decision for decided in claims.decide(known)} == {"not measured"}
    (nearly,) = [decided for decided in claims.decide(empty) if "nearly" in decided.text]
    assert nearly.findings[0].words == "without full"


def test_claims_speak_of_contestants_and_columns_that_exist() -> None:
    known = {contestant.name for contestant in CONTESTANTS}
    assert claims.CLAIMS and all(set(claim.needs) <= known for claim in claims.CLAIMS)
    values = {column.name: around(1.0) for column in COLUMNS}
    decided = claims.decide(summaries(**dict.fromkeys(known, values)))
    assert all(claim.findings and claim.decision != "not measured" for claim in decided)


# the contestants


def test_an_unknown_method_is_answered_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--methods", "lora,dora"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'dora'" in line and all(contestant.name in line for contestant in CONTESTANTS)


def test_contestants_are_chosen_once_in_the_order_of_the_table() -> None:
    assert choose("all") == CONTESTANTS
    assert [c.name for c in choose("full, lora,full")] == ["lora", "full"]


def test_every_method_takes_part() -> None:
    assert {contestant.settings["method.kind"] for contestant in CONTESTANTS} == set(METHODS)


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda c: c.name)
def test_every_contestant_can_be_trained(contestant: Any) -> None:
    from sdtrainer import families

    values = override(preset("starter").values, course.SHARED | dict(contestant.settings))
    config = configs.build(values)
    method_of(config.method.kind).suits(config.method, families.recognise(config.base))
    low, usual, high = contestant.rates
    assert 0 < low < usual < high < 1


def test_another_base_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "base.path=my-model"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "base.path is 'my-model'" in line and "starter" in line


# what is written


def outcome(*scores: Score) -> Outcome:
    return Outcome(180, 4, scores, BASE, Named(0.0, 1.0, None), Named(0.0, 0.9, None), ("a robot", "a dog"))


def score(name: str, *runs: Trial, grid: tuple[Trial, ...] = ()) -> Score:
    return Score(name, name, grid or runs[:1], runs)


def told(scale: Scale) -> report.Circumstances:
    return report.circumstances(CPU_ONLY, {}, scale)


def test_losses_are_told_against_the_base_model() -> None:
    found = numbers.summary(score("lora", trial(1, concept=0.4), trial(2, concept=0.3)), BASE)
    assert found["learnt_loss"].values == pytest.approx((0.8, 0.6))
    assert found["kept_loss"].values == pytest.approx((1.25, 1.25))


def test_the_best_learning_rate_is_never_one_that_failed() -> None:
    failed = Trial(1e-2, 1, "failed", failure="The loss stopped being a number.")
    good, better = trial(concept=0.4), trial(concept=0.3)
    assert numbers.best([failed, good, better]) is better
    assert numbers.best([failed, good]) is good


def test_the_report_has_a_cell_for_every_number() -> None:
    whole = trial(named=Named(1.0, 0.5, None))
    shown = outcome(score("lora", trial(1), trial(2, concept=0.3)), score("full", whole, whole))
    text = report.as_markdown(shown, told(Scale()))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    table = rows[: 2 + 1 + 2]
    assert {row.count("|") for row in table} == {len(COLUMNS) + 2}
    assert "-30.0 % ± 14.1" in table[-2] and "± nan" not in text
    assert table[-1].endswith("| – |")
    assert all(f"**{column.title}**: " in text for column in COLUMNS)
    assert all(claim.text in text for claim in claims.CLAIMS)
    assert "720 (180 steps of 4" in text


def test_a_contestant_that_failed_is_named_with_the_reason() -> None:
    failed = Trial(1e-2, 1, "failed", failure="The loss stopped being a number.")
    shown = outcome(score("lora", trial()), score("loha", failed, grid=(failed, failed)))
    text = report.as_markdown(shown, told(course.QUICK))
    assert "loha failed: The loss stopped being a number." in text
    assert report.as_json(shown, told(course.QUICK))["contestants"]["loha"]["numbers"] == {}


def test_the_numbers_come_back_out_of_the_json(tmp_path: Path) -> None:
    shown = outcome(score("lora", trial(1), trial(2, concept=0.3), grid=(trial(1), trial(1, concept=0.6))))
    report.save(tmp_path, shown, told(Scale()))
    found = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    lora = found["contestants"]["lora"]
    assert lora["numbers"]["learnt_loss"]["min"] == pytest.approx(0.6)
    assert [one["losses"]["concept"] for one in lora["grid"]] == [0.4, 0.6]
    assert found["circumstances"]["versions"]["torch"]


def test_the_sheet_has_a_picture_in_every_place(tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "green")):
        Image.new("RGB", (128, 128), colour).save(tmp_path / f"{number:02d}.png")
    page = sheet.lay_out([("one", tmp_path), ("two", tmp_path)], ("a dog", "a cat"))
    colours = [colour for _, colour in page.getcolors(1 << 20) or () if colour in ((255, 0, 0), (0, 128, 0))]
    assert len(colours) == 2
    half = page.crop((0, 0, page.width, page.height // 2))
    assert {(255, 0, 0), (0, 128, 0)} <= {colour for _, colour in half.getcolors(1 << 20) or ()}


def test_brown_pictures_are_the_same_pictures_in_brown() -> None:
    blue = Image.new("RGB", (8, 8), (40, 80, 200))
    red, _, bluish = pictures.browned(blue).getpixel((0, 0))  # type: ignore[misc]
    assert red > 40 and bluish < 200
    assert pictures.browned(blue).size == blue.size


# the course


class Killed(Exception):
    """Leaves a comparison where it stands."""


def trainer(trained: list[str], stop_at: str = "") -> course.Train:
    """Trains in this process, noting what; leaves at the run whose name begins with `stop_at`."""
    from sdtrainer.training import run as training
    from sdtrainer.training.control import Control

    def train(folder: RunFolder, home: Workspace, tell: child.Tell) -> int:
        if stop_at and folder.name.startswith(stop_at):
            raise Killed
        trained.append(folder.name.partition("-")[0])
        with suppress(UserError):
            for _ in training.record(folder, training.train(folder, home, Control())):
                tell(0.5)
        return 1_000_000

    return train


def compared(
    home: Path, trained: list[str], stop_at: str = "", saved: list[Outcome] | None = None
) -> Outcome:
    settings = ["train.steps=2", "train.batch_size=1"]
    config = configs.build(configs.with_changes(preset("starter").values, settings))
    progress = Progress(io.StringIO(), 10)
    run = Course(config, TINY, home, progress, trainer(trained, stop_at))
    return run.run(choose("lora,textual_inversion"), (saved if saved is not None else []).append)


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_with_the_same_numbers(tmp_path: Path) -> None:
    trained: list[str] = []
    saved: list[Outcome] = []
    with pytest.raises(Killed):
        compared(tmp_path, trained, stop_at="textual_inversion", saved=saved)
    assert trained == ["second", "lora"]
    outcome = compared(tmp_path, trained)
    assert trained == ["second", "lora", "textual_inversion"]
    assert outcome.scores[:1] == saved[0].scores
    assert compared(tmp_path, trained) == outcome
    assert len(trained) == 3
    for one in outcome.scores:
        (run,) = one.completed
        assert run.cost and run.losses and run.named and run.named.transfer is not None
        assert run.cost.file_bytes > 1000 and run.cost.trainable > 100
        assert run.losses.concept != outcome.base_losses.concept
    assert outcome.scores[0].completed[0].cost.trainable > outcome.scores[1].completed[0].cost.trainable  # type: ignore[union-attr]
    (root,) = tmp_path.iterdir()
    sheet.save(root, root / "runs", outcome)
    assert Image.open(root / "compare.png").height > 3 * 128


@pytest.mark.slow
def test_a_quick_comparison_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--quick", "--methods", "lora,hypernetwork", "--runs", str(tmp_path), "train.steps=4"]
    assert main(words) == 0
    text = Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")
    assert "| LoRA |" in text and "| Hypernetwork |" in text
    found = json.loads(next(tmp_path.rglob("compare.json")).read_text(encoding="utf-8"))
    assert found["contestants"]["lora"]["runs"][0]["cost"]["peak_bytes"] > 100_000_000
