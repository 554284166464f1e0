"""Writing the kohya layout of a LoRA file, read by A1111, Forge, ComfyUI and diffusers.

Per module `<name>.lora_down.weight`, `<name>.lora_up.weight`, `<name>.alpha` and, for DoRA,
`<name>.dora_scale`, where <name> is a prefix for the part and the module path with `_` for `.`. It stands for
delta W = up @ down * alpha / rank.

Shapes: R rank; down (R, in[, kh, kw]), up (out, R[, 1, 1]), dora_scale (out, 1[, 1, 1]).
Source of the names: networks/lora.py in kohya-ss/sd-scripts, and the key maps of the programs that read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .naming import Naming

SD_PREFIXES: Mapping[str, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}
SDXL_PREFIXES: Mapping[str, str] = {
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}


SD3_PREFIXES: Mapping[str, str] = {
    "transformer": "lora_transformer",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
"""OneTrainer's for the transformer, with diffusers' names: in kohya's own, query, key and value are one."""


@dataclass(frozen=True, eq=False)
class LoraTensors:
    """The adapter of one module. Shapes: as above."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    dora_scale: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


Adapter = Mapping[str, LoraTensors]
"""The adapters of one part, by module path."""


def with_text_model(path: str) -> str:
    """Return a text encoder's module path with the `text_model.` that transformers 5 dropped."""
    return path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"


def module_name(part: str, path: str, prefix: str) -> str:
    """Return the name of a module in the file: lora_unet_down_blocks_0_attentions_0_proj_in."""
    whole = with_text_model(path) if part.startswith("text_encoder") else path
    return f"{prefix}_{whole.replace('.', '_')}"


def to_kohya(adapters: Mapping[str, Adapter], naming: Naming) -> dict[str, torch.Tensor]:
    """Return the tensors of the file for adapters by part ("unet", "text_encoder") and module path."""
    import torch

    state = {}
    for part, adapter in adapters.items():
        for path, lora in adapter.items():
            name = naming.name(part, path)
            state[f"{name}.lora_down.weight"] = lora.down
            state[f"{name}.lora_up.weight"] = lora.up
            state[f"{name}.alpha"] = torch.tensor(lora.alpha, dtype=torch.float32)
            if lora.dora_scale is not None:
                state[f"{name}.dora_scale"] = lora.dora_scale
    return state
