"""Axes: the settings that can save memory, each with its options from the fastest to the leanest.

How much slower an option is, is an estimate by which plans are ordered; nothing else depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Any

from . import frozen, savings
from .methods import method_of
from .plan import Plan
from .seams import T5


def _legal(plan: Plan) -> str:
    return ""


@dataclass(frozen=True)
class Option:
    """One way to decide an axis: `value` as the setting would have it, `slower` the factor on the time of a
    step, `why_not` the reason, if there is one, that a plan that has it cannot be.
    """

    value: Any
    does: str
    slower: float
    put: Callable[[Plan], Plan]
    why_not: Callable[[Plan], str] = _legal


@dataclass(frozen=True)
class Axis:
    """One setting that can save memory, its options from the fastest to the leanest. `is_live`: it can change
    in a running training.
    """

    path: str
    options: Callable[[Plan], Sequence[Option]]
    is_live: bool = False

    def is_free(self, plan: Plan) -> bool:
        section, name = self.path.split(".")
        return getattr(getattr(plan.config, section), name) in ("auto", 0)


def _optimizers(plan: Plan) -> Sequence[Option]:
    def put(name: str) -> Callable[[Plan], Plan]:
        return lambda p: replace(p, optimizer=name)

    return (
        Option("adamw", "the exact optimizer", 1.0, put("adamw")),
        Option("adamw8bit", "the optimizer's memory in 8 bits", 1.02, put("adamw8bit")),
        Option("adafactor", "an optimizer with hardly any memory", 1.1, put("adafactor")),
    )


def _checkpointing(plan: Plan) -> Sequence[Option]:
    return (
        Option("off", "activations are kept", 1.0, lambda p: p.with_checkpointing(False), _why_not_off),
        Option("on", "activations are computed a second time", 1.3, lambda p: p.with_checkpointing(True)),
    )


def _why_not_off(plan: Plan) -> str:
    return "layers that wait in main memory need it" if plan.offloaded else ""


def _batch_parts(plan: Plan) -> Sequence[Option]:
    """Halve what goes through the model at once, down to single images."""

    def option(parts: int) -> Option:
        does = "the batch goes through whole" if parts == 1 else f"the batch goes through in {parts} parts"
        return Option(
            parts,
            does,
            1 + 0.06 * log2(parts),
            lambda p: replace(p, batch_parts=parts),
            lambda p: savings.why_not_batch_parts(p.config, parts, p.fused_backward),
        )

    size = plan.batch_size
    return [
        option(parts) for parts in sorted({*(2**n for n in range(size.bit_length())), plan.batch_parts, size})
    ]


def _weights(plan: Plan) -> Sequence[Option]:
    def why_not(p: Plan) -> str:
        if method_of(p.config.method.kind).keeps_base:
            return "so few weights are trained that it would save nothing"
        return savings.why_not_bf16_weights(p.optimizer, p.precision)

    return (
        Option("fp32", "trained weights are exact", 1.0, lambda p: replace(p, trained_as="fp32")),
        Option(
            "bf16", "trained weights in bf16, rounded by chance", 1.05,
            lambda p: replace(p, trained_as="bf16"), why_not,
        ),
    )  # fmt: skip


def _fused_backward(plan: Plan) -> Sequence[Option]:
    def why_not(p: Plan) -> str:
        return savings.why_not_fused_backward(p.config, p.optimizer, p.precision, p.processes, p.batch_parts)

    return (
        Option("off", "all gradients, then all updates", 1.0, lambda p: replace(p, fused_backward=False)),
        Option(
            "on", "each weight is updated as soon as its gradient is there", 1.03,
            lambda p: replace(p, fused_backward=True), why_not,
        ),
    )  # fmt: skip


def _frozen(plan: Plan) -> Sequence[Option]:
    def option(kind: frozen.FrozenAs, does: str, slower: float) -> Option:
        def why_not(p: Plan) -> str:
            return "" if kind == "plain" else frozen.why_not_quantise(kind, p.config, p.device)

        return Option(kind, does, slower, lambda p: replace(p, frozen_as=kind), why_not)

    return (
        option("plain", "the base as it is", 1.0),
        option("int8", "the frozen base in 8 bits", 1.35),
        option("nf4", "the frozen base in 4 bits", 1.5),
    )


def _t5(plan: Plan) -> Sequence[Option]:
    """Read T5 as it is or in fewer bits. Cached captions are read once, else T5 reads in every step."""

    def option(kind: frozen.FrozenAs, does: str, slower: float) -> Option:
        def why_not(p: Plan) -> str:
            return frozen.why_no_kernels(kind, p.device)

        return Option(
            kind, does, slower if plan.cache_text else 10 * slower - 9,
            lambda p: replace(p, t5_as=kind), why_not,
        )  # fmt: skip

    kinds = (
        option("plain", "T5 as it is", 1.0),
        option("int8", "T5 in 8 bits", 1.02),
        option("nf4", "T5 in 4 bits", 1.05),
    )
    return kinds if T5 in plan.facts.encoders else kinds[:1]


def _offload(plan: Plan) -> Sequence[Option]:
    def option(value: str, does: str, slower: float) -> Option:
        def why_not(p: Plan) -> str:
            if not p.offloaded:
                return ""
            return frozen.why_not_offload(p.config, p.device, p.processes, p.checkpointing)

        return Option(value, does, slower, lambda p: replace(p, offloaded=frozen.PARTS[value]), why_not)

    return (
        option("off", "all layers stay on the card", 1.0),
        option("half", "half of the layers wait in main memory", 1.4),
        option("all", "the layers wait in main memory", 1.8),
    )


def _in_turn(plan: Plan) -> Sequence[Option]:
    def option(value: str, does: str, slower: float) -> Option:
        def why_not(p: Plan) -> str:
            return savings.why_not_draw_in_turn(p.config) if p.draws_in_turn else ""

        return Option(value, does, slower, lambda p: replace(p, draws_in_turn=value == "on"), why_not)

    return (
        option("off", "pictures are drawn with the whole model on the card", 1.0),
        option("on", "pictures are drawn with one part of the model on the card at a time", 1.01),
    )


AXES = (
    Axis("sample.in_turn", _in_turn),
    Axis("optim.name", _optimizers),
    Axis("train.weights", _weights),
    Axis("optim.fused_backward", _fused_backward),
    Axis("train.batch_parts", _batch_parts, is_live=True),
    Axis("base.t5", _t5),
    Axis("base.quantize", _frozen),
    Axis("train.offload", _offload, is_live=True),
    Axis("train.checkpointing", _checkpointing, is_live=True),
)
