"""The grid of what is measured against the estimate: one cell for each combination that tells something."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import config as configs
from .. import planner
from ..config import Config
from ..families import STARTER
from ..hardware import Machine
from ..planner import Draft
from ..section import UserError
from ..workspace import Workspace
from . import models

_SHARED = {
    "run.name": "cell",
    "train.steps": "1000",
    "train.validate_every": "0",
    "checkpoint.every": "0",
    "sample.prompts": ["a picture"],
    "sample.steps": 2,
}
"""Of every cell: nothing happens between its steps; one picture is drawn afterwards."""


@dataclass(frozen=True)
class Cell:
    """One run to be measured. `model` is one of `models.MODELS` or a base path; `more` are further settings.

    Everything that a plan would decide by itself is said here, so that a cell is the same on every card.
    """

    model: str
    method: Mapping[str, Any]
    resolution: int = 512
    batch_size: int = 1
    precision: str = "bf16"
    optimizer: str = "adamw"
    checkpointing: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells it from all others, to read and to choose by."""
        kind, *options = self.method.values()
        told = [f"{name}={value}" for name, value in zip([*self.method][1:], options, strict=True)]
        words = [self.model, kind, *told, f"{self.resolution}px", f"batch{self.batch_size}", self.precision]
        words += [self.optimizer, *(["checkpointing"] if self.checkpointing else [])]
        return " ".join([*words, *(f"{path}={value}" for path, value in self.more.items())])

    def settings(self, home: Path) -> dict[str, Any]:
        """All settings by dotted path; the model and its pictures lie in `home`."""
        base = str(home / "model") if self.model in models.MODELS else self.model
        method = {f"method.{name}": value for name, value in self.method.items()}
        own = {
            "base.path": base, "data.folder": str(home / "images"), "train.resolution": self.resolution,
            "train.batch_size": self.batch_size, "train.precision": self.precision,
            "train.checkpointing": "on" if self.checkpointing else "off", "optim.name": self.optimizer,
        }  # fmt: skip
        return _SHARED | method | own | dict(self.more)

    def config(self, home: Path) -> Config:
        return configs.build(configs.override({}, self.settings(home)))

    def draft(self, home: Path, machine: Machine) -> Draft:
        """Write what the cell needs into `home`, and decide as for a run on this machine."""
        home.mkdir(parents=True, exist_ok=True)
        if self.model in models.MODELS:
            models.write(self.model, home / "model")
        draw(home / "images", self.batch_size, (self.resolution, self.resolution))
        return planner.draft(self.config(home), Workspace(home), machine)


