"""The memory bench: what it measures is what the ledger promised, and it goes on after what goes wrong."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sdtrainer import families
from sdtrainer.__main__ import main
from sdtrainer.bench import cell as cells_work
from sdtrainer.bench import cells, child, course, drawing, models, report, rows
from sdtrainer.bench.cells import Cell
from sdtrainer.families import BaseSection
from sdtrainer.hardware import CPU_ONLY, GIB, imagined
from sdtrainer.section import UserError

Output = pytest.CaptureFixture[str]
PARAMETERS = {
    "SD 1.5": {"denoiser": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "SD 2.1": {"denoiser": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "SDXL": {
        "denoiser": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    },
}
"""Of the published weights."""


@pytest.fixture(autouse=True)
def own_tables(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that tests make are kept between them, apart from those of this machine."""
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(tmp_path_factory.getbasetemp() / "tables"))


def tiny(base: Path, **changes: Any) -> Cell:
    given: dict[str, Any] = {"method": {"kind": "lora", "rank": 4}, "resolution": 128, "batch_size": 2}
    return Cell(str(base), **(given | {"precision": "fp32"} | changes))


# the grid


@pytest.mark.parametrize("model", models.MODELS)
def test_models_have_the_parameters_of_the_published_ones(model: str, tmp_path: Path) -> None:
    facts = families.recognise(BaseSection(path=str(models.write(model, tmp_path / "model"))))
    modules = families.family_of(facts).skeleton(facts)
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    assert counts == PARAMETERS[model]


def test_every_run_of_the_grid_can_be_planned_and_leaves_little_to_chance(tmp_path: Path) -> None:
    grid = cells.ON_A_CARD + cells.ON_A_PROCESSOR
    assert len({cell.name for cell in grid}) == len(grid) > 30
    decided = {"data.cache_latents", "data.cache_text", "data.trigger", "optim.lr"}
    for number, cell in enumerate(grid):
        plan = cell.draft(tmp_path / str(number), imagined(80)).plan
        assert {choice.path for choice in plan.choices if "." in choice.path} <= decided, cell.name
        assert plan.batch_size == cell.batch_size and plan.micro_batches == 1
        assert list(plan.buckets) == [f"{cell.resolution} x {cell.resolution}"]


def test_runs_are_chosen_by_words_of_their_names() -> None:
    chosen = cells.choose(cells.ON_A_CARD, ["LoRA", "2.1"])
    assert chosen and all("SD 2.1 lora" in cell.name for cell in chosen)
    with pytest.raises(UserError, match="no cell is called so"):
        cells.choose(cells.ON_A_CARD, ["lora", "no such word"])


