"""Layers as low-rank products: what an adapter's tensors are as up @ down, and such a product as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..formats import lycoris
from .adapters import is_dora
from .layouts import without_middle

if TYPE_CHECKING:
    import torch

    from .low_rank import LowRank

DORA_WORDS = ("dora_scale", "magnitude")


def device() -> str:
    """Return where matrices are decomposed."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def factors(words: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return up (out, R) and down (R, in kh kw) in fp32, alpha / rank in up, or None for what is no LoRA.

    Of DoRA what is added before the sizes are set.
    """
    from ..formats.deferred import now

    if not {"lora_up", "lora_down"} <= words.keys() or "diff" in words:
        return None
    t = {word: now(tensor).float() for word, tensor in words.items()}
    down = without_middle(t["lora_mid"], t["lora_down"]) if "lora_mid" in t else t["lora_down"]
    return t["lora_up"].flatten(1) * lycoris.scale(t), down.flatten(1)


def words_of(low: LowRank, weight: torch.Size, alpha: float, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the tensors of a LoRA for a layer whose weight has this shape.

    What differs from alpha / rank = 1 goes into the second matrix: diffusers' reader of the kohya layout
    knows one alpha for all attention layers.
    """
    return tensors_of(low.up, low.down, weight, alpha, dtype)


def tensors_of(
    up: torch.Tensor, down: torch.Tensor, weight: torch.Size, alpha: float, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Return up @ down as the tensors of a LoRA with this alpha."""
    import torch

    rank = down.shape[0]
    up = up * (rank / alpha) if alpha != rank else up
    ones = (1,) * (len(weight) - 2)
    return {
        "lora_down": down.reshape(rank, *weight[1:]).to("cpu", dtype or down.dtype),
        "lora_up": up.reshape(weight[0], rank, *ones).to("cpu", dtype or up.dtype),
        "alpha": torch.tensor(float(alpha)),
    }


def sizes(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return DoRA's sizes among the tensors of a layer; none of others."""
    return {word: words[word] for word in DORA_WORDS if word in words} if is_dora(words) else {}
