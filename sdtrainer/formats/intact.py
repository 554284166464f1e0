"""Whether an exported file or folder can be read back, and is still what was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..section import UserError
from . import safetensors_file


def read_back(path: Path) -> None:
    """Read every tensor of a .safetensors file, a .pt file, or a folder of them.

    Raises: whatever the reader raises if a file is damaged, ValueError if there is no tensor at all.
    """
    if path.is_dir():
        weights = [f for f in sorted(path.rglob("*")) if f.suffix in (".safetensors", ".pt")]
        if not weights:
            raise ValueError(f"{path.name} holds no weights")
        for file in weights:
            read_back(file)
    elif path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                file.get_tensor(name)
    else:
        import torch

        torch.load(path, map_location="cpu", weights_only=True)


def check_hash(path: Path) -> None:
    """Compare the tensors of a .safetensors file with the hash in its header, if there is one.

    For files of ours: other programs copy the entry into files that they changed.

    Raises:
        UserError: they are not the same.
    """
    header = safetensors_file.read_header(path)
    recorded = header.metadata.get("sshs_model_hash")
    if recorded is None:
        return
    with path.open("rb") as file:
        file.seek(min(info.start for info in header.tensors.values()))
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != recorded:
        raise UserError(
            f"{path.name} was altered or damaged: its contents have the hash {found[:10]}, and its header "
            f"says {recorded[:10]}.",
            "Download or copy the file again.",
        )
