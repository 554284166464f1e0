"""BLIP: one short plain sentence. Source: Li et al. 2022 (arXiv:2201.12086)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import Download
from .section import Settings
from .seeing import Inputs, Seeing

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Blip(Seeing):
    """The instruction is how each caption begins."""

    name = "blip"
    title = "BLIP"
    about = "One short plain sentence. Small and quick, and less exact than newer ones."
    reads = ("instruction", "max_tokens", "model", "precision", "batch_size")
    download = Download("Salesforce/blip-image-captioning-large", 1_880_000_000, "BSD 3-Clause")
    kinds = {"blip": "BlipForConditionalGeneration"}  # noqa: RUF012
    processor = "BlipProcessor"
    num_beams = 3

    def inputs(
        self, tools: Any, model: torch.nn.Module, images: Sequence[Image], settings: Settings
    ) -> Inputs:
        begin = settings.instruction.strip()
        text = {"text": [begin] * len(images)} if begin else {}
        return Inputs(tools(images=list(images), return_tensors="pt", **text))

    def words(self, tools: Any, tokens: torch.Tensor) -> list[str]:
        """Leave out a word that the large model makes up: it begins with araf, and means nothing."""
        return [re.sub(r"\baraf\w*\s*", "", text) for text in super().words(tools, tokens)]


BLIP = Blip()