# one run


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw8bit"},
        {
            "method": {"kind": "full", "train_text_encoder": True},
            "checkpointing": True,
            "more": {"optim.ema": True, "optim.accumulation": 2},
        },
    ],
    ids=["lora", "full"],
)
def test_what_is_measured_is_what_was_estimated(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    one = tiny(base, **changes)
    measured = cells_work.measure(one, tmp_path / "measured", CPU_ONLY)
    predicted = cells_work.predict(one, tmp_path / "predicted", CPU_ONLY)
    found = {row.kind: row for row in rows.rows({one.name: {"measured": measured, "predicted": predicted}})}
    assert {"train", "sample", "weights", "optimizer"} <= found.keys() and not measured["ended"]
    assert abs(found["train"].error) < rows.WANTED and abs(found["sample"].error) < rows.WANTED
    assert found["optimizer"].error == 0
    assert abs(found["weights"].error) < 0.01  # the positions of the text encoder are no weights


def test_weights_by_chance_are_those_of_the_model_and_stay_the_same(base: Path) -> None:
    facts = families.recognise(BaseSection(path=str(base)))
    family = families.family_of(facts)
    dtypes = dict.fromkeys(facts.parts, torch.float32)
    real = family.load(facts, facts.parts, dtypes)
    one, other = (
        models.with_random_weights(family, "cpu").load(facts, facts.parts, dtypes) for _ in range(2)
    )
    for part in facts.parts:
        shapes = {name: value.shape for name, value in real.modules[part].state_dict().items()}
        made = one.modules[part].state_dict()
        assert {name: value.shape for name, value in made.items()} == shapes
        assert all(torch.equal(value, other.modules[part].state_dict()[name]) for name, value in made.items())
        assert not any(p.requires_grad or p.is_meta for p in one.modules[part].parameters())
    tokens = family.tokenize(one, ["a zib disc"], 1)
    assert family.encode_text(one, tokens, 0, torch.zeros(1, 6)).prompt_embeds.isfinite().all()


def test_running_out_of_memory_is_a_finding(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(self: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate more")

    monkeypatch.setattr(cells_work.Steps, "take", take)
    one = tiny(base)
    measured = cells_work.measure(one, tmp_path, CPU_ONLY)
    assert measured["ended"] == "train" and set(measured["allocated"]) == {"cache"}
    page = report.as_markdown(kept({one.name: whole(measured=measured)}), "plot.svg")
    assert f"{one.name}: out of memory (while training)" in page


# the course


def kept(found: dict[str, Any]) -> course.Kept:
    seen = asdict(CPU_ONLY) | {"cuda": ""}
    return {"circumstances": course.circumstances(seen), "cells": found}


def whole(predicted_bytes: int = 2 * GIB, **changes: Any) -> dict[str, Any]:
    """A cell as the file has it."""
    measured = {
        "allocated": {"cache": GIB, "train": 2 * GIB, "sample": GIB}, "reserved": {"train": 3 * GIB},
        "weights": GIB, "optimizer": 0, "context": GIB, "ended": "",
    }  # fmt: skip
    held = [
        ("train", "weights", GIB),
        ("train", "activations", predicted_bytes - GIB),
        ("cache", "weights", GIB),
    ]
    held += [("train", "overhead", 2 * GIB), ("sample", "weights", 2 * GIB)]
    ledger = [{"part": "", "phase": phase, "what": what, "bytes": size} for phase, what, size in held]
    return {"measured": measured, "predicted": {"rows": ledger, "unknown": []}, "failed": ""} | changes


class Machine:
    """Stands for the processes: notes what was asked, and fails where told."""

    def __init__(self, failing: str = "") -> None:
        self.asked: list[str] = []
        self.failing = failing

    def measure(self, cell: Cell, machine: object) -> dict[str, Any]:
        self.asked.append(cell.name)
        if self.failing and self.failing in cell.name:
            raise child.Failed("took more than 1 s")
        return whole()["measured"]

    def predict(self, cell: Cell, machine: object) -> dict[str, Any]:
        return whole()["predicted"]


def test_a_broken_bench_goes_on_where_it_stopped() -> None:
    grid, found = cells.ON_A_CARD[:3], kept({})
    first = Machine()
    assert next(course.run(grid, found, False, first.measure, first.predict)) == grid[0].name
    second = Machine(failing=grid[1].name)
    assert list(course.run(grid, found, False, second.measure, second.predict)) == [c.name for c in grid[1:]]
    assert found["cells"][grid[1].name]["failed"] == "measured: took more than 1 s"
    third = Machine()
    assert list(course.run(grid, found, False, third.measure, third.predict)) == [grid[1].name] == third.asked
    assert not found["cells"][grid[1].name]["failed"]
    assert [*course.run(grid, found, False, third.measure, third.predict)] == []
    assert [*course.run(grid, found, True, third.measure, third.predict)] == [c.name for c in grid]


def test_estimates_are_made_anew_without_measuring() -> None:
    grid = cells.ON_A_CARD[:2]
    found = kept({grid[0].name: whole(predicted={"rows": [], "unknown": ["train"]})})
    assert list(course.estimate(grid, found, Machine().predict)) == [grid[0].name]
    assert found["cells"][grid[0].name] == whole()


def test_a_process_that_takes_too_long_or_fails_says_so(base: Path) -> None:
    with pytest.raises(child.Failed, match="took more than 0 s"):
        child.measure(tiny(base), CPU_ONLY, timeout=0.01)
    with pytest.raises(child.Failed, match="nothing that can be trained was found"):
        child.measure(tiny(Path("/no/such/model")), CPU_ONLY)


# what is said


def test_errors_are_parts_of_the_truth() -> None:
    found = {row.kind: row for row in rows.rows({"one": whole(predicted_bytes=3 * GIB)})}
    assert found["train"].error == pytest.approx(0.5)
    assert found["cache"].error == 0 and found["sample"].error == 1.0 and found["weights"].error == 0
    assert found[rows.ON_THE_CARD].predicted == 5 * GIB and found[rows.ON_THE_CARD].measured == 4 * GIB
    assert "optimizer" not in found, "nothing is held, so nothing can be wrong by a part of it"
    unknown = whole() | {"predicted": {**whole()["predicted"], "unknown": ["train"]}}
    assert "train" not in {row.kind for row in rows.rows({"one": unknown})}


def test_the_summary_counts_what_is_good_enough() -> None:
    sizes = {"good": 2.05, "better": 2.0, "bad": 1.8}
    found = rows.rows({name: whole(predicted_bytes=int(size * GIB)) for name, size in sizes.items()})
    (train,) = [summary for summary in rows.summaries(found) if summary.kind == "train"]
    assert (train.count, train.within, train.worst.cell) == (3, 2, "bad")
    assert train.median == pytest.approx(0.025, abs=1e-6)


def test_what_was_found_is_written_to_be_read_and_read_again(tmp_path: Path) -> None:
    found = kept({"good": whole(), "lost": whole(measured=None, failed="measured: took more than 300 s")})
    page = report.save(tmp_path / "memory-cpu.json", found)
    assert course.read(page.with_suffix(".json")) == json.loads(json.dumps(found))
    text = page.read_text(encoding="utf-8")
    assert "| good | 2.00 GiB | 2.00 GiB | +0.0 % |" in text
    assert "lost: failed, measured: took more than 300 s" in text
    drawn = ET.parse(page.with_suffix(".svg")).getroot()
    titles = [title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(titles) == ["good, cache: +0.0 %", "good, sample: +100.0 %", "good, train: +0.0 %"]


def test_a_point_on_the_diagonal_is_an_exact_estimate() -> None:
    found = [rows.Row("a", "train", 3 * GIB, 3 * GIB), rows.Row("b", "train", GIB, 2 * GIB)]
    drawn = ET.fromstring(drawing.scatter(found, "Title"))
    dots = [d for d in drawn.iter("{http://www.w3.org/2000/svg}circle") if len(d)]
    exact, off = ((float(d.get("cx", 0)) - drawing.LEFT, float(d.get("cy", 0)) - drawing.TOP) for d in dots)
    assert exact[0] == pytest.approx(drawing.SIDE - exact[1], abs=0.1)
    assert off[0] < drawing.SIDE - off[1], "more was held than estimated: above the diagonal"


def test_without_a_card_the_bench_says_so(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "look", lambda: asdict(CPU_ONLY) | {"cuda": ""})
    assert main(["bench", "memory"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no NVIDIA card" in line and "--device cpu" in line


def test_the_bench_from_the_command_line(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine()
    monkeypatch.setattr(child, "look", lambda: asdict(imagined(16, "A Card")) | {"cuda": "13.0"})
    monkeypatch.setattr(child, "measure", machine.measure)
    monkeypatch.setattr(child, "predict", machine.predict)
    assert main(["bench", "memory", "--only", "lora,768px,SD 1.5", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'memory-a-card.md'}\n"
    assert len(machine.asked) == 1 and f"[1/1] {machine.asked[0]}: +0.0 %" in said.err
    assert main(["bench", "memory", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(cells.ON_A_CARD)
    assert main(["bench", "memory", "--estimate", str(tmp_path / "nothing.json")]) == 2
