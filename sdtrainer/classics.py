"""The classic pictures: one base model, fine-tuned in the ways that decide what memory it takes.

Four are as they are usually drawn; two say what really runs where the drawing is too simple. They
depend on the base model alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import config as configs
from . import hardware
from .data.census import one_picture
from .decisions import resolve
from .fitting import room_of
from .memory import estimate
from .plan import Plan
from .seams import VAE, Facts, Precision

CARD_GIB = 16
"""The card that they are drawn on."""
FULL = {"kind": "full", "train_text_encoder": True}


@dataclass(frozen=True)
class Classic:
    """One way to fine-tune, in words. `is_drawn`: a usual drawing, that no trainer runs like this."""

    name: str
    title: str
    says: str
    method: Mapping[str, Any] = field(default_factory=lambda: FULL)
    precision: Precision = "bf16"
    optimizer: str = "adamw"
    trained_as: Precision = "fp32"
    is_drawn: bool = False


CLASSICS = (
    Classic(
        "fp32",
        "All weights, fp32, Adam",
        "Every weight takes four bytes, its gradient four more, and Adam's two averages eight.",
        precision="fp32",
    ),
    Classic(
        "fp16",
        "All weights, fp16, as usually drawn",
        "Weights and gradients take half, Adam's averages stay in fp32. Nothing trains like this: small "
        "changes are lost in fp16.",
        precision="fp16",
        trained_as="fp16",
        is_drawn=True,
    ),
    Classic(
        "mixed",
        "What really runs: mixed precision",
        "The step computes in 16 bits, but what is trained stays in fp32, and so do its gradients.",
    ),
    Classic(
        "bf16",
        "What really runs: bf16 weights",
        "What is trained and its gradients are bf16; rounding at random keeps changes too small for it.",
        trained_as="bf16",
    ),
    Classic(
        "8-bit",
        "All weights, 8-bit Adam",
        "Mixed precision with Adam's averages in 8 bits: a quarter of their memory.",
        optimizer="adamw8bit",
    ),
    Classic(
        "lora",
        "LoRA",
        "The model stays as it is, in 16 bits; only a small addition has gradients and averages.",
        method={"kind": "lora"},
    ),
)


def plans(facts: Facts) -> dict[str, Plan]:
    """Return the plan of each classic by name: batch 1 at the model's own size, every part of the model on
    the card but T5, which reads beforehand; nothing saved beyond what its words say.
    """
    without_t5 = replace(facts, encoders=facts.learning_encoders)
    return {classic.name: _plan(classic, without_t5) for classic in CLASSICS}


@dataclass(frozen=True)
class Drawn:
    """A classic as it is drawn: `sums` are the bytes held while training by what they hold. `fits` is None
    where activations are not known, unless it does not fit without them.
    """

    classic: Classic
    sums: Mapping[str, int]
    fits: bool | None

    @property
    def bytes(self) -> int:
        return sum(self.sums.values())


def drawn(facts: Facts) -> tuple[Drawn, ...]:
    """Count all classics. Takes seconds for a new base model."""
    made = plans(facts)
    return tuple(_drawn(classic, made[classic.name]) for classic in CLASSICS)


def _drawn(classic: Classic, plan: Plan) -> Drawn:
    ledger = estimate(plan)
    sums = ledger.sums("train")
    room = room_of(hardware.imagined(CARD_GIB))
    assert room
    is_less = sum(sums.values()) <= room
    return Drawn(classic, sums, None if is_less and "train" in ledger.unknown else is_less)


def _plan(classic: Classic, facts: Facts) -> Plan:
    values = {
        "base": {"path": facts.path},
        "data": {"cache_latents": "off", "cache_text": "off"},
        "method": dict(classic.method),
        "train": {"precision": classic.precision, "checkpointing": "off"},
        "optim": {"name": classic.optimizer},
        "sample": {"prompts": []},
    }
    machine = hardware.imagined(CARD_GIB)
    made = resolve(configs.build(values), facts, one_picture(facts.resolution), None, machine)
    placements = made.placements
    if classic.is_drawn:
        placements = tuple(
            replace(p, precision=classic.precision) if p.part == VAE else p for p in placements
        )
    return replace(made, trained_as=classic.trained_as, placements=placements)
