"""Reading the header of a .safetensors file, and writing one whole or not at all, tensor by tensor.

A file is 8 bytes (the header's length, little-endian), the header (JSON: name -> dtype, shape, offsets, and
text under `__metadata__`) and the tensors. Source: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from .. import files
from ..section import UserError

if TYPE_CHECKING:
    import torch

    from ..seams import Precision
    from .deferred import Deferred

    Tensor = torch.Tensor | Deferred

_MAX_HEADER = 100_000_000
"""The limit of the safetensors library."""


class TensorInfo(NamedTuple):
    """`dtype` as the file says it: F32, F16, BF16, I64 ... `start` is its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    start: int = 0


@dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Return the header without reading the tensors.

    Raises: UserError naming the file if it is missing, cut short, or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, start = _header(file, size)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}.", "Choose another file.") from error
    except (ValueError, struct.error) as error:
        raise UserError(
            f"{path.name} is not a safetensors file.",
            "Choose a file that ends in .safetensors, or download it again.",
        ) from error
    metadata = header.pop("__metadata__", {})
    try:
        tensors = {
            name: TensorInfo(
                info["dtype"],
                tuple(info["shape"]),
                info["data_offsets"][1] - info["data_offsets"][0],
                start + info["data_offsets"][0],
            )
            for name, info in header.items()
        }
        end = start + max((info["data_offsets"][1] for info in header.values()), default=0)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"The header of {path.name} is damaged.", "Download or copy the file again."
        ) from error
    if size != end:
        wrong = "cut short" if size < end else "damaged"
        raise UserError(
            f"{path.name} is {wrong}: it has {size:,} bytes and should have {end:,}.",
            "Download or copy the file again.",
        )
    return Header(metadata, tensors)


def numbers(path: Path, info: TensorInfo) -> list[float]:
    """Return the numbers of one small tensor, without torch.

    Raises: UserError if the file cannot be read, or holds them in a format other than fp32, fp16 and bf16.
    """
    try:
        with path.open("rb") as file:
            file.seek(info.start)
            content = file.read(info.num_bytes)
        if info.dtype == "BF16":  # the upper half of an fp32
            content = b"".join(b"\0\0" + content[i : i + 2] for i in range(0, len(content), 2))
        kind = {"F32": "f", "F16": "e", "BF16": "f"}[info.dtype]
        return [value for (value,) in struct.iter_unpack(f"<{kind}", content)]
    except (OSError, KeyError, struct.error) as error:
        raise UserError(f"{path.name} cannot be read ({error}).", "Choose another file.") from error


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    precision: Precision | None,
    unchanged: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write tensors in `precision`, metadata and its hashes; an old file stays until the new one is whole.

    Without a precision each tensor keeps its own, and so does what is to stay `unchanged`, which takes the
    place of tensors of the same name. Single numbers (alpha) become fp32. The hashes are those by which
    A1111 and others know a file: `sshs_model_hash`, `sshs_legacy_hash` and, if there is a modelspec, its
    `hash_sha256`. They are taken, as sd-scripts does, from the file with only the `ss_` entries.

    Raises: UserError if a tensor is not finite, or if the disk refuses.
    """
    for _ in writing(path, tensors, metadata, precision, unchanged):
        pass


def writing(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    precision: Precision | None,
    unchanged: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[int]:
    """Do what `write` does, one tensor after the other, yielding the bytes of each. Deferred tensors are read
    as it comes to them.
    """
    todo = {name: (tensor, precision) for name, tensor in tensors.items()}
    todo |= {name: (tensor, None) for name, tensor in unchanged.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.new_file(path) as part, part.open("wb") as file:
            yield from _written(file, todo, metadata)
    except OSError as error:
        raise UserError(
            f"{path.name} could not be written: {error}.", "Free some disk space, or choose another folder."
        ) from error


def relabel(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Write the tensors of `source`, byte for byte, under other metadata; both may be the same file. An old
    file stays until the new one is whole.

    Raises: UserError if the file cannot be read, or the disk refuses.
    """
    size = source.stat().st_size
    try:
        with files.new_file(target) as part, source.open("rb") as old, part.open("wb") as new:
            entries, _ = _header(old, size)
            entries.pop("__metadata__", None)
            new.write(_header_bytes(metadata, entries))
            shutil.copyfileobj(old, new, 1 << 22)
    except OSError as error:
        raise UserError(
            f"{target.name} could not be written: {error}.", "Free some disk space, or choose another folder."
        ) from error


def sha256(path: Path, tensors_only: bool = False) -> str:
    """Return the SHA-256 of a file, or of what follows its header. The first ten digits of the one are
    A1111's AutoV2, the first twelve of the other its AutoV3.
    """
    with path.open("rb") as file:
        if tensors_only:
            _header(file, path.stat().st_size)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(file: BinaryIO, size: int) -> tuple[dict, int]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MAX_HEADER):
        raise ValueError("header longer than the file")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("header is no object")
    return header, 8 + length