def draw(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write one batch of pictures (width, height) with captions."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (30 * number % 256, 120, 200)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text("a picture", encoding="utf-8")


_LORA = {"kind": "lora", "rank": 16}
_WITH_TEXT = {"kind": "lora", "rank": 16, "train_text_encoder": True}
_FULL, _FULL_WITH_TEXT = {"kind": "full"}, {"kind": "full", "train_text_encoder": True}
_FUSED = {"optim.fused_backward": "on", "optim.max_grad_norm": 0.0}
_SD15, _SD21, _SDXL = "SD 1.5", "SD 2.1", "SDXL"

ON_A_CARD: tuple[Cell, ...] = (
    Cell(_SD15, _LORA),
    Cell(_SD15, _LORA, precision="fp16"),
    Cell(_SD15, _LORA, precision="fp32"),
    Cell(_SD15, _LORA, batch_size=4),
    Cell(_SD15, _LORA, batch_size=4, checkpointing=True),
    Cell(_SD15, _LORA, batch_size=4, precision="fp32", checkpointing=True),
    Cell(_SD15, _LORA, resolution=768, batch_size=2),
    Cell(_SD15, _LORA, resolution=1024),
    Cell(_SD15, _LORA, optimizer="adamw8bit", more={"optim.accumulation": 2}),
    Cell(_SD15, _LORA, batch_size=2, more={"data.cache_latents": "off"}),
    Cell(_SD15, _LORA | {"rank": 128}, optimizer="adamw8bit"),
    Cell(_SD15, _LORA | {"targets": "attention"}),
    Cell(_SD15, _LORA | {"targets": "with convolutions"}, batch_size=2, more={"optim.ema": True}),
    Cell(_SD15, _WITH_TEXT, batch_size=2),
    Cell(_SD15, {"kind": "loha"}, batch_size=2),
    Cell(_SD15, {"kind": "lokr"}, batch_size=2),
    Cell(_SD15, {"kind": "textual_inversion"}, batch_size=2),
    Cell(_SD15, {"kind": "hypernetwork"}, batch_size=2),
    Cell(_SD15, _FULL),
    Cell(_SD15, _FULL, precision="fp32"),
    Cell(_SD15, _FULL, optimizer="adamw8bit", checkpointing=True),
    Cell(_SD15, _FULL, optimizer="adafactor", checkpointing=True),
    Cell(_SD15, _FULL, optimizer="lion8bit", batch_size=4),
    Cell(_SD15, _FULL | {"layers": "cross-attention"}, batch_size=2),
    Cell(_SD15, _FULL_WITH_TEXT, optimizer="adamw8bit", batch_size=2, checkpointing=True),
    Cell(_SD15, _FULL, more={"train.weights": "bf16"}),
    Cell(_SD15, _FULL, optimizer="adamw8bit", checkpointing=True, more=_FUSED | {"train.weights": "bf16"}),
    Cell(_SD15, _FULL, optimizer="adafactor", checkpointing=True, more=_FUSED),
    Cell(_SD15, _LORA, batch_size=4, more={"train.batch_parts": 2}),
    Cell(_SD15, _LORA, more={"base.quantize": "int8"}),
    Cell(_SD15, _LORA, checkpointing=True, more={"base.quantize": "nf4"}),
    Cell(_SD15, _LORA, checkpointing=True, more={"train.offload": "half"}),
    Cell(_SD15, _LORA, checkpointing=True, more={"train.offload": "all"}),
    Cell(_SD21, _LORA, resolution=768),
    Cell(_SD21, _LORA, resolution=768, batch_size=4, checkpointing=True),
    Cell(_SD21, _LORA, precision="fp32"),
    Cell(_SD21, _WITH_TEXT, batch_size=2),
    Cell(_SD21, _FULL, optimizer="adamw8bit", checkpointing=True),
    Cell(_SD21, _FULL, resolution=768),
    Cell(_SDXL, _LORA, resolution=1024),
    Cell(_SDXL, _LORA, resolution=1024, batch_size=2, checkpointing=True),
    Cell(_SDXL, _WITH_TEXT, resolution=1024, optimizer="adamw8bit", checkpointing=True),
    Cell(_SDXL, _LORA, resolution=1024, checkpointing=True, more={"base.quantize": "nf4"}),
    Cell(
        _SDXL, _FULL, resolution=1024, optimizer="adamw8bit", checkpointing=True,
        more=_FUSED | {"train.weights": "bf16"},
    ),
)  # fmt: skip
"""Those of SD 1.5 and 2.1 are meant to take about eight minutes on a fast card."""

_SMALL = {"resolution": 128, "precision": "fp32", "batch_size": 2}
ON_A_PROCESSOR: tuple[Cell, ...] = (
    Cell(STARTER, _LORA, **_SMALL),
    Cell(STARTER, _LORA, **_SMALL | {"batch_size": 4, "checkpointing": True}),
    Cell(STARTER, _LORA | {"train_text_encoder": True}, **_SMALL),
    Cell(STARTER, _FULL, **_SMALL),
    Cell(STARTER, _FULL, **_SMALL | {"optimizer": "adamw8bit"}),
)
"""The same on the starter model, without a card."""


def choose(cells: Iterable[Cell], words: Sequence[str]) -> tuple[Cell, ...]:
    """Return the cells whose names hold every word. Raises UserError if there is none."""
    chosen = tuple(c for c in cells if all(word.lower() in c.name.lower() for word in words))
    if not chosen:
        raise UserError(f"--only {','.join(words)}: no cell is called so.", "See them all with --list.")
    return chosen
