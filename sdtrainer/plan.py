"""Plan: all that follows from a Config, its images and this machine, as values. The trainer executes it, the
ledger sums it, the page shows it before the start.

What is in it was decided in `decisions` and `fitting`. A change while running is a new revision of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from . import frozen
from .config import Config
from .methods import method_of
from .seams import DENOISER, T5, Facts, LearningRates, Precision

Phase = Literal["cache", "train", "sample", "export"]
PHASES: tuple[Phase, ...] = ("cache", "train", "sample", "export")
CLASS_IMAGE_BATCH = 4
"""How many class images are drawn at once."""


@dataclass(frozen=True)
class Choice:
    """One setting that was decided automatically, and why."""

    path: str
    value: Any
    why: str


@dataclass(frozen=True)
class Advice:
    """A warning before the start; `fix` are the settings that would answer it."""

    text: str
    fix: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Where one part of the model is in one phase, as what. The trainer executes it, the ledger sums it."""

    part: str
    phase: Phase
    device: str
    precision: Precision
    is_trainable: bool = False
    is_checkpointed: bool = False


@dataclass(frozen=True)
class Plan:
    """Steps are optimizer steps. `micro_batches` counts one process's batches of one epoch.

    What saves memory: `trained_as` is the number format of the trained weights and their gradients,
    `fused_backward` updates each weight as soon as its gradient is there, `batch_parts` passes a batch
    through the model in so many parts, `frozen_as` keeps the frozen Linear layers of the denoiser in 8 or 4
    bits and `t5_as` those of T5, and `offloaded` is the part of the denoiser's frozen layers that waits in
    main memory until used; `draws_in_turn` has only those parts on the card while drawing that are at work.

    `images_per_epoch` counts showings; class images, if there are any, have as many again. From step
    `encoder_steps` on no text encoder learns.
    """

    config: Config
    facts: Facts
    device: Literal["cuda", "mps", "cpu"]
    processes: int
    precision: Precision
    lrs: LearningRates
    optimizer: str
    checkpointing: bool
    cache_latents: bool
    cache_text: bool
    chunks: int
    resolutions: tuple[int, ...]
    batch_size: int
    accumulation: int
    num_images: int
    num_validation: int
    num_class_images: int
    images_per_epoch: int
    micro_batches: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    encoder_steps: int
    sample_every: int
    checkpoint_every: int
    validate_every: int
    buckets: Mapping[str, int]
    placements: tuple[Placement, ...]
    choices: tuple[Choice, ...] = ()
    advice: tuple[Advice, ...] = ()
    revision: int = 1
    lr_scale: float = 1.0
    skipped: tuple[int, ...] = ()
    first_total_steps: int = 0
    trained_as: Precision = "fp32"
    fused_backward: bool = False
    batch_parts: int = 1
    frozen_as: frozen.FrozenAs = "plain"
    offloaded: float = 0.0
    draws_in_turn: bool = False
    t5_as: frozen.FrozenAs = "plain"

    @property
    def epochs(self) -> float:
        return self.total_steps * self.accumulation / self.micro_batches

    @property
    def showings(self) -> float:
        """How often each image is shown."""
        return self.epochs * self.images_per_epoch / self.num_images

    @property
    def encoder_groups(self) -> tuple[str, ...]:
        """What the names of the text encoders' learning rates begin with."""
        return tuple(encoder.replace("_", " ") for encoder in self.facts.encoders)

    @property
    def part_size(self) -> int:
        """How many images at most go through the model at once."""
        return math.ceil(self.batch_size / self.batch_parts)

    @property
    def trained_parts(self) -> tuple[str, ...]:
        return tuple(p.part for p in self.placements if p.phase == "train" and p.is_trainable)

    def place(self, part: str, phase: Phase) -> Placement:
        return next(p for p in self.placements if (p.part, p.phase) == (part, phase))

    def kept_as(self, part: str) -> frozen.FrozenAs:
        """Return what the frozen Linear layers of a part are kept in."""
        kinds: Mapping[str, frozen.FrozenAs] = {DENOISER: self.frozen_as, T5: self.t5_as}
        return kinds.get(part, "plain")

    def without_t5(self) -> Plan:
        """Return the plan with T5 left out, whatever it held."""
        facts = replace(self.facts, encoders=self.facts.learning_encoders)
        placements = tuple(place for place in self.placements if place.part != T5)
        return replace(self, facts=facts, placements=placements, t5_as="plain")

    def with_checkpointing(self, on: bool) -> Plan:
        """Return the plan with activations kept, or computed a second time.

        Gradients of a trained text encoder flow through the denoiser, trained or not.
        """
        placements = tuple(
            replace(p, is_checkpointed=on and p.phase == "train" and (p.is_trainable or p.part == DENOISER))
            for p in self.placements
        )
        return replace(self, checkpointing=on, placements=placements)

    def revised(self, **changes: Any) -> Plan:
        return replace(self, revision=self.revision + 1, **changes)

    def longer(self, steps: int) -> Plan:
        """Return the plan with so many more steps; a text encoder that learns to the end still does."""
        total = self.total_steps + steps
        learns_on = self.encoder_steps == self.total_steps
        return self.revised(total_steps=total, encoder_steps=total if learns_on else self.encoder_steps)


def output_names(plan: Plan) -> tuple[str, ...]:
    """The files and folders that the export will write."""
    config = plan.config
    return method_of(config.method.kind).outputs(config.method, config.run.name, config.export.formats)
