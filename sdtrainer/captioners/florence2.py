"""Florence-2: a small model that describes at three lengths. Source: Xiao et al. 2023 (arXiv:2311.06242)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import Download
from .section import Detail, Settings
from .seeing import Inputs, Seeing

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_TASKS: Mapping[Detail, str] = {
    "short": "<CAPTION>",
    "medium": "<DETAILED_CAPTION>",
    "long": "<MORE_DETAILED_CAPTION>",
}


class Florence2(Seeing):
    """It takes no instruction: it knows a word for each length."""

    name = "florence2"
    title = "Florence-2"
    about = "One to four exact sentences, as long as you choose. Quick on a card, and works without one."
    reads = ("detail", "max_tokens", "model", "precision", "batch_size")
    download = Download(
        "florence-community/Florence-2-large",
        1_600_000_000,
        "MIT",
        also={"florence-community/Florence-2-base": 540_000_000},
    )
    kinds = {"florence2": "Florence2ForConditionalGeneration"}  # noqa: RUF012
    processor = "Florence2Processor"
    num_beams = 3

    def inputs(
        self, tools: Any, model: torch.nn.Module, images: Sequence[Image], settings: Settings
    ) -> Inputs:
        tasks = [_TASKS[settings.detail]] * len(images)
        return Inputs(tools(images=list(images), text=tasks, return_tensors="pt"))


FLORENCE2 = Florence2()
