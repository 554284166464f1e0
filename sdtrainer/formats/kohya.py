"""The kohya layout of a LoRA file, read by A1111, Forge, ComfyUI and diffusers.

Per module `<name>.lora_down.weight`, `<name>.lora_up.weight`, `<name>.alpha` and, for DoRA,
`<name>.dora_scale`, where <name> is a prefix for the part and the module path with `_` for `.`. It stands for
delta W = up @ down * alpha / rank.

Shapes: R rank; down (R, in[, kh, kw]), up (out, R[, 1, 1]), dora_scale (out, 1[, 1, 1]).
Source of the names: networks/lora.py in kohya-ss/sd-scripts, and the key maps of the programs that read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..section import UserError

if TYPE_CHECKING:
    import torch

SD_PREFIXES: Mapping[str, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}
SDXL_PREFIXES: Mapping[str, str] = {
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
_ALSO_READ = {"lora_te": ("lora_te1",)}
"""diffusers writes SD1's only encoder as if there were two."""


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


def to_kohya(
    adapters: Mapping[str, Adapter], prefixes: Mapping[str, str] = SD_PREFIXES
) -> dict[str, torch.Tensor]:
    """Return the tensors of the file for adapters by part ("unet", "text_encoder") and module path."""
    import torch

    state = {}
    for part, adapter in adapters.items():
        for path, lora in adapter.items():
            name = module_name(part, path, prefixes[part])
            state[f"{name}.lora_down.weight"] = lora.down
            state[f"{name}.lora_up.weight"] = lora.up
            state[f"{name}.alpha"] = torch.tensor(lora.alpha, dtype=torch.float32)
            if lora.dora_scale is not None:
                state[f"{name}.dora_scale"] = lora.dora_scale
    return state


def from_kohya(
    state: Mapping[str, torch.Tensor],
    paths: Mapping[str, Iterable[str]],
    prefixes: Mapping[str, str] = SD_PREFIXES,
) -> dict[str, dict[str, LoraTensors]]:
    """Return the adapters of a file by part and module path.

    `paths` are the module paths of the model, by part: needed because `_` in a name may stand for `.` or for
    itself. A missing alpha means alpha = rank.

    Raises: UserError naming what is in the file and not in the model.
    """
    where = {}
    for part, modules in paths.items():
        for prefix in (prefixes[part], *_ALSO_READ.get(prefixes[part], ())):
            where |= {module_name(part, path, prefix): (part, path) for path in modules}

    by_module: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        name, _, kind = key.partition(".")
        by_module.setdefault(name, {})[kind] = tensor

    adapters: dict[str, dict[str, LoraTensors]] = {}
    left = []
    for name, tensors in by_module.items():
        known = {kind: tensors.pop(kind) for kind in _KINDS if kind in tensors}
        left += [f"{name}.{kind}".rstrip(".") for kind in tensors]
        if name not in where or _DOWN not in known or _UP not in known:
            left += [f"{name}.{kind}" for kind in known]
            continue
        part, path = where[name]
        alpha = known.get("alpha")
        adapters.setdefault(part, {})[path] = LoraTensors(
            down=known[_DOWN],
            up=known[_UP],
            alpha=float(known[_DOWN].shape[0] if alpha is None else alpha),
            dora_scale=known.get("dora_scale"),
        )
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise UserError(
            f"{len(left)} entries of this LoRA file do not fit the base model: {', '.join(left[:3])}{more}.",
            "Choose the base model that it was trained on, and a plain LoRA file.",
        )
    return adapters


_DOWN, _UP = "lora_down.weight", "lora_up.weight"
_KINDS = (_DOWN, _UP, "alpha", "dora_scale")
