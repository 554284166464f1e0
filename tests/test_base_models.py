"""Base models from disk as a person has them: without a network, damaged, old, and left as they were."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import test_sd3_files
import test_sdxl_files
import test_single_file
import tiny
import torch
from conftest import Trainer
from safetensors.torch import load_file, save_file

from sdtrainer import families
from sdtrainer.events import Finished
from sdtrainer.families import BaseSection, single_file
from sdtrainer.formats import whole_model
from sdtrainer.seams import VAE, Facts
from sdtrainer.section import UserError

pytestmark = pytest.mark.usefixtures("offline")

MADE = {"sd1": "base", "sd2": "sd2", "sdxl": "sdxl", "sd3": "sd3"}
"""The tiny folder of each family, by fixture."""


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("models") / "sd2", "v_prediction", width=1024)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return write_files(tmp_path_factory.mktemp("files"))


def write_files(folder: Path) -> dict[str, Path]:
    """Write a file of each family as other programs do, without a word on how it is built."""
    made = {name: folder / name / f"{name}.safetensors" for name in MADE}
    for file in made.values():
        file.parent.mkdir()
    words = single_file.WORDS
    test_single_file.foreign(made["sd1"], words=words, scale=0.05)
    test_single_file.foreign(made["sd2"], words=words, width=1024, scale=0.05, channels=(64,) * 4)
    test_sdxl_files.foreign(made["sdxl"], ("v_pred",), scale=0.05)
    test_sd3_files.foreign(made["sd3"], scale=0.05)
    return made


def tree(folder: Path) -> dict[str, str]:
    """The contents of every file of a folder, by name, and when it was changed."""
    return {
        path.relative_to(folder).as_posix(): f"{path.stat().st_mtime_ns} {digest(path)}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def runs_on(trainer: Trainer, path: Path, method: Mapping[str, Any]) -> Trainer:
    values = trainer.values | {"base": {"path": str(path)}, "method": dict(method)}
    return Trainer(trainer.workspace, values)


def trained(trainer: Trainer, path: Path, method: Mapping[str, Any], steps: int) -> Path:
    """Train a run on this model, and return its folder of results."""
    folder = runs_on(trainer, path, method).new(
        train__steps=str(steps), train__validate_every="0", sample__prompts=[], train__batch_size=1
    )
    assert isinstance(runs_on(trainer, path, method).run(folder)[-1], Finished)
    return folder.output


LORA, FULL = {"kind": "lora", "rank": 2}, {"kind": "full"}


@pytest.mark.parametrize("layout", ["file", "folder"])
@pytest.mark.parametrize("name", MADE)
def test_every_family_is_trained_without_a_network_and_left_as_it_was(
    request: pytest.FixtureRequest, trainer: Trainer, files: Mapping[str, Path], name: str, layout: str
) -> None:
    path: Path = files[name] if layout == "file" else request.getfixturevalue(MADE[name])
    around = path.parent if layout == "file" else path
    before = tree(around)
    assert len(before) >= (1 if layout == "file" else 8)
    results = trained(trainer, path, LORA, steps=1)
    assert load_file(results / "test.safetensors")
    assert tree(around) == before


# -- old files --------------------------------------------------------------------------------------

BESIDE = {"global_step": 7, "pytorch-lightning_version": "1.4.2", "lr_schedulers": []}


def test_a_ckpt_is_trained_and_exported(trainer: Trainer, files: Mapping[str, Path], tmp_path: Path) -> None:
    state, file = load_file(files["sd1"]), tmp_path / "model" / "old.ckpt"
    file.parent.mkdir()
    torch.save({"state_dict": state} | BESIDE, file)
    before = tree(file.parent)
    (result,) = trained(trainer, file, FULL, steps=2).iterdir()
    assert tree(file.parent) == before
    learnt = load_file(result)
    assert learnt.keys() == state.keys() - {"model_ema.decay"}
    changed = {name for name, value in learnt.items() if not torch.equal(value, state[name])}
    assert changed and all(name.startswith("model.diffusion_model.") for name in changed)


class ModelCheckpoint:
    """What the trainer that made the first checkpoints left in them."""


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_what_a_trainer_left_in_a_ckpt_is_ignored(
    files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool
) -> None:
    monkeypatch.setattr(ModelCheckpoint, "__module__", "pytorch_lightning.callbacks.model_checkpoint")
    state, file = load_file(files["sd1"]), tmp_path / "old.ckpt"
    with monkeypatch.context() as patch:  # the library is there while the file is written
        for name in accumulate(ModelCheckpoint.__module__.split("."), "{}.{}".format):
            module = ModuleType(name)
            module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
            patch.setitem(sys.modules, name, module)
        callbacks = {ModelCheckpoint: {"best": np.float64(0.5), "score": torch.ones(())}}
        content = {"state_dict": state, "callbacks": callbacks} | BESIDE
        torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    found = whole_model.read_tensors(file)
    assert "pytorch_lightning" not in sys.modules
    assert found.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.items())
    assert recognised(file).family == "sd"


# -- damage -----------------------------------------------------------------------------------------


def recognised(path: Path) -> Facts:
    return families.recognise(BaseSection(path=str(path)))


def load(path: Path) -> None:
    facts = recognised(path)
    families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        load(path)
    assert refused.value.path == "base.path"
    said = str(refused.value)
    assert said.startswith("Base model: ") and "\n" not in said
    return said


def sharded(folder: Path) -> Path:
    """Divide the denoiser's weights into two files with a list, as large models are kept."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state, names = load_file(weights), ("first.safetensors", "second.safetensors")
    halves = [dict(list(state.items())[n::2]) for n in (0, 1)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, weights.with_name(name))
    listed = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = {"metadata": {"total_size": 1}, "weight_map": listed}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    weights.unlink()
    return folder


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def test_a_folder_in_pieces_is_loaded_and_a_missing_or_torn_piece_is_named(
    base: Path, tmp_path: Path
) -> None:
    folder = sharded(shutil.copytree(base, tmp_path / "model"))
    load(folder)
    second = folder / "unet" / "second.safetensors"
    torn(second)
    size = second.stat().st_size
    assert (
        f"second.safetensors is cut short: it has {size:,} bytes and should have {size + 100:,}"
        in refusal(folder)
    )
    second.unlink()
    assert "unet/second.safetensors is missing, which" in refusal(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text("{}")
    assert f"unet/{index.name} is damaged" in refusal(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_without_the_weights_of_a_part_is_named(base: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    (weights,) = (folder / part).glob("*.safetensors")
    weights.unlink()
    assert f"'{part}' in 'model' holds no weights" in refusal(folder)


def test_a_folder_with_weights_of_half_precision_alone_is_loaded(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    load(folder)


def test_a_torn_old_file_in_a_folder_is_an_error_in_words(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = weights.with_suffix(".bin")
    torch.save(load_file(weights), old)
    weights.unlink()
    load(folder)
    torn(old)
    assert "could not be loaded" in refusal(folder)


def test_a_file_of_ours_that_was_altered_is_refused_by_its_hash(base: Path, tmp_path: Path) -> None:
    file = test_single_file.exported(base, tmp_path)
    load(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "model.safetensors was altered or damaged" in refusal(file)


def test_a_file_that_went_away_before_a_run_goes_on_is_named(
    files: Mapping[str, Path], tmp_path: Path
) -> None:
    file = Path(shutil.copy(files["sd1"], tmp_path / "mine.safetensors"))
    facts = recognised(file)
    file.unlink()
    with pytest.raises(UserError, match=r"Base model: mine\.safetensors cannot be read: No such file"):
        families.family_of(facts).load(facts, (VAE,), {VAE: torch.float32})