def as_stored(name: str, tensor: torch.Tensor, precision: Precision | None) -> torch.Tensor:
    """On the CPU, in its own memory, in the precision of the file; single numbers in fp32."""
    import torch

    stored = tensor.detach().to(
        "cpu", stored_as(tensor, precision), copy=True, memory_format=torch.contiguous_format
    )
    if not _is_finite(stored):
        module = name.rpartition(".lora_")[0] or name.rpartition(".")[0] or name
        if _is_finite(tensor):
            raise UserError(
                f"{module} holds values that are too large for {precision}.",
                "Store as bf16 or fp32.",
                "export.precision",
            )
        raise UserError(
            f"{module} holds values that are not numbers: the training went wrong.",
            "Use an earlier checkpoint, and train with a lower learning rate.",
        )
    return stored


def stored_as(tensor: Tensor, precision: Precision | None) -> torch.dtype:
    """Return the number format of a tensor in the file."""
    import torch

    if not tensor.dtype.is_floating_point:
        return tensor.dtype
    if precision is None:
        return tensor.dtype
    if tensor.ndim == 0:
        return torch.float32
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _is_finite(tensor: torch.Tensor) -> bool:
    """8-bit floats have no answer of their own."""
    wide = tensor.float() if tensor.dtype.itemsize == 1 and tensor.is_floating_point() else tensor
    return bool(wide.isfinite().all())


_FORMATS = (
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64",
    "U64",
)  # fmt: skip
"""The number formats in the order of the library, which writes the last of them first."""
_WORDS = {"float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3", "bfloat16": "BF16", "bool": "BOOL"}


def _word(dtype: torch.dtype) -> str:
    """The format's word for torch's: F32 for float32."""
    name = str(dtype).removeprefix("torch.")
    return _WORDS.get(name) or name[0].upper() + name.lstrip("abcdefghijklmnopqrstuvwxyz")


_LEGACY = (0x100000, 0x110000)
"""The bytes of a file from which A1111 made its first hash."""


def _written(
    file: BinaryIO, todo: Mapping[str, tuple[Tensor, Precision | None]], metadata: Mapping[str, str]
) -> Iterator[int]:
    """The header holds hashes of what follows it: it is written with others first, and again at the end."""
    from .deferred import now

    entries = _entries(todo)
    bare = _header_bytes({k: v for k, v in metadata.items() if k.startswith("ss_")}, entries)
    hashing = _Hashing(bare, metadata)
    file.write(_header_bytes(dict(metadata) | hashing.found(), entries))
    for name in entries:
        tensor, precision = todo[name]
        content = _content(as_stored(name, now(tensor), precision))
        hashing.add(content)
        file.write(content)
        yield len(content)
    file.seek(0)
    file.write(_header_bytes(dict(metadata) | hashing.found(), entries))


def _entries(todo: Mapping[str, tuple[Tensor, Precision | None]]) -> dict[str, dict[str, object]]:
    """What the header says of each tensor, in the order of the library: by number format, then by name."""
    words = {name: _word(stored_as(*known)) for name, known in todo.items()}
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for name in sorted(todo, key=lambda name: (-_FORMATS.index(words[name]), name)):
        tensor, precision = todo[name]
        start, end = end, end + math.prod(tensor.shape) * stored_as(tensor, precision).itemsize
        entries[name] = {"dtype": words[name], "shape": list(tensor.shape), "data_offsets": [start, end]}
    return entries


def _header_bytes(metadata: Mapping[str, str], entries: Mapping[str, object]) -> bytes:
    text = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":"), ensure_ascii=False)
    content = text.encode()
    content += b" " * (-len(content) % 8)  # tensors begin at a multiple of 8, as the library writes them
    return struct.pack("<Q", len(content)) + content


def _content(tensor: torch.Tensor) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


class _Hashing:
    """The hashes of a file, as its tensors pass. `bare` is the header that it would have with only its `ss_`
    entries.
    """

    def __init__(self, bare: bytes, metadata: Mapping[str, str]) -> None:
        self._whole, self._legacy, self._at = hashlib.sha256(), hashlib.sha256(), 0
        self._has_modelspec = "modelspec.sai_model_spec" in metadata
        self._pass(memoryview(bare))

    def add(self, content: memoryview) -> None:
        self._whole.update(content)
        self._pass(content)

    def found(self) -> dict[str, str]:
        whole = self._whole.hexdigest()
        found = {"sshs_model_hash": whole, "sshs_legacy_hash": self._legacy.hexdigest()[:8]}
        return found | ({"modelspec.hash_sha256": f"0x{whole}"} if self._has_modelspec else {})

    def _pass(self, content: memoryview) -> None:
        first, last = (min(max(0, end - self._at), len(content)) for end in _LEGACY)
        self._legacy.update(content[first:last])
        self._at += len(content)
