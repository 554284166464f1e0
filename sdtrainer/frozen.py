"""Frozen weights of denoiser and T5: what they take in fewer bits or in main memory, and when that may be.

Kept in fewer bits are Linear layers alone: in 8 bits with one scale for each row (the storage of LLM.int8(),
Dettmers et al. 2022, arXiv 2208.07339), or in the 4-bit NormalFloat with one scale for each 64 weights
(QLoRA, Dettmers et al. 2023, arXiv 2305.14314, section 3). QLoRA keeps these scales in 8 bits, too; here they
stay fp32: 4.5 bits a weight instead of 4.13, 0.1 GB of SDXL, and no second table to look up in every pass.

Main memory is for units that gradient checkpointing runs again in the backward pass: elsewhere autograd would
keep their weights on the card. This module only counts and judges; training/ does it.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .config import Config
from .methods import method_of
from .seams import BYTES, T5, Facts, Precision
from .section import UserError

if TYPE_CHECKING:
    import torch

FrozenAs = Literal["plain", "int8", "nf4"]
NF4_BLOCK = 64
"""So many weights of nf4 share one scale."""

PARTS: Mapping[str, float] = {"auto": 0.0, "off": 0.0, "half": 0.5, "all": 1.0}
"""Which part of the units waits in main memory, by the words of `train.offload`."""
_BYTES: Mapping[FrozenAs, Callable[[int, int], int]] = {
    "int8": lambda rows, columns: rows * columns + 4 * rows,
    "nf4": lambda rows, columns: math.ceil(rows * columns / 2) + 4 * math.ceil(rows * columns / NF4_BLOCK),
}
"""Of a Linear's weight with its scales."""
_UNITS = ("ResnetBlock2D", "BasicTransformerBlock", "JointTransformerBlock")
EXACT = re.compile(r"DenseReluDense\.wo\.")
"""The layers of T5 that say numbers too large for fp16."""
_NEVER_RUN_AGAIN = re.compile(r"mid_block\.resnets\.0")
"""diffusers checkpoints every residual block of a UNet but this (0.42.1)."""


@dataclass(frozen=True)
class Weight:
    """Frozen weights: `numbers` in the base's own precision, and `bytes_beside` in fewer bits; the largest of
    these has `largest` numbers when it is made whole for a product. So many as `exact` stay fp32 in fp16.
    """

    numbers: int
    bytes_beside: int = 0
    largest: int = 0
    exact: int = 0

    def bytes(self, precision: Precision) -> int:
        doubled = self.exact if precision == "fp16" else 0
        return (self.numbers + doubled) * BYTES[precision] + self.bytes_beside


@dataclass(frozen=True)
class Held:
    """A denoiser before a method is attached: all of it, and its units in order."""

    whole: Weight
    units: tuple[Weight, ...]

    def waiting(self, part: float, precision: Precision) -> int:
        """Return the bytes that wait in main memory."""
        return sum(unit.bytes(precision) for unit in self._waiting(part, precision))

    def passing(self, part: float, precision: Precision, computed: Precision) -> int:
        """Return the most bytes that come for a moment: a unit that waited, with its largest weight whole."""
        units = self._waiting(part, precision)
        visits = [unit.bytes(precision) + unit.largest * BYTES[computed] for unit in units]
        return max([*visits, self.whole.largest * BYTES[computed]])

    def _waiting(self, part: float, precision: Precision) -> list[Weight]:
        sizes = [unit.bytes(precision) for unit in self.units]
        return [unit for unit, waits in zip(self.units, chosen(sizes, part), strict=True) if waits]


def kind_of(config: Config, device: str) -> FrozenAs:
    """Return what the frozen base is kept in, as far as the user says. Raises UserError."""
    wanted = config.base.quantize
    if wanted in ("auto", "plain"):
        return "plain"
    if reason := why_not_quantise(wanted, config, device):
        raise UserError(
            f"Frozen base kept in: {wanted} is not possible: {reason}.",
            "Choose 'auto' or plain.",
            "base.quantize",
        )
    return wanted


