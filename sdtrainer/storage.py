"""Storage: the main memory and the disk that a plan needs besides the card, counted from plan and ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .hardware import GIB, Machine
from .plan import PHASES, Plan
from .seams import BYTES, T5, T5_TOKENS
from .section import UserError

if TYPE_CHECKING:
    from .memory import Ledger

WINDOW = 77
PROGRAM_BYTES = GIB
"""Main memory of Python and torch themselves, about."""


@dataclass(frozen=True)
class Need:
    """`bytes` of main memory or disk for one thing, in words for the user."""

    where: Literal["memory", "disk"]
    what: str
    bytes: int


def needs(plan: Plan, ledger: Ledger) -> tuple[Need, ...]:
    """Return what a plan needs of this computer. Python and torch themselves come on top."""
    state = _state_bytes(plan, ledger)
    caches = _cache_bytes(plan)
    kept = plan.config.checkpoint.keep if plan.checkpoint_every else 1
    found = [
        Need("memory", "the model while it is loaded", _loaded_bytes(plan, ledger)),
        Need("memory", "layers that wait until they are used", ledger.waiting_bytes),
        Need("memory", "the last good state, to go back to", state),
        Need("memory", "latents and text, read once", caches),
        Need("disk", "latents and text", caches),
        Need("disk", f"{kept} checkpoints" if kept > 1 else "the last checkpoint", kept * state),
        Need("disk", "files to use elsewhere", ledger.exported_bytes),
    ]
    if plan.device == "cpu":
        held = max(ledger.held(phase) for phase in PHASES)
        found[0] = Need("memory", "training", held)
    return tuple(need for need in found if need.bytes)


def check(plan: Plan, ledger: Ledger, machine: Machine, disk_free: int) -> None:
    """Refuse a plan for which this computer's main memory or disk does not suffice.

    What is read while loading is given back before the rest is kept, and memory that other programs can be
    moved out of (swap) counts as free.

    Raises:
        UserError: with what is needed and what is there.
    """
    found = needs(plan, ledger)
    disk = sum(need.bytes for need in found if need.where == "disk")
    if disk > disk_free:
        raise UserError(
            f"The run needs up to {_gb(disk)} on the disk of the workspace, and {_gb(disk_free)} are free.",
            "Free some space, keep fewer checkpoints, or move the workspace to a larger disk.",
            "checkpoint.keep",
        )
    memory, there = memory_needed(plan, ledger), memory_free(machine)
    if memory > there:
        raise UserError(f"The run needs {lack(memory, there)}.", *_remedy(plan))


def _remedy(plan: Plan) -> tuple[str, str]:
    """What needs less main memory, and the setting that it is about."""
    if T5 in plan.facts.encoders:
        return "Set T5 to off, or close other programs.", "base.t5"
    if plan.device == "cpu" and plan.precision == "fp32":
        return "Set Precision to bf16, which takes about half, or close other programs.", "train.precision"
    return "Close other programs, or choose a smaller model, resolution or batch.", ""


def memory_needed(plan: Plan, ledger: Ledger) -> int:
    """Return the bytes of main memory that a plan holds at once at most, Python and torch included."""
    return max(need.bytes for need in needs(plan, ledger) if need.where == "memory") + PROGRAM_BYTES


def memory_free(machine: Machine) -> int:
    """Return the bytes of main memory that a plan may use."""
    return machine.ram_free_bytes + machine.swap_free_bytes


def lack(needed: int, free: int) -> str:
    """Say how much main memory there is, and how much is needed."""
    return f"about {_gb(needed)} of main memory, and {_gb(free)} are free"


def _gb(size: int) -> str:
    return f"{size / GIB:.1f} GB"


def _loaded_bytes(plan: Plan, ledger: Ledger) -> int:
    """All parts are read into main memory before they move."""
    return sum(ledger.loaded[part] * BYTES[plan.place(part, "cache").precision] for part in plan.facts.parts)


def _state_bytes(plan: Plan, ledger: Ledger) -> int:
    """Trained weights, optimizer and running average: what a checkpoint and a snapshot hold."""
    rows = [row for row in ledger.rows if row.phase == "train" and row.what in ("optimizer", "average")]
    return BYTES[plan.trained_as] * ledger.trained + sum(row.bytes for row in rows)


def _cache_bytes(plan: Plan) -> int:
    """Mean and deviation of every picture, mirrored ones beside; every caption once."""
    return _latent_bytes(plan) * plan.cache_latents + _text_bytes(plan) * plan.cache_text


def _latent_bytes(plan: Plan) -> int:
    """`buckets` counts showings; a picture's latents are kept once for each size."""
    facts = plan.facts
    sides = {bucket: map(int, bucket.split(" x ")) for bucket in plan.buckets}
    areas = {bucket: width * height for bucket, (width, height) in sides.items()}
    total = sum(plan.buckets.values())
    mean_area = sum(areas[bucket] * count for bucket, count in plan.buckets.items()) / total
    pictures = (plan.num_images + plan.num_class_images + plan.num_validation) * len(plan.resolutions)
    versions = 2 if plan.config.data.flip else 1
    one = 2 * 4 * facts.latent_channels * mean_area / facts.pixels_per_latent**2
    return round(pictures * versions * one)


def _text_bytes(plan: Plan) -> int:
    """In fp32: what a text encoder says last is normed, and norms are computed in fp32 on cards."""
    captions = plan.num_images + plan.num_validation + bool(plan.num_class_images)
    tokens = plan.chunks * WINDOW + (0 if plan.facts.has_unet else T5_TOKENS)
    return captions * tokens * plan.facts.text_width * 4
