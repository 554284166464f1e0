"""Looking: what a training has learnt so far, measured and drawn. Where memory is short, something is left
out, and the run goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from .. import files, optim
from ..events import Event, Looking, Said, Sampled, Validated
from ..plan import Plan
from ..sample import Request
from .setup import Training, bring_only, move_to
from .shortage import first_that_fits
from .validate import validation_loss

if TYPE_CHECKING:
    from PIL.Image import Image


def look(training: Training, step: int, is_sampling: bool, is_validating: bool = True) -> Iterator[Event]:
    """Validate and draw, with the weights that an export would have."""
    plan = training.plan
    wanted = requests(plan) if is_sampling and training.is_main else []
    if is_validating and training.held_out is not None:
        yield Looking(step, "Measuring the loss on the validation images.")
        yield _validate(training, step)
    for index, request in enumerate(wanted):
        yield Looking(step, f"Drawing picture {index + 1} of {len(wanted)}.")
        yield _draw(training, step, index, request)
    if wanted:
        first_that_fits(*[partial(move_to, training.parts, plan, "train")] * 2)
    yield Looking(step, "")


def _validate(training: Training, step: int) -> Event:
    """Where memory is short: one image after the other, or not this time."""

    def loss(batch_parts: int) -> float:
        with export_weights(training):
            return validation_loss(training, batch_parts)

    usual, leanest = partial(loss, training.plan.batch_parts), partial(loss, training.plan.batch_size)
    found = first_that_fits(usual, usual, leanest, lambda: None)
    return _left_out(step, "the validation") if found is None else Validated(step, found)


def _draw(training: Training, step: int, index: int, request: Request) -> Event:
    """Where memory is short: one part of the model after the other and in tiles, or not this time."""
    usual = partial(drawn, training, request)
    image = first_that_fits(usual, usual, partial(usual, is_frugal=True), lambda: None)
    if image is None:
        return _left_out(step, f"picture {index + 1}")
    path = training.folder.samples / f"{step:06d}-{index:02d}.png"
    files.write(path, lambda part: image.save(part, format="PNG"))
    relative = path.relative_to(training.folder.path).as_posix()
    return Sampled(step, index, request.prompt, request.seed, relative)


def drawn(training: Training, request: Request, is_frugal: bool = False) -> Image:
    """Return a picture drawn as the plan says, or with as little memory as can be."""
    parts, plan = training.parts, training.plan
    bring = partial(bring_only, parts, plan) if is_frugal or plan.draws_in_turn else None
    if bring is None:
        move_to(parts, plan, "sample")
    with export_weights(training):
        return training.sampler.draw(request, bring, is_tiled=is_frugal)


def _left_out(step: int, what: str) -> Said:
    return Said(
        "warning", f"The card ran out of memory: at step {step} {what} is left out. The training goes on."
    )


def requests(plan: Plan) -> list[Request]:
    """The pictures that the plan draws each time."""
    sample, side = plan.config.sample, max(plan.resolutions)
    return [
        Request(
            prompt,
            sample.negative,
            sample.width or side,
            sample.height or side,
            sample.steps or plan.facts.sampling_steps,
            sample.guidance or plan.facts.guidance,
            sample.seed + index,
            plan.config.base.clip_skip,
        )
        for index, prompt in enumerate(sample.prompts)
    ]


@contextlib.contextmanager
def export_weights(training: Training) -> Iterator[None]:
    """Hold the weights that an export would have: the running average, or schedule-free's own."""
    trained, parameters = training.trained, list(training.trained.weights().values())
    with optim.for_evaluation(trained.optimizer, training.row):
        if trained.average is None:
            yield
            return
        kept = [parameter.data for parameter in parameters]
        try:
            for parameter, mean in zip(parameters, trained.average.shadow_params, strict=True):
                # in fp32, as a copy into bf16 weights would not be
                parameter.data = mean.to(parameter.device)
            yield
        finally:
            for parameter, data in zip(parameters, kept, strict=True):
                parameter.data = data
