"""What a training stage keeps on disk so that it can go on after an interruption."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import torch

SAVE_EVERY_SECONDS = 150.0


class Stateful(Protocol):
    """A module or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Everything to be kept."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take up what was kept."""


class Checkpoint:
    """One file with the states of all parts, the steps made and the seconds spent."""

    def __init__(self, path: Path, parts: dict[str, Any]) -> None:
        self._path = path
        self._parts: dict[str, Stateful] = parts
        self._saved_at = time.monotonic()

    def resume(self) -> tuple[int, float]:
        """Load the file into the parts if it exists; return its steps and seconds, else zeros."""
        if not self._path.exists():
            return 0, 0.0
        state = torch.load(self._path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return state["steps"], state["spent"]

    def save(self, steps: int, spent: float) -> None:
        """Write the file, never leaving a half-written one."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        fresh = self._path.with_suffix(".new")
        torch.save({**state, "steps": steps, "spent": spent}, fresh)
        fresh.replace(self._path)
        self._saved_at = time.monotonic()

    def save_sometimes(self, steps: int, spent: float) -> None:
        """Save if the last time is a while ago."""
        if time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS:
            self.save(steps, spent)