def kind_of_t5(config: Config, facts: Facts, device: str) -> FrozenAs:
    """Return what T5 is kept in, as far as the user says. Raises UserError."""
    wanted = config.base.t5
    if T5 not in facts.encoders or wanted in ("auto", "plain", "off"):
        return "plain"
    if reason := why_no_kernels(wanted, device):
        raise UserError(f"T5: {wanted} is not possible: {reason}.", "Choose 'auto' or int8.", "base.t5")
    return wanted


def part_offloaded(config: Config, device: str, processes: int, checkpointing: bool) -> float:
    """Return which part of the units waits in main memory, as far as the user says. Raises UserError."""
    part = PARTS[config.train.offload]
    reason = why_not_offload(config, device, processes, checkpointing)
    if part and reason:
        raise UserError(
            f"Layers waiting in main memory: '{config.train.offload}' is not possible: {reason}.",
            "Choose 'auto' or off.",
            "train.offload",
        )
    return part


def why_not_quantise(kind: FrozenAs, config: Config, device: str) -> str:
    """Say why the frozen base cannot be kept as `kind`; empty if it can."""
    method = method_of(config.method.kind)
    if not method.keeps_base:
        return f"{method.title} changes the base's own weights"
    if method.reads_base(config.method):
        return "DoRA measures the base's exact weights"
    return why_no_kernels(kind, device)


def why_no_kernels(kind: FrozenAs, device: str) -> str:
    """Say why this computer cannot compute with weights kept as `kind`; empty if it can."""
    if kind == "nf4" and device == "mps":
        return "it was never tried on this kind of card"
    if kind == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        return "the package bitsandbytes is not installed"
    return ""


def why_not_offload(config: Config, device: str, processes: int, checkpointing: bool) -> str:
    """Say why no layer of the denoiser can wait in main memory; empty if some can."""
    method = method_of(config.method.kind)
    if not method.keeps_base:
        return f"{method.title} changes the base's own weights"
    if device != "cuda":
        return "this machine has no graphics card with memory of its own"
    if processes > 1:
        return "several cards that train together each hold all layers"
    if not checkpointing:
        return "without gradient checkpointing every layer stays on the card between the passes"
    return ""


def linears(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Linear]]:
    """Yield (path, layer) of the Linear layers of which nothing is trained."""
    import torch

    for path, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and not any(p.requires_grad for p in layer.parameters()):
            yield path, layer


def units(denoiser: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the submodules that gradient checkpointing runs again, in order."""
    return [
        module
        for path, module in denoiser.named_modules()
        if type(module).__name__ in _UNITS and not _NEVER_RUN_AGAIN.fullmatch(path)
    ]


def chosen(sizes: Sequence[int], part: float) -> list[bool]:
    """Say of each unit whether it waits: evenly spread, so that about this part of all bytes does."""
    wanted, waiting, found = 0.0, 0, []
    for size in sizes:
        wanted += part * size
        waits = part > 0 and waiting + size / 2 <= wanted
        waiting += size * waits
        found.append(waits)
    return found


def measure(denoiser: torch.nn.Module) -> dict[FrozenAs, Held]:
    """Return what a plain denoiser, all of it frozen, would hold in each kind. A meta one will do."""
    kinds: tuple[FrozenAs, ...] = ("plain", *_BYTES)
    parts = units(denoiser)
    return {kind: Held(_weigh(denoiser, kind), tuple(_weigh(u, kind) for u in parts)) for kind in kinds}


def _weigh(module: torch.nn.Module, kind: FrozenAs) -> Weight:
    numbers = sum(p.numel() for p in module.parameters())
    if kind == "plain":
        exact = (p.numel() for name, p in module.named_parameters() if EXACT.search(name))
        return Weight(numbers, exact=sum(exact))
    shapes = [(layer.out_features, layer.in_features) for _, layer in linears(module)]
    sizes = [rows * columns for rows, columns in shapes]
    beside = sum(_BYTES[kind](*shape) for shape in shapes)
    return Weight(numbers - sum(sizes), beside, max(sizes, default=0))
