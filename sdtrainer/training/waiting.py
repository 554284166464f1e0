"""Layers that wait in main memory: a unit of the denoiser is on the card for as long as it runs.

Before a unit runs, copies take the places of its frozen parameters; after it they give them back. Parameters
change places, not their data, because autograd keeps the parameter that was used: so the copies live until a
backward pass is done with them, and no longer. Gradient checkpointing runs each unit again right before its
backward pass, and with it these hooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from .. import frozen

Place = tuple[dict[str, torch.nn.Parameter | None], str, torch.nn.Parameter]
"""Where a module keeps a parameter, its name there, and the parameter."""


def arm(denoiser: torch.nn.Module, part: float, device: str, before: float = 0.0) -> None:
    """Make this part of the units wait in main memory and come to `device` when they run; `move` says where
    the rest of them is. The part `before` does so already.
    """
    armed = {id(unit) for unit in _chosen(denoiser, before)}
    for unit in _chosen(denoiser, part):
        if id(unit) in armed:
            continue
        visit = _Visit(unit, device)
        unit.register_forward_pre_hook(visit.come)
        # also when it breaks off: recomputing ends as soon as the backward pass has what it needs
        unit.register_forward_hook(visit.go, always_call=True)
        for _, _, parameter in _frozen_places(unit):
            parameter.data = parameter.data.to("cpu")
            if torch.device(device).type == "cuda":
                with contextlib.suppress(RuntimeError):  # no more memory can be pinned: copying is slower
                    parameter.data = parameter.data.pin_memory()


def move(denoiser: torch.nn.Module, part: float, device: str) -> None:
    """Move all of a denoiser that does not wait."""
    waiting = {id(p) for unit in _chosen(denoiser, part) for _, _, p in _frozen_places(unit)}
    for tensor in chain(denoiser.parameters(), denoiser.buffers()):
        if id(tensor) not in waiting:
            tensor.data = tensor.data.to(device)


@dataclass
class _Visit:
    """The stays of one unit on a device. `at_home` are the parameters whose places are taken meanwhile."""

    unit: torch.nn.Module
    device: str
    at_home: list[Place] = field(default_factory=list)

    def come(self, *_: Any) -> None:
        for kept, name, parameter in _frozen_places(self.unit):
            copy = parameter.detach().to(self.device, non_blocking=True, copy=True)
            self.at_home.append((kept, name, parameter))
            kept[name] = torch.nn.Parameter(copy, requires_grad=False)

    def go(self, *_: Any) -> None:
        for kept, name, parameter in self.at_home:
            kept[name] = parameter
        self.at_home.clear()


def _chosen(denoiser: torch.nn.Module, part: float) -> list[torch.nn.Module]:
    units = frozen.units(denoiser) if part else []
    sizes = [sum(p.nbytes for _, _, p in _frozen_places(unit)) for unit in units]
    return [unit for unit, waits in zip(units, frozen.chosen(sizes, part), strict=True) if waits]


def _frozen_places(unit: torch.nn.Module) -> Iterator[Place]:
    for module in unit.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad:
                yield module._parameters, name, parameter
