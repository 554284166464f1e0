"""T5: found with its words or left out with a sentence, kept in fewer bits, and dropped where nothing else
fits.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sd3 as published_sd3
import tiny
import torch
from conftest import Trainer
from huggingface_hub import constants
from PIL import ImageChops, ImageStat
from safetensors.torch import load_file, save_file
from test_sd3 import load, recognised
from test_sdxl_files import export

from sdtrainer import drawing, families, fitting, frozen, planner, result, storage
from sdtrainer.events import Finished, Said
from sdtrainer.families import BaseSection
from sdtrainer.formats import mmdit
from sdtrainer.hardware import CPU_ONLY, GIB, imagined
from sdtrainer.memory import estimate
from sdtrainer.plan import Plan
from sdtrainer.sample import Request
from sdtrainer.seams import DENOISER, T5, VAE, Parts
from sdtrainer.section import UserError
from sdtrainer.training import setup
from sdtrainer.training.quantized import quantise

CAPTIONS = ["a zib disc", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_sd3(tmp_path_factory.mktemp("models") / "sd3-t5", with_t5=True)


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    """The same model in a single file, T5 in it as the published ones have it: its words named once."""
    path = export(load(folder), folder.parent, "webui")
    inside = {mmdit.T5_PREFIX + k: v for k, v in load_file(folder / T5 / "model.safetensors").items()}
    inside.pop(f"{mmdit.T5_PREFIX}encoder.embed_tokens.weight", None)
    whole = folder.parent / "with-t5.safetensors"
    save_file(load_file(path) | inside, whole, _header(path))
    return whole


def _header(path: Path) -> dict[str, str]:
    """Without the hash, which is that of the file as it was."""
    from sdtrainer.formats.safetensors_file import read_header

    said = dict(read_header(path).metadata)
    return {key: value for key, value in said.items() if "hash" not in key}


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A computer on which nothing was downloaded."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def said_by(parts: Parts) -> torch.Tensor:
    family = families.family_of(parts.facts)
    with torch.no_grad():
        tokens = family.tokenize(parts, CAPTIONS, 1)
        return family.encode_text(parts, tokens, 0, torch.zeros(2, 6)).prompt_embeds


def nbytes(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


# -- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "tokenizer_3"])
def test_a_file_reads_with_t5_where_its_words_are_given(folder: Path, file: Path, where: str) -> None:
    parts = load(file, t5_words=str(folder / where))
    assert T5 in parts.facts.encoders and not parts.facts.note
    assert torch.equal(said_by(parts), said_by(load(folder)))
    assert sum(p.numel() for p in parts.modules[T5].parameters()) == sum(
        p.numel() for p in load(folder).modules[T5].parameters()
    ), "its words are used twice and kept once"


def test_words_that_were_downloaded_before_are_found(folder: Path, file: Path, empty_hub: Path) -> None:
    place = empty_hub / "models--stabilityai--stable-diffusion-3.5-medium"
    shutil.copytree(folder / "tokenizer_3", place / "snapshots" / "abc" / "tokenizer_3")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    assert T5 in recognised(file).encoders
    assert T5 not in recognised(file, t5="off").encoders


def test_without_words_a_file_is_trained_without_t5_and_says_so(trainer: Trainer, file: Path) -> None:
    facts = recognised(file)
    assert T5 not in facts.encoders and "left out" in facts.note and "tokenizer_3" in facts.note
    run = trainer.new(base__path=str(file), sample__prompts=[], train__steps="1", data__validation_folder="")
    happened = trainer.run(run)
    assert isinstance(happened[-1], Finished)
    assert facts.note in [event.text for event in happened if isinstance(event, Said)]
    kept = planner.load(run)
    assert kept is not None and facts.note in [advice.text for advice in kept.plan.advice]


def test_words_that_are_missing_or_damaged_are_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="T5: it is set to int8, but its words were not found") as asked:
        recognised(file, t5="int8")
    with pytest.raises(UserError, match=r"T5's words: .* has no tokenizer\.json") as given:
        recognised(file, t5_words=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="could not be read") as damaged:
        load(file, t5_words=str(tmp_path))
    assert {error.value.path for error in (asked, given, damaged)} == {"base.t5_words"}


def test_a_t5_with_scales_of_its_own_is_left_alone(file: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    assert mmdit.config_of_t5(shapes)
    scaled = f"{mmdit.T5_PREFIX}encoder.block.0.layer.0.SelfAttention.q.scale_weight"
    assert mmdit.config_of_t5(shapes | {scaled: ()}) is None


# -- fewer bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("nf4", 0.3)])
def test_captions_are_read_almost_alike_in_fewer_bits(folder: Path, kind: Any, most: float) -> None:
    exact, rounded = load(folder), load(folder)
    quantise(rounded.modules[T5], kind, "cpu")
    wanted, found = said_by(exact), said_by(rounded)
    assert torch.equal(wanted[:, :77], found[:, :77]), "CLIP is as it was"
    assert 0 < (wanted - found).norm() / wanted[:, 77:].norm() < most


def test_in_fp16_the_layers_that_would_overflow_stay_exact(folder: Path) -> None:
    facts = recognised(folder)
    parts = families.family_of(facts).load(facts, (T5,), {T5: torch.float16})
    kept = {name for name, p in parts.modules[T5].named_parameters() if p.dtype == torch.float32}
    assert kept and all("wo" in name for name in kept)
    with torch.autocast("cpu", torch.float16):
        ids = families.family_of(facts).tokenize(parts, CAPTIONS, 1)
        assert parts.modules[T5](ids[T5]).last_hidden_state.isfinite().all()


def planned(trainer: Trainer, path: Path, machine: Any = CPU_ONLY, **changes: Any) -> Plan:
    changes = {"base__path": str(path), "train__steps": "1"} | changes
    return planner.draft(trainer.config(**changes), trainer.workspace, machine).plan


@pytest.mark.parametrize("kind", ["plain", "int8", "nf4"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_ledger_counts_what_is_loaded(trainer: Trainer, folder: Path, kind: str, precision: str) -> None:
    plan = planned(trainer, folder, imagined(24), base__t5=kind, train__precision=precision)
    facts, dtype = plan.facts, setup.DTYPES[precision]
    module = families.family_of(facts).load(facts, (T5,), {T5: dtype}).modules[T5]
    quantise(module, plan.kept_as(T5), "cpu")
    rows = [r for r in estimate(plan).rows if (r.part, r.what, r.phase) == (T5, "weights", "sample")]
    assert [row.bytes for row in rows] == [nbytes(module)]


def test_a_model_trained_with_t5_in_8_bits_is_written_with_t5_as_it_was(
    trainer: Trainer, folder: Path
) -> None:
    run = trainer.new(
        base__path=str(folder), base__t5="int8", method={"kind": "full", "layers": "norms and biases"},
        export__formats=["diffusers"], train__steps="1", sample__prompts=["a"], sample__every="0",
        data__validation_folder="",
    )  # fmt: skip
    assert isinstance(trainer.run(run)[-1], Finished)
    written = load_file(run.output / "test-diffusers" / T5 / "model.safetensors")
    before = load_file(folder / T5 / "model.safetensors")
    assert all(torch.equal(written[name], before[name]) for name in before)


# -- what fits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_sd3.write(tmp_path_factory.mktemp("models") / "medium", with_t5=True)


USUAL = {
    "method": {"kind": "lora", "rank": 16, "targets": "attention"},
    "train__resolution": 1024,
    "train__batch_size": 1,
}


def fitted(trainer: Trainer, published: Path, gib: int, **changes: Any) -> fitting.Fit:
    machine = imagined(gib)
    return fitting.fit(planned(trainer, published, machine, **USUAL, **changes), machine)


def test_t5_is_kept_as_fits_the_card_and_the_plan_says_why(trainer: Trainer, published: Path) -> None:
    found = {gib: fitted(trainer, published, gib) for gib in (24, 8, 6)}
    assert all(fit.fits for fit in found.values())
    assert estimate(found[24].plan).loaded[T5] == published_sd3.T5
    kept = {gib: fit.plan.t5_as for gib, fit in found.items() if T5 in fit.plan.facts.encoders}
    assert kept == {24: "plain", 8: "int8", 6: "nf4"}
    why = {gib: [c.why for c in fit.plan.choices if c.path == "base.t5"] for gib, fit in found.items()}
    assert all(len(said) == 1 for said in why.values()), why


def test_t5_is_left_out_by_itself_only_where_nothing_else_fits(trainer: Trainer, published: Path) -> None:
    dropped, asked = fitted(trainer, published, 5), fitted(trainer, published, 5, base__t5="nf4")
    assert dropped.fits and not asked.fits, "what was asked for stays"
    (choice,) = [choice for choice in dropped.plan.choices if choice.path == "base.t5"]
    assert choice.value == "off" and "left out" in choice.why
    assert {place.part for place in dropped.plan.placements} == set(dropped.plan.facts.parts)
    assert not any("base.t5" in advice.fix for advice in dropped.plan.advice)


def test_t5_takes_half_and_a_quarter(trainer: Trainer, published: Path) -> None:
    sizes = [
        sum(
            row.bytes
            for row in estimate(planned(trainer, published, imagined(24), base__t5=kind, **USUAL)).rows
            if (row.part, row.phase, row.what) == (T5, "sample", "weights")
        )
        for kind in ("plain", "int8", "nf4", "off")
    ]
    assert [round(size / GIB, 1) for size in sizes] == [8.9, 4.6, 2.7, 0.0]


def test_bits_that_this_computer_cannot_compute_with_are_refused(trainer: Trainer, folder: Path) -> None:
    facts = families.recognise(BaseSection(path=str(folder)))
    config = trainer.config(base__path=str(folder), base__t5="nf4")
    with pytest.raises(UserError, match="T5: nf4 is not possible") as refused:
        frozen.kind_of_t5(config, facts, "mps")
    assert refused.value.path == "base.t5"
    without = dataclasses.replace(facts, encoders=facts.learning_encoders)
    assert frozen.kind_of_t5(config, without, "mps") == "plain"


def test_pictures_and_captions_are_encoded_with_only_what_it_takes_on_the_card(
    trainer: Trainer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run as in the sum."""
    plan = planned(trainer, folder, imagined(24))
    held = {r.part for r in estimate(plan).rows if (r.phase, r.what) == ("cache", "weights")}
    assert held == {"vae"} or held == set(plan.facts.encoders)
    brought: list[tuple[str, ...]] = []

    def bring(parts: Parts, plan: Plan, names: Sequence[str]) -> None:
        brought.append(tuple(names))

    monkeypatch.setattr(setup, "bring_only", bring)
    run = trainer.new(
        base__path=str(folder), sample__prompts=[], train__steps="1", data__validation_folder=""
    )
    trainer.run(run)
    assert brought == [("vae",), plan.facts.encoders]


