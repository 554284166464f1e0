"""A small classifier that names what a picture shows: one of the starter's things, its robot, or nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as functional
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sdtrainer.starter.drawing import as_tensor
from sdtrainer.starter.prompts import ROBOT_NAME
from sdtrainer.starter.world import thing_names

FILE_NAME = "judge.safetensors"
NOTHING = "nothing recognisable"
VIEW = 64


class JudgeNetwork(nn.Module):
    """Four convolutions down to 8x8, pooled by mean and maximum."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128, 128)
        strides = (2, 1, 2, 2, 1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1)
            for (before, after), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.dropout = nn.Dropout(0.2)
        self.classify = nn.Linear(2 * widths[-1], classes)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Logits of pictures (N, 3, 64, 64) in -1..1."""
        features = views
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            features = functional.silu(norm(convolution(features)))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return self.classify(self.dropout(pooled))


class Judge:
    """Names pictures; `accuracy` is the share named rightly among held-out clean renderings."""

    def __init__(self, network: JudgeNetwork, classes: list[str], accuracy: float) -> None:
        self._network = network.eval()
        self.classes = classes
        self.accuracy = accuracy

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """The judge that ships in a starter model's folder."""
        with safe_open(folder / FILE_NAME, framework="pt") as file:
            about = file.metadata()
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        classes = json.loads(about["classes"])
        network = JudgeNetwork(len(classes))
        network.load_state_dict(weights)
        return cls(network, classes, float(about["accuracy"]))

    def save(self, folder: Path) -> None:
        """Write the judge in half precision, its classes and accuracy in the file's metadata."""
        weights = {key: value.half().contiguous() for key, value in self._network.state_dict().items()}
        about = {"classes": json.dumps(self.classes), "accuracy": f"{self.accuracy:.4f}"}
        save_file(weights, folder / FILE_NAME, metadata=about)

    def names(self, images: list[Image.Image]) -> list[str]:
        """What each picture most likely shows; pictures may be of any sizes."""
        if not images:
            return []
        views = [image.convert("RGB").resize((VIEW, VIEW), Image.Resampling.BILINEAR) for image in images]
        with torch.no_grad():
            best = self._network(as_tensor(views)).argmax(dim=1)
        return [self.classes[index] for index in best.tolist()]


def class_names() -> list[str]:
    """Everything the judge can say."""
    return [*thing_names(), ROBOT_NAME, NOTHING]
