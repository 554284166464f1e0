"""Checkpoints: the state from which a run goes on bit for bit, on disk and in memory.

A state is the trained tensors, the optimizer's, the loss scaler's and the running average's. Step number and
seed say everything else: noise, order and captions are functions of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from .. import files
from ..section import UserError
from .updates import as_if_fp32

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    from ..seams import Parts


@dataclass
class Trained:
    """All that changes while training."""

    parts: Parts
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    average: EMAModel | None

    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by part and name, in a fixed order."""
        return {
            f"{part}.{name}": parameter
            for part, module in sorted(self.parts.modules.items())
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def rest(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
        }

    def leave_card(self) -> None:
        """Move optimizer state and average to main memory, for when no step follows."""
        for state in self.optimizer.state.values():
            state |= {name: value.cpu() for name, value in state.items() if isinstance(value, torch.Tensor)}
        if self.average is not None:
            self.average.to("cpu")

    def start_anew(self, weights: Mapping[str, torch.Tensor], groups: Sequence[Mapping[str, Any]]) -> None:
        """Take over the weights from before the first step and what the optimizer knew of its groups then."""
        self.put(
            weights, {"optimizer": {"state": {}, "param_groups": groups}, "scaler": None, "average": None}
        )
        if self.average is not None:
            self.average.optimization_step = 0
            for mean, weight in zip(self.average.shadow_params, self.weights().values(), strict=True):
                mean.copy_(weight.detach())

    def put(self, weights: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> None:
        """Take over a state exactly. Raises UserError if it belongs to other settings."""
        mine = self.weights()
        if mine.keys() != weights.keys() or any(mine[k].shape != weights[k].shape for k in mine):
            raise UserError(
                "This checkpoint was made with other layers or another rank.",
                "Start a new run with these settings.",
            )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(weights[name])
        self.optimizer.state.clear()  # for a moment there would be two
        with as_if_fp32(list(mine.values())):
            self.optimizer.load_state_dict(rest["optimizer"])
        if rest["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
        if rest["average"] is not None and self.average is not None:
            self.average.load_state_dict(rest["average"])
            self.average.to(next(iter(mine.values())).device)


@dataclass(frozen=True)
class Snapshot:
    """A state kept in main memory, to go back to when the loss stops being a number."""

    step: int
    weights: Mapping[str, torch.Tensor]
    rest: Mapping[str, Any]


def snapshot(trained: Trained, step: int) -> Snapshot:
    """Copy the state to main memory."""
    return Snapshot(step, _copied(dict(trained.weights())), _copied(trained.rest()))


def go_back(kept: Snapshot, trained: Trained) -> None:
    """Take over a snapshot, which stays good for another time."""
    trained.put(kept.weights, _copied(kept.rest))


def save(folder: Path, trained: Trained, step: int) -> Path:
    """Write checkpoints/step-<step>, whole or not at all; one that is there already holds the same."""
    path = folder / f"step-{step:06d}"
    if path.exists():
        return path
    with files.new_folder(path) as new:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in trained.weights().items()},
            new / "weights.safetensors",
        )
        torch.save(trained.rest(), new / "rest.pt")
        (new / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")
    return path


def load(path: Path, trained: Trained) -> int:
    """Take over a checkpoint and return its step. No pickled code is executed."""
    rest = torch.load(path / "rest.pt", map_location="cpu", weights_only=True)
    trained.put(load_file(path / "weights.safetensors"), rest)
    return step_of(path)


def step_of(path: Path) -> int:
    return json.loads((path / "state.json").read_text(encoding="utf-8"))["step"]


def saved(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep`, and what killed runs left half-written."""
    for path in [*saved(folder)[:-keep], *folder.glob(".step-*.part")]:
        shutil.rmtree(path, ignore_errors=True)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return type(value)(_copied(v) for v in value) if isinstance(value, list | tuple) else value