# -- main memory, and drawing alone -----------------------------------------------------------------


def test_t5_is_left_out_where_main_memory_is_too_small_for_it(trainer: Trainer, published: Path) -> None:
    """On a card with room for all of it."""
    small = dataclasses.replace(imagined(24), ram_free_bytes=10 * GIB)
    whole = planned(trainer, published, small, **USUAL)
    found = fitting.fit(whole, small)
    assert T5 not in found.plan.facts.encoders
    (choice,) = [choice for choice in found.plan.choices if choice.path == "base.t5"]
    assert choice.value == "off" and "of main memory, and 10.0 GB are free" in choice.why
    storage.check(found.plan, found.ledger, small, 10**12)
    asked = fitting.fit(planned(trainer, published, small, base__t5="plain", **USUAL), small)
    with pytest.raises(UserError, match=r"of main memory, and 10\.0 GB are free\. Set T5 to off"):
        storage.check(asked.plan, asked.ledger, small, 10**12)


def test_drawing_alone_is_fitted_as_a_run_is(published: Path) -> None:
    section, facts = BaseSection(path=str(published)), recognised(published)
    plans = {gib: drawing.plan(section, facts, imagined(gib), (1024, 1024)) for gib in (24, 12, 8, 6)}
    for gib, plan in plans.items():
        ledger, room = estimate(plan), fitting.room_of(imagined(gib))
        assert not ledger.unknown and room is not None and ledger.held("sample") <= room, gib
    kept = [plan.t5_as if T5 in plan.facts.encoders else "off" for plan in plans.values()]
    turns = [plan.draws_in_turn for plan in plans.values()]
    assert kept == ["plain", "plain", "int8", "nf4"] and turns == [False, True, True, True]
    small = dataclasses.replace(imagined(24), ram_free_bytes=10 * GIB)
    assert T5 not in drawing.plan(section, facts, small).facts.encoders


