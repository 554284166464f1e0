"""The older files of torch: .ckpt and .bin are read, .pt (embeddings, hypernetworks) also written, so that
A1111's safe loader accepts them.

A1111's loader knows only the pickle stream that torch wrote before 1.6, and the zip members of old versions:
what today's torch.save writes by itself is refused as malicious. Holds plain tensors, numbers and text alone.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..section import UserError

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
_BESIDE = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
"""What the first checkpoints of Stable Diffusion hold beside their tensors: the state of the trainer that
made them. Each becomes an `_Ignored`; the classes themselves are not even imported.
"""


class _Ignored:
    """Takes the place of something that is not needed, and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def write(path: Path, content: Mapping[str | int, Any]) -> None:
    """Write a dictionary, whole or not at all. Tensors go to the CPU, in memory of their own.

    Raises: UserError if the disk refuses.
    """
    import torch

    def put(part: Path) -> None:
        torch.save(_plain(content), part, _use_new_zipfile_serialization=False)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, put)
    except OSError as error:
        raise UserError(
            f"{path.name} could not be written: {error}.", "Free some disk space, or choose another folder."
        ) from error


def read(path: Path) -> dict[str | int, Any]:
    """Return the dictionary of a .ckpt, .pt or .bin file, tensors on the CPU, mapped from disk where they can
    be. No pickled code is executed; what a trainer left beside the tensors is ignored.

    Raises: UserError naming the file if it is missing, damaged, or holds more than tensors, numbers and text.
    """
    import pickle
    import struct

    import torch

    broken = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, struct.error)
    try:
        is_zip = _is_whole_zip(path)
        with torch.serialization.safe_globals([(_Ignored, name) for name in _BESIDE]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}.", "Choose another file.") from error
    except broken as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f" ({foreign[1]})" if foreign else ""
        raise UserError(
            f"{path.name} is damaged, or holds more than tensors, numbers and text{named}.",
            "Choose its .safetensors version, or another file; files with program code inside are never "
            "opened.",
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds no named values.", "Choose another file.")
    return content


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the tensors in such a dictionary by name, or in the `state_dict` that it holds."""
    state = content.get("state_dict", content)
    named = state.items() if isinstance(state, Mapping) else ()
    return {str(name): value for name, value in named if hasattr(value, "element_size")}


def _is_whole_zip(path: Path) -> bool:
    """Whether this is a zip file, as torch writes them since 1.6, with its directory at the end."""
    with path.open("rb") as file:
        begins_so = file.read(2) == b"PK"
    if begins_so and not zipfile.is_zipfile(path):
        raise UserError(
            f"{path.name} is cut short: it has {path.stat().st_size:,} bytes and lacks the list of what it "
            "holds, at the end.",
            "Download or copy the file again.",
        )
    return begins_so


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return type(value)((key, _plain(inner)) for key, inner in value.items())
    return type(value)(_plain(inner) for inner in value) if isinstance(value, list | tuple) else value
