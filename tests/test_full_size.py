"""Whole models in one file, of full size and of random weights: loaded, trained, exported.

Takes minutes, and of disk and memory 2 and 7 GB for Stable Diffusion 1.5, 7 and 9 for SDXL; prints nothing,
asserts what a user would see.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import tiny
import torch
from conftest import Trainer
from test_single_file import Peak

from sdtrainer import recognition
from sdtrainer.events import Finished, Stepped
from sdtrainer.families import published
from sdtrainer.formats import safetensors_file, whole_model
from sdtrainer.formats.deferred import Deferred
from sdtrainer.hardware import GIB
from sdtrainer.toolbox.models import blueprint

POOL = (0.02 * torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))).half()
"""Numbers small enough that nothing overflows, from which every weight is cut."""


pytestmark = pytest.mark.usefixtures("other_precisions")


def write_model(path: Path, base: str) -> None:
    """Write it in fp16, one tensor after the other."""
    facts = published.facts_of(base)
    file = whole_model.to_file(whole_model.states_of(blueprint(facts)), facts.config)
    made = {
        name: Deferred(empty.half(), lambda name=name, empty=empty: _numbers(name, empty.shape))
        for name, empty in file.items()
        if not name.endswith("position_ids")
    }
    safetensors_file.write(path, made, {}, None)  # type: ignore[arg-type]


def _numbers(name: str, shape: torch.Size) -> torch.Tensor:
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.float16)
    start = zlib.crc32(name.encode()) % (len(POOL) // 2)
    return POOL[start:].repeat(1 + shape.numel() // (len(POOL) - start))[: shape.numel()].reshape(shape)


def trained(trainer: Trainer, model: Path, images: Path, **changes: object) -> Path:
    """Train a LoRA for two steps; returns its file."""
    values = {
        "base": {"path": str(model)},
        "data": {"folder": str(tiny.make_images(images, 2, (256, 256)))},
        "train": {"steps": "2", "batch_size": 1, "resolution": 256, **changes},
        "sample": {"prompts": []},
    }
    runs = Trainer(trainer.workspace, trainer.values | values)
    folder = runs.new()
    happened = runs.run(folder)
    end = happened[-1]
    assert isinstance(end, Finished)
    losses = [loss for event in happened if isinstance(event, Stepped) for loss in event.losses]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    return folder.path / end.path


def listed(name: str) -> set[str]:
    """The layers that ComfyUI knows."""
    lines = (Path(__file__).parent / "keys" / name).read_text(encoding="utf-8").split()
    return {line.partition(".")[0] for line in lines}


@pytest.mark.slow
def test_a_full_size_file_trains_a_lora_on_the_processor(trainer: Trainer, tmp_path: Path) -> None:
    model = tmp_path / "full.safetensors"
    write_model(model, "SD1")
    found = recognition.look(model)
    assert (found.kind, found.base) == ("model", "SD1") and 2.1e9 < found.bytes < 2.2e9
    result = trained(trainer, model, tmp_path / "images")
    names = {name.partition(".")[0] for name in safetensors_file.read_header(result).tensors}
    assert names <= listed("sd15_lora.txt")
    assert json.loads((result.parents[1] / "plan.json").read_text())["facts"]["resolution"] == 512


@pytest.mark.slow
def test_sdxl_of_full_size_trains_in_little_more_than_its_weights(trainer: Trainer, tmp_path: Path) -> None:
    """The file is mapped and never held: of its own the program has the weights in the number format that it
    computes in, and what a step holds.
    """
    model = tmp_path / "full.safetensors"
    write_model(model, "SDXL")
    found = recognition.look(model)
    assert (found.kind, found.base) == ("model", "SDXL") and 6.9e9 < found.bytes < 7.0e9
    with Peak() as peak:
        result = trained(trainer, model, tmp_path / "images", precision="bf16", checkpointing="on")
    model.unlink()
    names = {name.partition(".")[0] for name in safetensors_file.read_header(result).tensors}
    assert names and names <= listed("sdxl_lora.txt")
    assert found.bytes < peak.most < found.bytes + 2 * GIB
