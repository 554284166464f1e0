"""The diffusers layout of a LoRA file: `<part>.<module path>.lora_A.weight` and `.lora_B.weight`, as in peft.

The layout has no place for alpha beside the tensors. Recent diffusers reads it from the header
(`lora_adapter_metadata`); other readers take alpha = rank. So alpha / rank is folded into the tensors, about
its root into each, and the header says alpha = rank: every reader gets the same strength. The root keeps
small values clear of fp16's underflow; where alpha / rank is a power of two, as mostly, so are both factors,
and nothing is rounded.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .kohya import Adapter, with_text_model

if TYPE_CHECKING:
    import torch

METADATA_KEY = "lora_adapter_metadata"


def to_diffusers(adapters: Mapping[str, Adapter]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the header entries of the file for adapters by part and module path."""
    state, config = {}, {}
    for part, adapter in adapters.items():
        is_text = part.startswith("text_encoder")
        for path, lora in adapter.items():
            name = f"{part}.{with_text_model(path) if is_text else path}"
            of_down, of_up = _factors(lora.alpha / lora.rank)
            state[f"{name}.lora_A.weight"] = _times(lora.down, of_down)
            state[f"{name}.lora_B.weight"] = _times(lora.up, of_up)
            if lora.dora_scale is not None:
                # peft loads the denoiser and transformers the encoders: they differ by `.weight`
                weight = ".weight" if is_text else ""
                state[f"{name}.lora_magnitude_vector{weight}"] = magnitude_of(lora.dora_scale)
        # without text_model. the names fit transformers 4 and 5: peft matches them as endings
        ends = {path.removeprefix("text_model.") if is_text else path: lora for path, lora in adapter.items()}
        config |= {f"{part}.{key}": value for key, value in _peft_config(ends).items()}
    return state, {METADATA_KEY: json.dumps(config, sort_keys=True)}


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    """What diffusers hands to peft's LoraConfig; alpha is the rank, module by module."""
    rank = Counter(lora.rank for lora in adapter.values()).most_common(1)[0][0]
    other = {path: lora.rank for path, lora in adapter.items() if lora.rank != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": list(adapter),
        "use_dora": any(lora.dora_scale is not None for lora in adapter.values()),
    }


def _factors(scale: float) -> tuple[float, float]:
    """Two factors of about the same size: powers of two, if the scale is one."""
    mantissa, exponent = math.frexp(scale)
    if mantissa != 0.5:
        return math.sqrt(scale), math.sqrt(scale)
    return 2.0 ** ((exponent - 1) // 2), 2.0 ** (exponent // 2)


def _times(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """In the tensor's own precision if that takes nothing from it, else in fp32."""
    import torch

    if factor == 1:
        return tensor
    wide = tensor.float() * factor
    narrow = wide.to(tensor.dtype)
    is_exact = tensor.dtype is not torch.float32 and torch.equal(narrow.float(), wide)
    return narrow if is_exact else wide


def magnitude_of(dora_scale: torch.Tensor) -> torch.Tensor:
    """Return it in peft's shape: (out,) for linear layers, (1, out, 1, 1) for convolutions."""
    return dora_scale.squeeze(1) if dora_scale.ndim == 2 else dora_scale.transpose(0, 1)
