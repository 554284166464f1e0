"""Tensors kept on disk by what they were made from, so that a stale one cannot be found.

`Cache` stores small dictionaries of tensors by key; a key is a hash of every fact that changes the tensors.
It also remembers facts about files that did not change, such as the hash of their content.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files

if TYPE_CHECKING:
    import torch


class Cache:
    """A folder of cached tensors. Safe to delete at any time; safe to share between runs and processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._facts_file = folder / "facts.jsonl"
        self._facts: dict[str, tuple[list[int], dict[str, str]]] = {}
        self._writing = threading.Lock()
        self._read_facts()

    def key(self, *facts: object) -> str:
        """Return the key of tensors made from these facts: numbers, strings, and lists and dicts of them."""
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return what was put, or None. A torn or corrupt file is removed and counts as never put."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._file(key)
        try:
            return load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError):
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save

        files.write_bytes(
            self._file(key), save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        )

    def has(self, key: str) -> bool:
        """Tell whether `get` would find it: the file is there and whole. Its tensors are not read."""
        from safetensors import SafetensorError, safe_open

        path = self._file(key)
        try:
            with safe_open(path, framework="pt"):
                return True
        except FileNotFoundError:
            return False
        except SafetensorError:
            path.unlink(missing_ok=True)
            return False

    def drop(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)

    def content(self, path: Path) -> str:
        """Return the sha256 of a file's bytes; hashed once, until its size or time of change differs."""
        return self.fact(path, "sha256", _sha256)

    def fact(self, path: Path, name: str, find_out: Callable[[Path], str]) -> str:
        """Return `find_out(path)`, remembered for as long as the file's size and time of change stay."""
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        known_stamp, facts = self._facts.get(str(path), (stamp, {}))
        if known_stamp != stamp:
            facts = {}
        if name not in facts:
            facts = facts | {name: find_out(path)}
            with self._writing:
                self._facts[str(path)] = (stamp, facts)
                self._append(str(path), stamp, facts)
        return facts[name]

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _append(self, path: str, stamp: list[int], facts: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._facts_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([path, stamp, facts]) + "\n")

    def _read_facts(self) -> None:
        """Read the facts; the last line of a path counts, and a torn line is only a forgotten fact."""
        if not self._facts_file.is_file():
            return
        lines = self._facts_file.read_text("utf-8", errors="replace").splitlines()
        for line in lines:
            try:
                path, stamp, facts = json.loads(line)
                self._facts[path] = (stamp, dict(facts))
            except (ValueError, TypeError):
                continue
        if len(lines) > 2 * len(self._facts) + 100:
            whole = "".join(json.dumps([path, *entry]) + "\n" for path, entry in self._facts.items())
            files.write_bytes(self._facts_file, whole.encode())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
