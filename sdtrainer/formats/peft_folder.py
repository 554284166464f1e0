"""peft's own layout: a folder for each part, with adapter_config.json and adapter_model.safetensors.

The config holds rank and alpha of every layer, so nothing is folded into the tensors. Names are
`base_model.model.<module path>.lora_A.weight`, the paths those of the live modules. Source: PeftModel's
save_pretrained and get_peft_model_state_dict in huggingface/peft 0.21.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..section import UserError
from . import safetensors_file
from .diffusers_names import METADATA_KEY, magnitude_of
from .kohya import Adapter, LoraTensors

if TYPE_CHECKING:
    import torch

    from ..seams import Precision

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def is_folder(path: Path) -> bool:
    """Return whether an adapter of peft lies here: that of one part, or a folder for each."""
    return path.is_dir() and bool(_folders(path))


def read(path: Path, load: Callable[[Path], Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors under diffusers' names, and the header entry by which their alphas are known. `load`
    reads one file, tensors or what a header says of them.

    Raises:
        UserError: a file is missing or damaged.
    """
    entries: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for part, folder in _folders(path).items():
        try:
            said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            state = load(folder / WEIGHTS)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder.name}/{CONFIG} or {WEIGHTS} beside it is missing or damaged.",
                "Copy the whole folder again.",
            ) from error
        part = part or ("text_encoder" if any(".self_attn." in name for name in state) else "unet")
        entries |= {f"{part}.{name.removeprefix(_PREFIX)}": value for name, value in state.items()}
        config |= {f"{part}.{key}": value for key, value in said.items()}
    return entries, {METADATA_KEY: json.dumps(config)}


def writing(
    path: Path, adapters: Mapping[str, Adapter], metadata: Mapping[str, str], precision: Precision | None
) -> Iterator[int]:
    """Write the folders, whole or not at all, yielding the bytes of each tensor."""
    with files.new_folder(path) as new:
        for part, adapter in adapters.items():
            state = {_PREFIX + name: tensor for name, tensor in _named(adapter)}
            yield from safetensors_file.writing(
                new / part / WEIGHTS, state, dict(metadata) | {"format": "pt"}, precision
            )
            text = json.dumps(_config(adapter), indent=2)
            (new / part / CONFIG).write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)


def _named(adapter: Adapter) -> Iterator[tuple[str, torch.Tensor]]:
    for path, lora in adapter.items():
        yield f"{path}.lora_A.weight", lora.down
        yield f"{path}.lora_B.weight", lora.up
        if lora.dora_scale is not None:
            yield f"{path}.lora_magnitude_vector", magnitude_of(lora.dora_scale)


def _config(adapter: Adapter) -> dict[str, Any]:
    rank, rank_pattern = _usual(adapter, lambda lora: lora.rank)
    alpha, alpha_pattern = _usual(adapter, lambda lora: lora.alpha)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": list(adapter),
        "use_dora": any(lora.dora_scale is not None for lora in adapter.values()),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
    }


def _usual(adapter: Adapter, what: Callable[[LoraTensors], Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and the others by a pattern that fits one whole path."""
    values = {path: what(lora) for path, lora in adapter.items()}
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {f"^{re.escape(path)}": value for path, value in values.items() if value != usual}


def _folders(path: Path) -> dict[str, Path]:
    """The folders with an adapter by part; '' where none is named."""
    if (path / CONFIG).is_file():
        is_part = re.fullmatch(r"unet|transformer|text_encoder(_\d)?", path.name)
        return {path.name if is_part else "": path}
    return {folder.name: folder for folder in sorted(path.glob("*")) if (folder / CONFIG).is_file()}