def test_what_draws_in_turn_or_with_t5_in_fewer_bits_draws_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("a zib disc", "", 64, 64, 2, 3.0, 7)
    exact = result.load(BaseSection(path=str(folder)))
    picture = exact.draw(exact.wearing([], is_last=False), request)
    copied = exact.wearing([], is_last=False).parts
    assert copied.modules[T5] is exact.parts.modules[T5] and copied.denoiser is not exact.parts.denoiser
    brought: list[tuple[str, ...]] = []
    monkeypatch.setattr(result, "bring_only", lambda parts, plan, names: brought.append(tuple(names)))
    in_turn = result.Loaded(dataclasses.replace(exact.plan, draws_in_turn=True), exact.parts)
    assert in_turn.draw(in_turn.wearing([]), request).tobytes() == picture.tobytes()
    assert brought == [exact.plan.facts.encoders, (DENOISER,), (VAE,)]
    rounded = result.load(BaseSection(path=str(folder), t5="int8"))
    assert nbytes(rounded.parts.modules[T5]) < nbytes(exact.parts.modules[T5]) / 2
    other = rounded.draw(rounded.wearing([]), request)
    assert 0 <= ImageStat.Stat(ImageChops.difference(picture, other)).mean[0] < 2


def test_drawing_goes_on_by_parts_where_the_card_runs_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = result.load(BaseSection(path=str(folder), t5="off"))
    sampler, ways = loaded.wearing([]), []

    def draw(request: Request, bring: Any = None, is_tiled: bool = False) -> str:
        ways.append((bring is not None, is_tiled))
        if not is_tiled:
            raise RuntimeError("CUDA out of memory")
        return "picture"

    monkeypatch.setattr(sampler, "draw", draw)
    assert loaded.draw(sampler, Request("a", "", 64, 64, 1, 1.0, 1)) == "picture"
    assert ways == [(False, False), (False, False), (True, True)]
