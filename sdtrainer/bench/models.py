"""Base models of full size without their weights: the configs that were published, and weights by chance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families import ASSETS, published
from ..seams import Facts, Family, Parts

if TYPE_CHECKING:
    import torch

MODELS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "SD 1.5": published.MODELS["SD1"],
    "SD 2.1": published.MODELS["SD2"],
    "SDXL": published.MODELS["SDXL"],
}
"""Config files by model; one joins with its family."""


def write(model: str, folder: Path) -> Path:
    """Write a model's folder with configs and a tokenizer (the starter's, which has fewer words)."""
    write_configs(MODELS[model], folder)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(ASSETS / "starter-model" / "tokenizer", folder / name, dirs_exist_ok=True)
    return folder


def write_configs(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Write config files by their paths and return the folder."""
    for name, values in configs.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    return folder


def with_random_weights(family: Family, device: str) -> Family:
    """Return the family, its weights made by chance on `device` instead of loaded."""

    class Random(type(family)):  # type: ignore[misc]
        def load(self, facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> Parts:
            loaded = super().load(facts, (), {})  # the tokenizers
            for part, module in self.skeleton(facts).items():
                if part in parts:
                    _fill(module, device, dtypes[part])
                    loaded.modules[part] = module.to("cpu").requires_grad_(False).eval()
            return loaded

    return Random()


def _fill(module: torch.nn.Module, device: str, dtype: torch.dtype) -> None:
    """Put numbers in place of a meta module's own: small ones, and 1 where a norm scales."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                made = torch.empty(parameter.shape, dtype=dtype, device=device)
                is_scale = name == "weight" and parameter.ndim == 1
                made = made.fill_(1.0) if is_scale else made.normal_(0, 0.02, generator=generator)
                owner._parameters[name] = torch.nn.Parameter(made)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = _buffer(buffer, device, dtype)


def _buffer(meant: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers are positions, counted along the last side; others do not matter."""
    import torch

    if meant.is_floating_point():
        return torch.zeros(meant.shape, dtype=dtype, device=device)
    return torch.arange(meant.shape[-1], dtype=meant.dtype, device=device).expand(meant.shape).contiguous()
