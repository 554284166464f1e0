"""Whether an exported file or folder can be read back."""

from __future__ import annotations

from pathlib import Path


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
