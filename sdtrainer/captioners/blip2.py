"""BLIP-2: BLIP's eyes with a large language model. Source: Li et al. 2023 (arXiv:2301.12597)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import Download
from .section import Settings
from .seeing import Inputs, Seeing

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Blip2(Seeing):
    """The instruction is put as a question, which the model goes on to answer."""

    name = "blip2"
    title = "BLIP-2"
    about = "One short sentence, more often right than BLIP's. A large download, and slow without a card."
    reads = ("instruction", "max_tokens", "model", "precision", "batch_size")
    download = Download("Salesforce/blip2-opt-2.7b", 15_500_000_000, "MIT; its OPT for research only")
    kinds = {"blip-2": "Blip2ForConditionalGeneration"}  # noqa: RUF012
    processor = "Blip2Processor"

    def inputs(
        self, tools: Any, model: torch.nn.Module, images: Sequence[Image], settings: Settings
    ) -> Inputs:
        question = settings.instruction.strip()
        text = f"Question: {question} Answer:" if question else ""
        made = tools(images=list(images), text=[text] * len(images), return_tensors="pt")
        answers_apart = model.language_model.config.is_encoder_decoder  # type: ignore[union-attr]
        return Inputs(made, 0 if answers_apart else made["input_ids"].shape[1])


BLIP2 = Blip2()
