"""JoyCaption: a LLaVA of Llama 3.1 and SigLIP 2, taught to caption pictures for training.

Source: the card of fancyfeast/llama-joycaption-beta-one-hf-llava, whose words it was taught with these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import Download
from .section import Detail, Settings
from .seeing import Inputs, Seeing

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_SYSTEM = "You are a helpful image captioner."
_INSTRUCTIONS: Mapping[Detail, str] = {
    "short": "Write a short descriptive caption for this image in a formal tone.",
    "medium": "Write a medium-length descriptive caption for this image in a formal tone.",
    "long": "Write a long descriptive caption for this image in a formal tone.",
}


class JoyCaption(Seeing):
    """The template of a chat that lies beside it puts the picture before the instruction."""

    name = "joycaption"
    title = "JoyCaption"
    about = (
        "Exact descriptions of photos, drawings and anime, made for training; leaves nothing out that other "
        "models blush at. Wants a card of 12 GB or more."
    )
    reads = ("instruction", "detail", "max_tokens", "model", "precision", "batch_size")
    is_wide = True
    download = Download(
        "fancyfeast/llama-joycaption-beta-one-hf-llava", 17_000_000_000, "Llama 3.1 Community License"
    )
    kinds = {"llava": "LlavaForConditionalGeneration"}  # noqa: RUF012
    processor = "LlavaProcessor"

    def inputs(
        self, tools: Any, model: torch.nn.Module, images: Sequence[Image], settings: Settings
    ) -> Inputs:
        told = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": settings.instruction.strip() or _INSTRUCTIONS[settings.detail]},
        ]
        chat = tools.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
        made = tools(images=list(images), text=[chat] * len(images), return_tensors="pt")
        return Inputs(made, made["input_ids"].shape[1])


JOYCAPTION = JoyCaption()
