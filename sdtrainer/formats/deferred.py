"""Tensors that are read when they are needed: whole models are renamed, merged and written one at a time.

A `Deferred` knows shape and number format at once, and its numbers when asked for them. What is done to it
(reshaping, dividing, joining) is done to its shape now and to its numbers then, so the tables of ldm.py and
mmdit.py serve files that would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import legacy_pt
from .safetensors_file import TensorInfo, read_header

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""The number formats of safetensors."""


class Deferred:
    """A tensor to come. `empty` is it on the meta device, `make` gives its numbers."""

    def __init__(self, empty: torch.Tensor, make: Callable[[], torch.Tensor]) -> None:
        self.empty, self.make = empty, make

    @property
    def shape(self) -> torch.Size:
        return self.empty.shape

    @property
    def ndim(self) -> int:
        return self.empty.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.empty.dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def then(self, do: Callable[[torch.Tensor], torch.Tensor]) -> Deferred:
        """Return what `do` makes of it, to come."""
        return Deferred(do(self.empty), lambda: do(self.make()))

    def reshape(self, *shape: int) -> Deferred:
        return self.then(lambda t: t.reshape(*shape))

    def contiguous(self) -> Deferred:
        return self.then(lambda t: t.contiguous())

    def chunk(self, count: int) -> tuple[Deferred, ...]:
        def piece(number: int) -> Deferred:
            return self.then(lambda t: t.chunk(count)[number])

        return tuple(piece(number) for number in range(count))

    @property
    def T(self) -> Deferred:
        return self.then(lambda t: t.T)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Deferred:
        """torch.cat, which alone is used of torch's own functions."""
        assert func is torch.cat, f"{func} is not deferred"
        (pieces,) = args
        return Deferred(
            torch.cat([empty(piece) for piece in pieces]),
            lambda: torch.cat([now(piece) for piece in pieces]),
        )


def now(tensor: torch.Tensor | Deferred) -> torch.Tensor:
    """Return the tensor with its numbers."""
    return tensor.make() if isinstance(tensor, Deferred) else tensor


def empty(tensor: torch.Tensor | Deferred) -> torch.Tensor:
    """Return the tensor without its numbers."""
    return tensor.empty if isinstance(tensor, Deferred) else tensor.to("meta")


def tensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by name, to be read when needed; those of an older file (.ckpt) are mapped
    from disk.

    Raises:
        UserError: it is damaged, or holds program code.
    """
    if path.suffix.lower() in legacy_pt.SUFFIXES:
        return legacy_pt.tensors_of(legacy_pt.read(path))
    return {name: _of(path, info) for name, info in read_header(path).tensors.items()}


def _of(path: Path, info: TensorInfo) -> Deferred:
    dtype = DTYPES[info.dtype]
    return Deferred(torch.empty(info.shape, dtype=dtype, device="meta"), lambda: _read(path, info, dtype))


def _read(path: Path, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    """A copy in memory of its own: of a mapped one, all pages read stay with the process."""
    if not info.num_bytes:
        return torch.empty(info.shape, dtype=dtype)
    content = bytearray(info.num_bytes)
    with path.open("rb") as file:
        file.seek(info.start)
        file.readinto(content)
    return torch.frombuffer(content, dtype=dtype).reshape(info.shape)
