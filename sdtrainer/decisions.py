"""Decisions: from a Config, its images and this machine to a Plan.

`resolve()` is pure. Every "auto" is decided here, with a sentence saying why; those that only save memory are
decided again in `fitting`, by what the card holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from . import diffusion, frozen, savings
from .config import Config
from .data import captions, items, prior
from .data.census import Census
from .data.section import why_no_latent_cache, why_no_text_cache
from .families import BaseSection
from .hardware import GIB, Machine
from .methods import method_of
from .plan import PHASES, Choice, Placement, Plan
from .seams import DENOISER, VAE, Facts, LearningRates, Method, Precision
from .section import UserError, steps_of


def resolve(
    config: Config, facts: Facts, census: Census, validation: Census | None, machine: Machine,
    chunks: int = 1, class_images: Census | None = None,
) -> Plan:  # fmt: skip
    """Decide everything.

    Raises:
        UserError: settings that contradict each other, this base model or this machine.
    """
    method = method_of(config.method.kind)
    facts = with_prediction(facts, config.base)
    if config.base.t5 == "off":
        facts = replace(facts, encoders=facts.learning_encoders)
    method.suits(config.method, facts)
    _check_formats(config, method)
    if not facts.is_undecided:
        diffusion.check(config.noise, facts.prediction_type)
    trained = method.trains(config.method, facts)
    choices = _Choices()
    given, config = config, with_trigger(config, census)
    if config.data.trigger != given.data.trigger:
        choices.make("data.trigger", config.data.trigger, "what is learnt must stand in every caption")
    lrs = _lrs(config, method, choices)
    precision = _precision(config, machine, choices)
    optimizer = _optimizer(config, machine, choices)
    resolutions = _resolutions(config, facts, choices)
    checkpointing = _checkpointing(config, machine, resolutions, choices)
    cache_text = _cache_text(config, facts, trained, choices)
    cache_latents = _cache(
        "data.cache_latents", config.data.cache_latents, why_no_latent_cache(config.data), choices
    )
    chosen = items.plan_items(census.samples, config.data, resolutions)
    chosen += prior.class_items(class_images, config.prior, config.data, resolutions)
    batch, accumulation = config.train.batch_size, config.optim.accumulation
    micro_batches = items.num_batches(chosen, batch, machine.processes)
    per_epoch = Fraction(micro_batches, accumulation)  # rounded here, ten epochs would grow to many more
    total = steps_of(config.train.steps, per_epoch, 0)
    counts = items.bucket_counts(chosen)
    _check_sides(config, facts, counts)

    def every(duration: str) -> int:
        return steps_of(duration, per_epoch, total)

    return Plan(
        config=config,
        facts=facts,
        device=machine.device,
        processes=machine.processes,
        precision=precision,
        lrs=lrs,
        optimizer=optimizer,
        checkpointing=checkpointing,
        cache_latents=cache_latents,
        cache_text=cache_text,
        chunks=chunks,
        resolutions=resolutions,
        batch_size=batch,
        accumulation=accumulation,
        num_images=len(census.samples),
        num_validation=len(validation.samples) if validation else 0,
        num_class_images=len(class_images.samples) if class_images else 0,
        images_per_epoch=sum(item.repeats for item in chosen),
        micro_batches=micro_batches,
        steps_per_epoch=math.ceil(per_epoch),
        total_steps=total,
        first_total_steps=total,
        warmup_steps=every(config.optim.warmup),
        encoder_steps=_encoder_steps(every(config.optim.text_encoder_until), total, trained, facts),
        sample_every=every(config.sample.every),
        checkpoint_every=every(config.checkpoint.every),
        validate_every=every(config.train.validate_every) if validation else 0,
        buckets={f"{width} x {height}": count for (width, height), count in counts.items()},
        trained_as=savings.trained_as(config, optimizer, precision),
        fused_backward=savings.fused_backward(config, optimizer, precision, machine.processes),
        batch_parts=savings.batch_parts(config),
        draws_in_turn=config.sample.in_turn == "on",
        placements=_placements(facts, machine, precision, trained, cache_text, cache_latents),
        choices=tuple(choices.made),
        frozen_as=frozen.kind_of(config, machine.device),
        t5_as=frozen.kind_of_t5(config, facts, machine.device),
        offloaded=frozen.part_offloaded(config, machine.device, machine.processes, checkpointing),
    ).with_checkpointing(checkpointing)


def with_trigger(config: Config, census: Census) -> Config:
    """Return the config with its method's new word as the trigger word, if there are both word and need.

    Raises:
        UserError: no caption has a word that is to be learnt.
    """
    words = method_of(config.method.kind).words(config.method)
    return config.model_copy(update={"data": captions.with_trigger(config.data, words, census.samples)})


def resolutions_of(config: Config, facts: Facts) -> tuple[int, ...]:
    """Return the sizes trained at: those asked for, else the model's own."""
    return config.train.resolutions or (facts.resolution,)


