"""A whole Stable Diffusion 1.5 in one file, of full size and of random weights: loaded, trained, exported.

Takes minutes, 2 GB of disk and about 7 GB of memory; prints nothing, asserts what a user would see.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sd15
import tiny
import torch
from conftest import Trainer
from safetensors.torch import save_file
from test_single_file import empty_states

from sdtrainer import families, recognition
from sdtrainer.events import Finished, Stepped
from sdtrainer.families import BaseSection
from sdtrainer.formats import ldm
from sdtrainer.formats.safetensors_file import read_header


def write_model(path: Path, configs: Path) -> None:
    """Write it in fp16, with weights small enough that nothing overflows."""
    facts = families.recognise(BaseSection(path=str(sd15.write(configs))))
    generator = torch.Generator().manual_seed(0)
    file = {}
    for name, empty in ldm.to_ldm(empty_states(facts), facts.config, "clip").items():
        if name.endswith("position_ids"):
            continue
        is_norm = "norm" in name and name.endswith("weight")
        file[name] = torch.ones(empty.shape, dtype=torch.float16) if is_norm else _small(empty, generator)
    save_file(file, path)


def _small(empty: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (0.02 * torch.randn(empty.shape, generator=generator)).half()


@pytest.mark.slow
def test_a_full_size_file_trains_a_lora_on_the_processor(trainer: Trainer, tmp_path: Path) -> None:
    model = tmp_path / "full.safetensors"
    write_model(model, tmp_path / "configs")
    found = recognition.look(model)
    assert (found.kind, found.base) == ("model", "SD1") and 2.1e9 < found.bytes < 2.2e9
    values = {
        "base": {"path": str(model)},
        "data": {"folder": str(tiny.make_images(tmp_path / "images", 2, (256, 256)))},
        "train": {"steps": "2", "batch_size": 1, "resolution": 256},
        "sample": {"prompts": []},
    }
    runs = Trainer(trainer.workspace, trainer.values | values)
    folder = runs.new()
    happened = runs.run(folder)
    end = happened[-1]
    assert isinstance(end, Finished)
    losses = [loss for event in happened if isinstance(event, Stepped) for loss in event.losses]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    header = read_header(folder.path / end.path)
    listed = (Path(__file__).parent / "keys" / "sd15_lora.txt").read_text(encoding="utf-8").split()
    assert {name.partition(".")[0] for name in header.tensors} <= {name.partition(".")[0] for name in listed}
    assert json.loads((folder.path / "plan.json").read_text())["facts"]["resolution"] == 512
