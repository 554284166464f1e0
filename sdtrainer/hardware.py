"""What this machine has: card, memory, which number formats it really computes in. Reads, never decides.

`detect()` looks; `Machine` and `Card` are plain values, so tests and the page can imagine any machine.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from typing import Literal

from .section import UserError

GIB = 2**30
LEAST_GIB, MOST_GIB = 0.5, 1024
"""Sizes of cards that can be imagined."""
_SIZE = re.compile(r"(\d+(?:[.,]\d*)?|[.,]\d+)\s*(?:gi?b|g)?")


@dataclass(frozen=True)
class Card:
    """A graphics card. `capability` is CUDA's compute capability (0, 0 where there is none)."""

    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]

    @property
    def has_bf16(self) -> bool:
        """bf16 in hardware: torch also says yes where it is only emulated (Turing), which is slower than
        fp32.
        """
        return self.capability >= (8, 0)


@dataclass(frozen=True)
class Machine:
    device: Literal["cuda", "mps", "cpu"]
    card: Card | None
    ram_bytes: int
    ram_free_bytes: int
    processes: int = 1
    swap_free_bytes: int = 0
    processor_has_bf16: bool = False


CPU_ONLY = Machine("cpu", None, 16 * GIB, 12 * GIB)


def imagined(gib: float, name: str = "", capability: tuple[int, int] = (8, 6)) -> Machine:
    """Return a machine with a card of `gib` GiB, all of it free, for planning without one."""
    size = int(gib * GIB)
    return Machine("cuda", Card(name or f"a {gib:g} GB card", size, size, capability), 32 * GIB, 24 * GIB)


def gib_of(text: str, name: str = "Card") -> float:
    """Return the size of a card as a person writes it ("11", "11 GB", "7.5").

    Raises:
        UserError: it is no size that a card can have; `name` is what was asked for.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    size = float(found[1].replace(",", ".")) if found else 0.0
    if not LEAST_GIB <= size <= MOST_GIB:
        raise UserError(
            f"{name} is '{text}', which is no size of a card in GB.",
            f"Write a number from {LEAST_GIB:g} to {MOST_GIB:g}, such as 11 or 7.5.",
        )
    return size


def detect() -> Machine:
    """Look at this machine. Imports torch."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    swap = psutil.swap_memory().free
    base = (memory.total, memory.available, processes, swap, _processor_has_bf16())
    if torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", "0"))
        before = _ask_driver()  # torch takes some for itself as soon as it is asked
        free, total = torch.cuda.mem_get_info(index)
        if before and index == 0 and before[0] == torch.cuda.get_device_name(0):
            free = max(free, int(float(before[1]) * 2**20))
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        return Machine("cuda", Card(name, total, free, capability), *base)
    if torch.backends.mps.is_available():
        return Machine("mps", Card("Apple GPU", memory.total, memory.available, (0, 0)), *base)
    return Machine("cpu", None, *base)


def _processor_has_bf16() -> bool:
    """bf16 in hardware: torch computes with it everywhere, but on other processors slower than in fp32."""
    import torch

    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def moves_card_memory() -> bool:
    """Whether the card's driver moves memory into main memory rather than refuse more: on Windows, and in
    Linux inside of it.
    """
    return platform.system() == "Windows" or "microsoft" in platform.release().lower()


def quick() -> Machine:
    """Look at this machine without importing torch, for the first seconds; `detect()` knows better."""
    import psutil

    memory = psutil.virtual_memory()
    base = (memory.total, memory.available, 1, psutil.swap_memory().free)
    if seen := _ask_driver():
        name, free, total, capability = seen
        major, _, minor = capability.partition(".")
        size = (int(float(total) * 2**20), int(float(free) * 2**20))
        return Machine("cuda", Card(name, *size, (int(major), int(minor))), *base)
    return Machine("cpu", None, *base)


def glance() -> str:
    """Return a few words on the card without importing torch ("RTX 4060 Ti · 13.1 of 16.0 GB free")."""
    if seen := _ask_driver():
        name, free, total, _ = seen
        return f"{name} · {float(free) / 1024:.1f} of {float(total) / 1024:.1f} GB free"
    return f"no GPU · {os.cpu_count() or 1} processor cores"


def _ask_driver() -> list[str] | None:
    """Return name, free and total memory in MiB and compute capability of the first NVIDIA card; None without
    one.
    """
    fields = "name,memory.free,memory.total,compute_cap"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(
            query, capture_output=True, text=True, timeout=5, check=True
        ).stdout.splitlines()[0]
        name, free, total, capability = (part.strip() for part in line.split(","))
        float(free), float(total), float(capability)
        return [name, free, total, capability]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
