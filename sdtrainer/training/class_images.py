"""Class images: what the base model draws of the class before it learns, one file each, kept between runs.

Each image is a function of its number, so that more of them extend the set. Which are there is seen from the
files alone: what was killed or deleted is drawn again, the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from accelerate import Accelerator

from .. import files
from ..data.census import Census, Sample
from ..data.prior import missing, number_of
from ..events import Event, PhaseBegan, Progress, Said
from ..pace import Pace
from ..plan import CLASS_IMAGE_BATCH, Plan
from ..sample import Request
from ..seeds import seed_of
from .base import Base, bring_only, move_to
from .shortage import first_that_fits

if TYPE_CHECKING:
    from PIL.Image import Image


def draw(census: Census, base: Base, accelerator: Accelerator) -> Iterator[Event]:
    """Draw the class images that are missing; several processes share them, and end together."""
    # each in the same company every time, as the last bits of a picture depend on it
    groups = [
        tuple(group)
        for _, group in groupby(census.samples, lambda sample: number_of(sample) // CLASS_IMAGE_BATCH)
    ]
    mine = groups[accelerator.process_index :: accelerator.num_processes]
    todo = [group for group in mine if missing(group)]
    if todo:
        yield PhaseBegan("prior", f"Drawing class images: {base.plan.config.prior.class_prompt.strip()}")
    total, done, pace, how = sum(len(missing(group)) for group in todo), 0, Pace(), ""
    for group in todo:
        yield Progress(done, total, "class images", pace.seconds_left(done, total))
        done += len(missing(group))
        usual, how = how, _draw_group(group, base)
        if how not in ("", usual):
            yield Said("warning", f"The card ran out of memory: class images are drawn {how}.")
    if todo:
        yield Progress(total, total, "class images", 0.0)
    accelerator.wait_for_everyone()


def request_of(sample: Sample, plan: Plan) -> Request:
    """Return what is drawn as this class image."""
    prior, facts = plan.config.prior, plan.facts
    return Request(
        prompt=sample.caption, negative=prior.negative, width=sample.width, height=sample.height,
        steps=prior.steps or facts.sampling_steps, guidance=prior.guidance or facts.guidance,
        seed=seed_of("class image", number_of(sample)),
        clip_skip=plan.config.base.clip_skip,
    )  # fmt: skip


def _draw_group(group: Sequence[Sample], base: Base) -> str:
    """Where memory is short: one at a time, and at last on the processor. Return how, if not as usual."""
    plan, sampler = base.plan, base.sampler
    requests = [request_of(sample, plan) for sample in group]
    bring = partial(bring_only, base.parts, plan)

    def together() -> tuple[list[Image], str]:
        if plan.draws_in_turn:
            return sampler.draw_all(requests, bring), ""
        move_to(base.parts, plan, "sample")
        return sampler.draw_all(requests), ""

    def one_by_one() -> tuple[list[Image], str]:
        return [sampler.draw(request, bring, is_tiled=True) for request in requests], "one at a time"

    def on_the_processor() -> tuple[list[Image], str]:
        bring(())
        slow = sampler.elsewhere("cpu")
        return [slow.draw(request) for request in requests], "on the processor, which takes long"

    # layers that wait in main memory come to the card by themselves
    last = () if plan.offloaded else (on_the_processor,)
    drawn, how = first_that_fits(together, together, one_by_one, *last)
    for sample, image in zip(group, drawn, strict=True):
        if not sample.file.exists():
            files.write(sample.file, lambda part, image=image: image.save(part, format="PNG"))
    return how