def with_prediction(facts: Facts, section: BaseSection) -> Facts:
    """Return the facts with what the user says that the model predicts. Raises UserError."""
    wanted = section.prediction_type
    if wanted != "auto" and facts.prediction_type == "flow":
        raise UserError(
            f"Prediction type: {facts.title} is trained by flow matching, and not to predict {wanted}.",
            "Choose 'auto'.",
            "base.prediction_type",
        )
    return facts if wanted == "auto" else replace(facts, prediction_type=wanted, is_undecided=False)


class _Choices:
    def __init__(self) -> None:
        self.made: list[Choice] = []

    def make(self, path: str, value: Any, why: str) -> Any:
        self.made.append(Choice(path, value, why))
        return value


def _precision(config: Config, machine: Machine, choices: _Choices) -> Precision:
    wanted = config.train.precision
    if wanted == "fp16" and machine.device == "cpu":
        raise UserError(
            "Precision is fp16, which processors do not train in.",
            "Choose 'auto' or fp32.",
            "train.precision",
        )
    if wanted != "auto":
        return wanted
    if machine.device != "cuda" or machine.card is None:
        return choices.make("train.precision", "fp32", "without an NVIDIA card, fp32 is the fastest")
    if machine.card.has_bf16:
        return choices.make("train.precision", "bf16", f"{machine.card.name} computes bf16 in hardware")
    return choices.make("train.precision", "fp16", f"{machine.card.name} has no bf16; fp16 with loss scaling")


def _check_sides(config: Config, facts: Facts, buckets: Iterable[tuple[int, int]]) -> None:
    """Raise UserError for pictures that do not divide into a transformer's patches of 2 x 2 latents."""
    patch = 2 * facts.pixels_per_latent
    sides = (
        ("Bucket step", "data.bucket_step", [side for bucket in buckets for side in bucket]),
        ("Width", "sample.width", [config.sample.width]),
        ("Height", "sample.height", [config.sample.height]),
    )
    for title, path, found in sides:
        odd = [side for side in found if side % patch]
        if odd and not facts.has_unet:
            raise UserError(
                f"{title}: pictures would be {odd[0]} px, and {facts.title} needs multiples of {patch}.",
                f"Write a multiple of {patch}.",
                path,
            )


def _check_formats(config: Config, method: Method) -> None:
    for name in config.export.formats:
        if name not in method.formats:
            raise UserError(
                f"Formats: {method.title} has no '{name}' file.",
                f"Choose {' or '.join(method.formats)}.",
                "export.formats",
            )


def _lrs(config: Config, method: Method, choices: _Choices) -> LearningRates:
    """0 is auto: the method's own rate for the goal; for the text encoder, a rate given for the denoiser."""
    own, given = method.lrs[config.run.goal], config.optim
    if given.lr:
        return LearningRates(given.lr, given.text_encoder_lr or given.lr)
    why = f"what suits {method.title} for a {config.run.goal}"
    encoder = given.text_encoder_lr or own.text_encoder
    return LearningRates(choices.make("optim.lr", own.denoiser, why), encoder)


