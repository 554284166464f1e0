"""Reading the header of a .safetensors file, and writing one whole or not at all.

A file is 8 bytes (the header's length, little-endian), the header (JSON: name -> dtype, shape, offsets, and
text under `__metadata__`) and the tensors. Source: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from .. import files
from ..section import UserError

if TYPE_CHECKING:
    import torch

    from ..seams import Precision

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
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    precision: Precision,
    unchanged: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> None:
    """Write tensors in `precision`, metadata and its hashes; an old file stays until the new one is whole.

    What is to stay `unchanged` keeps its number format, and takes the place of tensors of the same name.
    Single numbers (alpha) stay fp32. The hashes are those by which A1111 and others know a file:
    `sshs_model_hash`, `sshs_legacy_hash` and, if there is a modelspec, its `hash_sha256`. They are taken, as
    sd-scripts does, from the file with only the `ss_` entries.

    Raises: UserError if a tensor is not finite, or if the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {name: as_stored(name, t, precision) for name, t in tensors.items() if name not in unchanged}
    stored |= {name: tensor.detach().cpu().clone() for name, tensor in unchanged.items()}

    def put(part: Path) -> None:
        bare = part.with_name(part.name + ".bare")
        try:
            save_file(stored, bare, {k: v for k, v in metadata.items() if k.startswith("ss_")})
            _copy_with_metadata(bare, part, dict(metadata) | _hashes(bare, metadata))
        finally:
            bare.unlink(missing_ok=True)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, put)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path.name} could not be written: {error}.", "Free some disk space, or choose another folder."
        ) from error


def _header(file: BinaryIO, size: int) -> tuple[dict, int]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MAX_HEADER):
        raise ValueError("header longer than the file")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("header is no object")
    return header, 8 + length


def as_stored(name: str, tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
    """On the CPU, in its own memory, in the precision of the file; single numbers in fp32."""
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    if not tensor.is_floating_point():
        dtype = tensor.dtype
    elif tensor.ndim == 0:
        dtype = torch.float32
    stored = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    if not stored.isfinite().all():
        module = name.rpartition(".lora_")[0] or name.rpartition(".")[0] or name
        if tensor.isfinite().all():
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


def _hashes(bare: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    with bare.open("rb") as file:
        _, start = _header(file, bare.stat().st_size)
        file.seek(start)
        whole = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0x100000)
        legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    found = {"sshs_model_hash": whole, "sshs_legacy_hash": legacy}
    return found | ({"modelspec.hash_sha256": f"0x{whole}"} if "modelspec.sai_model_spec" in metadata else {})


def _copy_with_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        header, _ = _header(old, source.stat().st_size)
        text = json.dumps(header | {"__metadata__": dict(metadata)}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as the library writes them
        new.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(old, new, 1 << 22)
