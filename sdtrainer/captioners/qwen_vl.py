"""Qwen-VL: a model that looks, and follows instructions.

Its processor in transformers needs torchvision, for videos: its part for pictures is used alone.
Source: Bai et al. 2025 (arXiv:2502.13923, arXiv:2511.21631).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import Download
from .section import Detail, Settings
from .seeing import Inputs, Seeing

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

IMAGE = "<|image_pad|>"
_CHAT = (
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{instruction}<|im_end|>\n<|im_start|>assistant\n"
)
"""The models' own format of a chat."""
_WITHOUT_THINKING: Mapping[str, str] = {"qwen3_5": "<think>\n\n</think>\n\n"}
"""How an answer begins where the model would think aloud first, by its `model_type`."""
_INSTRUCTIONS: Mapping[Detail, str] = {
    "short": "Describe this picture in one short sentence.",
    "medium": "Describe this picture in one sentence: the subject, its surroundings, light and style.",
    "long": "Describe this picture in three or four sentences: the subject and its details, the "
    "surroundings, the light, the colours, the style and the point of view.",
}
_ONLY = " Write the description and nothing else."


@dataclass(frozen=True)
class Tools:
    looks: Any
    tokenizer: Any

    def batch_decode(self, tokens: torch.Tensor, **how: Any) -> list[str]:
        return self.tokenizer.batch_decode(tokens, **how)


class QwenVl(Seeing):
    """The instruction is told as a person would; without one it describes at the chosen length."""

    name = "qwen"
    title = "Qwen-VL"
    about = (
        "Whatever you ask for, in its own words: 'describe the style, not the subject'. The best of these, "
        "and the slowest; wants a card of 8 GB or more."
    )
    reads = ("instruction", "detail", "max_tokens", "model", "precision", "batch_size")
    is_wide = True
    download = Download(
        "Qwen/Qwen3-VL-2B-Instruct",
        4_270_000_000,
        "Apache 2.0",
        also={"Qwen/Qwen3-VL-4B-Instruct": 8_900_000_000, "Qwen/Qwen3-VL-8B-Instruct": 17_500_000_000},
    )
    kinds = {  # noqa: RUF012
        "qwen3_5": "Qwen3_5ForConditionalGeneration",
        "qwen3_vl": "Qwen3VLForConditionalGeneration",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "qwen2_vl": "Qwen2VLForConditionalGeneration",
    }

    def tools(self, folder: Path) -> Tools:
        from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

        return Tools(
            Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True),
            AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True),
        )

    def inputs(
        self, tools: Tools, model: torch.nn.Module, images: Sequence[Image], settings: Settings
    ) -> Inputs:
        """One image is as many tokens as it has squares of `merge_size` patches."""
        instruction = settings.instruction.strip() or _INSTRUCTIONS[settings.detail]
        seen = tools.looks(images=list(images), return_tensors="pt")
        counts = (seen["image_grid_thw"].prod(-1) // tools.looks.merge_size**2).tolist()
        begins = _WITHOUT_THINKING.get(model.config.model_type, "")  # type: ignore[union-attr,arg-type]
        chats = [
            _CHAT.format(image=IMAGE * count, instruction=instruction + _ONLY) + begins for count in counts
        ]
        told = tools.tokenizer(chats, padding=True, return_tensors="pt")
        is_image = told["input_ids"] == tools.tokenizer.convert_tokens_to_ids(IMAGE)
        return Inputs({**told, **seen, "mm_token_type_ids": is_image.int()}, told["input_ids"].shape[1])


QWEN = QwenVl()
