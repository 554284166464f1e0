"""Optimizers as a table, and the learning rate as a pure function of the step.

Owns OptimSection (the settings), OPTIMIZERS (one row each: class, bytes of state, what the user should know),
`build`, `lr_factor` and `state_bytes`. Refuses to know what is trained: it is handed parameter groups. "auto"
is resolved in the plan, never here. Importing it does not import torch.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .section import Duration, Section, UserError, knob

if TYPE_CHECKING:
    import torch

    from .seams import ParamGroup

OptimizerName = Literal[
    "adamw", "adamw8bit", "adafactor", "lion", "lion8bit", "prodigy", "adamw_schedulefree"
]  # fmt: skip
LrSchedule = Literal["constant", "linear", "cosine", "cosine_restarts"]
Shape = tuple[int, ...]


class OptimSection(Section):
    """How the weights are changed after each look at the pictures."""

    lr: float = knob(
        0.0,
        "Learning rate",
        "How large each change is. Too high burns the pictures, too low learns nothing. "
        "0 = what suits the method and the goal. Prodigy finds its own.",
        level="basic",
        ge=0.0,
        le=10.0,
    )
    text_encoder_lr: float = knob(
        0.0,
        "Text encoder learning rate",
        "The text encoder learns faster than the denoiser: half its rate is a good choice. "
        "0 = the same rate.",
        ge=0.0,
        le=10.0,
    )
    text_encoder_until: Duration = knob(
        "100%",
        "Text encoder learns until",
        "After this time the text encoder stays as it is and only the denoiser learns on: a trained text "
        "encoder is the first to learn by heart, and without it steps are faster.",
    )
    name: Literal["auto", OptimizerName] = knob(
        "auto",
        "Optimizer",
        "The rule by which weights are changed. auto chooses the best that fits your card.",
    )
    schedule: LrSchedule = knob(
        "cosine",
        "Learning rate schedule",
        "How the learning rate goes on after warm-up: constant, or falling to the floor in a straight line "
        "(linear), in a soft curve (cosine), or in several curves (cosine_restarts).",
    )
    warmup: Duration = knob(
        "5%",
        "Warm-up",
        "The learning rate rises from zero during this time: steps, epochs or a part of the run.",
    )
    restarts: int = knob(3, "Restarts", "How many curves cosine_restarts makes.", ge=1, le=100)
    min_lr_ratio: float = knob(
        0.0,
        "Learning rate floor",
        "Where a falling learning rate ends, as a part of the learning rate: 0.1 ends at a tenth.",
        ge=0.0,
        le=1.0,
    )
    accumulation: int = knob(
        1,
        "Gradient accumulation",
        "Add up this many batches before each step: as steady as a larger batch, at no cost of memory.",
        unit="batches",
        ge=1,
        le=1024,
    )
    max_grad_norm: float = knob(
        1.0,
        "Gradient clipping",
        "Holds back a step that is much larger than usual. 0 turns it off.",
        ge=0.0,
        le=1000.0,
    )
    weight_decay: float = knob(
        0.01,
        "Weight decay",
        "Pulls the trained weights gently towards zero, against overfitting.",
        ge=0.0,
        le=1.0,
    )
    beta1: float = knob(
        0.9, "Beta 1", "How long the optimizer remembers the direction of its steps.", ge=0.0, lt=1.0
    )
    beta2: float = knob(
        0.0,
        "Beta 2",
        "How long the optimizer remembers the size of its steps. 0 = what suits the optimizer "
        "(0.999, and 0.99 for Lion).",
        ge=0.0,
        lt=1.0,
    )
    ema: bool = knob(
        False,
        "Average the weights",
        "Keeps a running average of the trained weights and exports that: smoother, "
        "for one more copy of them in memory.",
    )
    ema_decay: float = knob(
        0.999, "Averaging decay", "How slowly the running average follows the weights.", ge=0.0, lt=1.0
    )
    fused_backward: Literal["auto", "on", "off"] = knob(
        "auto",
        "Fused backward",
        "Changes each weight as soon as its gradient is known, so that the gradients are never all in memory "
        "at once. Learns the same. Needs Gradient accumulation 1 and Gradient clipping 0, and cannot be used "
        "with fp16.",
    )


@dataclass(frozen=True)
class Optimizer:
    """One row of the table.

    `path` is module:Class, `package` what pip calls it. `state_of` counts the bytes of state of one fp32
    parameter by shape, `shared_bytes` is what all large parameters share. `has_modes`: evaluated with other
    weights than trained (schedule-free). `fixed_lr`: the optimizer finds the rate, and this one is a factor.
    `beta2` is 0 if it has no betas. `one_by_one`: a parameter's update depends on that parameter alone.
    `scratch` counts the bytes for each number of a parameter that its update takes and gives back.
    """

    name: OptimizerName
    title: str
    path: str
    package: str
    note: str
    state_of: Callable[[Shape], int]
    shared_bytes: int = 0
    has_modes: bool = False
    fixed_lr: float | None = None
    beta2: float = 0.999
    one_by_one: bool = True
    scratch: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def _floats(per_parameter: int, fixed: int = 0) -> Callable[[Shape], int]:
    return lambda shape: 4 * (per_parameter * math.prod(shape) + fixed)


SMALL = 4096
"""bitsandbytes keeps tensors of fewer elements in fp32."""
BLOCK = 256
"""bitsandbytes 8-bit states carry one fp32 scale per block of so many elements."""


def _bytes8(states: int) -> Callable[[Shape], int]:
    def state_of(shape: Shape) -> int:
        n = math.prod(shape)
        return states * (4 * n if n < SMALL else n + 4 * math.ceil(n / BLOCK))

    return state_of


def _factored(shape: Shape) -> int:
    """Adafactor: one row and one column instead of a matrix, and the RMS, a single number."""
    if len(shape) < 2:
        return 4 * (math.prod(shape) + 1)
    rows, columns = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
    return 4 * (rows + columns + 1)


OPTIMIZERS: tuple[Optimizer, ...] = (
    Optimizer(
        name="adamw", title="AdamW", path="torch.optim:AdamW", package="torch",
        note="The safe choice; 8 bytes of memory for each trained weight.",
        state_of=_floats(2, fixed=1),
        # fused: one kernel, and none of the temporary copies of all weights that foreach makes
        options={"fused": True},
    ),
    Optimizer(
        name="adamw8bit", title="AdamW 8-bit", path="bitsandbytes.optim:AdamW8bit", package="bitsandbytes",
        note="As good as AdamW in a quarter of the memory.",
        state_of=_bytes8(2), shared_bytes=2 * 256 * 4,
    ),
    Optimizer(
        name="adafactor", title="Adafactor", path="transformers.optimization:Adafactor",
        package="transformers",
        note="Hardly any memory: for full fine-tuning on small cards. Ignores beta 1 and beta 2.",
        state_of=_factored, beta2=0.0, scratch=8,
        options={"relative_step": False, "scale_parameter": False, "warmup_init": False},
    ),
    Optimizer(
        name="lion", title="Lion", path="bitsandbytes.optim:Lion", package="bitsandbytes",
        note="Half the memory of AdamW. Use a third to a tenth of AdamW's learning rate.",
        state_of=_floats(1), beta2=0.99,
    ),
    Optimizer(
        name="lion8bit", title="Lion 8-bit", path="bitsandbytes.optim:Lion8bit", package="bitsandbytes",
        note="An eighth of the memory of AdamW. Use a third to a tenth of AdamW's learning rate.",
        state_of=_bytes8(1), shared_bytes=256 * 4, beta2=0.99,
    ),
    Optimizer(
        name="prodigy", title="Prodigy", path="prodigyopt:Prodigy", package="prodigyopt",
        note="Finds the learning rate itself; 16 bytes of memory for each trained weight.",
        state_of=_floats(4), fixed_lr=1.0, one_by_one=False,
        options={"use_bias_correction": True, "safeguard_warmup": True},
    ),
    Optimizer(
        name="adamw_schedulefree", title="AdamW schedule-free", path="schedulefree:AdamWScheduleFree",
        package="schedulefree",
        note="Averages the weights as it goes: needs no falling rate, and may be stopped at any time.",
        state_of=_floats(2), has_modes=True, one_by_one=False,
        # foreach makes temporary copies of all trained weights
        options={"foreach": False},
    ),
)  # fmt: skip
"""Every optimizer there is, best known first."""


def find(name: str) -> Optimizer:
    """Return the row of that name."""
    return next(row for row in OPTIMIZERS if row.name == name)


def build(row: Optimizer, groups: Sequence[ParamGroup], section: OptimSection) -> torch.optim.Optimizer:
    """Make the optimizer: one torch group per ParamGroup, with its `name` and its full rate as `base_lr`.

    Raises: UserError naming the package to install if it is missing.
    """
    module, _, cls = row.path.partition(":")
    try:
        make = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        raise UserError(
            f"{row.title} needs the package {row.package}, which is not installed.",
            f"Install it with: pip install {row.package}. Or choose another Optimizer.",
            "optim.name",
        ) from error
    params = []
    for group in groups:
        lr = group.lr if row.fixed_lr is None else row.fixed_lr
        params.append({"params": list(group.parameters), "lr": lr, "base_lr": lr, "name": group.name})
    options: dict[str, Any] = {"lr": params[0]["lr"], "weight_decay": section.weight_decay, **row.options}
    if row.beta2:
        options["betas"] = (section.beta1, section.beta2 or row.beta2)
    with contextlib.redirect_stdout(io.StringIO()):  # Prodigy prints, and stdout carries our events
        optimizer = make(params, **options)
    if row.has_modes:
        optimizer.train()
    return optimizer


def set_lr(
    optimizer: torch.optim.Optimizer, factor: float, resting: tuple[str, ...] = ()
) -> dict[str, float]:
    """Set every group to `factor` times its full rate, or 0 where its name begins with a word of `resting`;
    return the rates by group name.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["name"].startswith(resting) else factor * group["base_lr"]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def schedule_of(row: Optimizer, section: OptimSection) -> LrSchedule:
    """Return the schedule that is really used: schedule-free optimizers keep the rate constant."""
    return "constant" if row.has_modes else section.schedule