def _optimizer(config: Config, machine: Machine, choices: _Choices) -> str:
    if config.optim.name != "auto":
        return config.optim.name
    if machine.card is not None and machine.device == "cuda" and machine.card.total_bytes < 20 * GIB:
        why = "saves three quarters of the optimizer's memory on this card"
        return choices.make("optim.name", "adamw8bit", why)
    return choices.make("optim.name", "adamw", "there is memory enough for the exact optimizer")


def _encoder_steps(steps: int, total: int, trained: tuple[str, ...], facts: Facts) -> int:
    learning = [part for part in trained if part in facts.encoders]
    path = "optim.text_encoder_until"
    if learning and not steps:
        raise UserError(
            "Text encoder learns until: 0 steps, so that it never learns.",
            "Give it a part of the run, or choose not to train it.",
            path,
        )
    if len(learning) == len(trained) and steps < total:
        what = f"Text encoder learns until: step {steps} of {total}, and nothing else is trained here."
        raise UserError(what, "Write 100%.", path)
    return min(steps, total) if learning else total


def _resolutions(config: Config, facts: Facts, choices: _Choices) -> tuple[int, ...]:
    if not config.train.resolutions:
        why = f"{facts.title} was made for {facts.resolution} px"
        choices.make("train.resolution", facts.resolution, why)
    return resolutions_of(config, facts)


def _checkpointing(config: Config, machine: Machine, resolutions: tuple[int, ...], choices: _Choices) -> bool:
    if config.train.checkpointing != "auto":
        return config.train.checkpointing == "on"
    if config.train.offload in ("half", "all"):
        return choices.make("train.checkpointing", True, "layers that wait in main memory need it")
    card = machine.card if machine.device == "cuda" else None
    wanted = card is not None and card.total_bytes < 20 * GIB and max(resolutions) >= 512
    why = "saves activations on this card" if wanted else "there is memory enough, and off is faster"
    return choices.make("train.checkpointing", wanted, why)


def _cache_text(config: Config, facts: Facts, trained: tuple[str, ...], choices: _Choices) -> bool:
    is_trained = any(encoder in trained for encoder in facts.encoders)
    reason = "the text encoder is trained" if is_trained else why_no_text_cache(config.data)
    return _cache("data.cache_text", config.data.cache_text, reason, choices)


def _cache(path: str, wanted: str, reason: str, choices: _Choices) -> bool:
    what = "text" if path.endswith("text") else "latents"
    if wanted == "on" and reason:
        raise UserError(f"Cache {what} is 'on', but {reason}.", "Choose 'auto'.", path)
    if wanted != "auto":
        return wanted == "on"
    why = f"not possible: {reason}" if reason else "computed once, so that steps run only the denoiser"
    return choices.make(path, not reason, why)


def _placements(
    facts: Facts, machine: Machine, precision: Precision, trained: tuple[str, ...], cache_text: bool,
    cache_latents: bool,
) -> tuple[Placement, ...]:  # fmt: skip
    """A part waits on the CPU through the phases that do not use it."""
    uses: dict[str, set[str]] = {
        DENOISER: {"train", "sample"},
        VAE: {"cache", "sample"} | (set() if cache_latents else {"train"}),
        **{encoder: {"cache", "sample"} | (set() if cache_text else {"train"}) for encoder in facts.encoders},
    }
    return tuple(
        Placement(
            part=part,
            phase=phase,
            device=machine.device if phase in uses[part] else "cpu",
            precision="fp32" if part == VAE else precision,  # SD1 and SDXL VAEs overflow in fp16
            is_trainable=part in trained,
        )
        for phase in PHASES
        for part in facts.parts
    )
