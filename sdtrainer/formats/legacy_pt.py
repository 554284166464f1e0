"""The older .pt files of A1111 (embeddings, hypernetworks), written so that its safe loader accepts them.

A1111's loader knows only the pickle stream that torch wrote before 1.6, and the zip members of old versions:
what today's torch.save writes by itself is refused as malicious. Holds plain tensors, numbers and text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..section import UserError


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
    """Return the dictionary of a .pt file, tensors on the CPU. No pickled code is executed.

    Raises: UserError naming the file if it is missing, damaged, or holds more than tensors, numbers and text.
    """
    import pickle
    import struct

    import torch

    broken = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, struct.error)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}.", "Choose another file.") from error
    except broken as error:
        raise UserError(
            f"{path.name} is damaged, or holds more than tensors, numbers and text.",
            "Choose another file; files with program code inside are never opened.",
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds no named values.", "Choose an embedding or hypernetwork file.")
    return content


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return type(value)((key, _plain(inner)) for key, inner in value.items())
    return type(value)(_plain(inner) for inner in value) if isinstance(value, list | tuple) else value