def lr_factor(
    schedule: LrSchedule, step: int, total: int, warmup_steps: int = 0, restarts: int = 1, floor: float = 0.0
) -> float:
    """Return the part of the full learning rate at which optimizer step `step`, counted from 0, is taken.

    Without a floor it equals diffusers.optimization.get_scheduler; the floor is where falling schedules end.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
    if schedule == "cosine_restarts" and progress < 1.0:
        progress = progress * restarts % 1.0
    height = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return floor + (1.0 - floor) * height


def state_bytes(row: Optimizer, shapes: Iterable[Sequence[int]]) -> int:
    """Return the bytes of state kept for trained fp32 parameters of these shapes, after the first step.

    Prodigy keeps the starting weights, except where they are all zero: there the true number is lower.
    """
    sizes = [tuple(shape) for shape in shapes]
    shared = row.shared_bytes if any(math.prod(shape) >= SMALL for shape in sizes) else 0
    return shared + sum(row.state_of(shape) for shape in sizes)


@contextlib.contextmanager
def for_evaluation(optimizer: torch.optim.Optimizer, row: Optimizer) -> Iterator[None]:
    """Have the weights to be used, not those trained, in the model while inside; then all is as before.

    Switching forth and back rounds, so the trained weights wait on the CPU meanwhile.
    """
    if not row.has_modes:
        yield
        return
    import torch

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().to("cpu", copy=True) for p in parameters]
    try:
        optimizer.eval()  # type: ignore[attr-defined]
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def warnings(row: Optimizer, section: OptimSection) -> list[str]:
    """Say which settings this optimizer ignores."""
    said = []
    defaults = OptimSection()
    if row.fixed_lr is not None:
        said.append(f"{row.title} finds its own learning rate: Learning rate is ignored.")
    if row.has_modes and section.schedule != "constant":
        said.append(f"{row.title} keeps the learning rate constant: Learning rate schedule is ignored.")
    if not row.beta2 and (section.beta1, section.beta2) != (defaults.beta1, defaults.beta2):
        said.append(f"{row.title} has no momentum: Beta 1 and Beta 2 are ignored.")
    if section.ema and row.has_modes:
        said.append(f"{row.title} averages the weights already: Average the weights adds little.")
    return said
