"""Savings: what each way to save memory asks for, and what rules it out.

Each has a function `why_not_...`, which says the reason against it in words that complete "not possible:", or
nothing. A saving that was asked for is refused with that reason; one that is left to auto is left out here,
and chosen where the plan is fitted to the card. Imports no torch.
"""

from __future__ import annotations

from . import optim
from .config import Config
from .seams import Precision
from .section import UserError


def why_not_bf16_weights(optimizer: str, precision: Precision) -> str:
    """Say why trained weights cannot be kept as bf16; empty if they can."""
    if precision != "bf16":
        return f"Precision is {precision}, and weights kept as bf16 need bf16"
    return _why_not_one_by_one(optimizer)


def trained_as(config: Config, optimizer: str, precision: Precision) -> Precision:
    """Return the number format of the trained weights. Raises UserError."""
    if config.train.weights != "bf16":
        return "fp32"
    if reason := why_not_bf16_weights(optimizer, precision):
        raise _refused("Trained weights kept as: bf16", reason, "train.weights")
    return "bf16"


def why_not_fused_backward(
    config: Config, optimizer: str, precision: Precision, processes: int = 1, batch_parts: int = 1
) -> str:
    """Say why a weight cannot be updated as soon as its gradient is there; empty if it can."""
    reasons = {
        f"Gradient accumulation is {config.optim.accumulation}, not 1": config.optim.accumulation > 1,
        f"a batch is passed in {batch_parts} parts": batch_parts > 1,
        "Gradient clipping needs all gradients at once; 0 switches it off": config.optim.max_grad_norm > 0,
        "Precision is fp16, whose scaled loss is judged by all gradients at once": precision == "fp16",
        f"{processes} processes share their gradients": processes > 1,
    }
    found = (reason for reason, is_so in reasons.items() if is_so)
    return next(found, _why_not_one_by_one(optimizer))


def fused_backward(config: Config, optimizer: str, precision: Precision, processes: int) -> bool:
    """Return whether each weight is updated as soon as its gradient is there. Raises UserError."""
    if config.optim.fused_backward != "on":
        return False
    parts = config.train.batch_parts or 1
    if reason := why_not_fused_backward(config, optimizer, precision, processes, parts):
        raise _refused("Fused backward: on", reason, "optim.fused_backward")
    return True


def why_not_batch_parts(config: Config, parts: int = 2, fused_backward: bool = False) -> str:
    """Say why a batch cannot go through the model in so many parts; empty if it can."""
    if parts > 1 and fused_backward:
        return "Fused backward is on"
    size = config.train.batch_size
    return "" if parts <= size else f"a batch holds {f'{size} images' if size > 1 else 'one image'}"


def batch_parts(config: Config) -> int:
    """Return in how many parts a batch goes through the model. Raises UserError."""
    parts = config.train.batch_parts or 1
    if reason := why_not_batch_parts(config, parts):
        hint = f"Choose {config.train.batch_size} at most, or 0 for auto."
        raise UserError(f"Pass the batch in: {parts} parts, but {reason}.", hint, "train.batch_parts")
    return parts


def why_not_draw_in_turn(config: Config) -> str:
    """Say why parts cannot take turns on the card while drawing; empty if they can."""
    draws = config.sample.prompts or (config.prior.is_on and not config.prior.folder)
    return "" if draws else "nothing is drawn"


def _why_not_one_by_one(optimizer: str) -> str:
    row = optim.find(optimizer)
    return "" if row.one_by_one else f"{row.title} cannot update one weight after another"


def _refused(asked: str, reason: str, path: str) -> UserError:
    return UserError(f"{asked} is not possible: {reason}.", "Change that, or choose auto.", path)
