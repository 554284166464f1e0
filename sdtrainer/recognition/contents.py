"""What a file of tensors lists, whatever its format: names, shapes, number formats, text.

Of .safetensors the header alone is read; .ckpt, .pt and .bin have none, so they are opened as a whole,
without executing anything that they bring along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..formats import legacy_pt, safetensors_file
from ..formats.safetensors_file import TensorInfo
from ..section import UserError

HEADED = (".safetensors", ".sft")
_PRECISIONS = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8",
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
}  # fmt: skip
"""Our words for the number formats of safetensors, and its words for those of torch."""


@dataclass(frozen=True)
class Contents:
    """`numbers` reads one small tensor. `plain` is all that a file without a header holds."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    numbers: Callable[[str], list[float]]
    plain: Mapping[Any, Any] = field(default_factory=dict)
    has_header: bool = True

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}


def contents_of(path: Path) -> Contents:
    """Open a file.

    Raises:
        UserError: naming the file if it is missing, cut short, of another format, or holds program code.
    """
    suffix = path.suffix.lower()
    if suffix in HEADED:
        header = safetensors_file.read_header(path)
        return Contents(
            header.tensors,
            header.metadata,
            lambda name: safetensors_file.numbers(path, header.tensors[name]),
        )
    if suffix in legacy_pt.SUFFIXES:
        return _pickled(path)
    raise UserError(
        f"{path.name} is no file of a model: its name ends in '{suffix}'.",
        f"Choose a file that ends in {', '.join((HEADED[0], *legacy_pt.SUFFIXES))}.",
    )


def precision(dtype: str) -> str:
    """Return fp32, fp16, bf16 ... for the word of a header; whole numbers keep theirs."""
    return _PRECISIONS.get(dtype, dtype.lower())


def _pickled(path: Path) -> Contents:
    plain = legacy_pt.read(path)
    tensors = legacy_pt.tensors_of(plain)
    infos = {
        name: TensorInfo(_dtype(value), tuple(value.shape), value.numel() * value.element_size())
        for name, value in tensors.items()
    }
    metadata = {str(k): str(v) for k, v in plain.items() if isinstance(v, str | int | float)}
    return Contents(
        infos, metadata, lambda name: tensors[name].float().flatten().tolist(), plain, has_header=False
    )


def _dtype(tensor: Any) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return _PRECISIONS.get(name, name.upper())
