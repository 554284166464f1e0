"""Class images: what the base model draws of the class before it learns, one file each, kept between runs.

Each image is a function of its number, so that more of them extend the set. Which are there is seen from the
files alone: what was killed or deleted is drawn again, the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import Accelerator

from .. import files
from ..data.census import Census, Sample
from ..data.prior import tries
from ..events import Event, PhaseBegan, Progress, Said
from ..pace import Pace
from ..plan import CLASS_IMAGE_BATCH, Plan
from ..sample import Bring, Request, Sampler
from ..seeds import seed_of
from .shortage import first_that_fits

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Moves:
    """How parts of the model come to the card: all that drawing needs, or only those named."""

    all_for_drawing: Callable[[], None]
    only: Bring


def draw(
    census: Census, plan: Plan, sampler: Sampler, accelerator: Accelerator, moves: Moves
) -> Iterator[Event]:
    """Draw the class images that are missing; several processes share them, and end together."""
    # each in the same company every time, as the last bits of a picture depend on it
    numbered, size = list(enumerate(census.samples)), CLASS_IMAGE_BATCH
    groups = [numbered[start : start + size] for start in range(0, len(numbered), size)]
    mine = groups[accelerator.process_index :: accelerator.num_processes]
    missing = [group for group in mine if not all(sample.file.exists() for _, sample in group)]
    if missing:
        yield PhaseBegan("prior", f"Drawing class images: {plan.config.prior.class_prompt.strip()}")
    total, done, pace, how = sum(map(len, missing)), 0, Pace(), ""
    for group in missing:
        yield Progress(done, total, "class images", pace.seconds_left(done, total))
        usual, how = how, _draw_group(group, plan, sampler, moves)
        if how not in ("", usual):
            yield Said("warning", f"The card ran out of memory: class images are drawn {how}.")
        done += len(group)
    if missing:
        yield Progress(total, total, "class images", 0.0)
    accelerator.wait_for_everyone()


def request_of(number: int, sample: Sample, plan: Plan) -> Request:
    """Return what is drawn as class image `number`; another if the first was thought bad."""
    prior, facts = plan.config.prior, plan.facts
    tried = tries(sample.root).get(number, 0)
    seed = seed_of("class image", number, tried) if tried else seed_of("class image", number)
    return Request(
        prompt=sample.caption, negative=prior.negative, width=sample.width, height=sample.height,
        steps=prior.steps or facts.sampling_steps, guidance=prior.guidance or facts.guidance,
        seed=seed,
        clip_skip=plan.config.base.clip_skip,
    )  # fmt: skip


def _draw_group(group: Sequence[tuple[int, Sample]], plan: Plan, sampler: Sampler, moves: Moves) -> str:
    """Where memory is short: one at a time, and at last on the processor. Return how, if not as usual."""
    requests = [request_of(number, sample, plan) for number, sample in group]

    def together() -> tuple[list[Image], str]:
        if plan.draws_in_turn:
            return sampler.draw_all(requests, moves.only), ""
        moves.all_for_drawing()
        return sampler.draw_all(requests), ""

    def one_by_one() -> tuple[list[Image], str]:
        return [sampler.draw(request, moves.only, is_tiled=True) for request in requests], "one at a time"

    def on_the_processor() -> tuple[list[Image], str]:
        moves.only(())
        slow = sampler.elsewhere("cpu")
        return [slow.draw(request) for request in requests], "on the processor, which takes long"

    # layers that wait in main memory come to the card by themselves
    last = () if plan.offloaded else (on_the_processor,)
    drawn, how = first_that_fits(together, together, one_by_one, *last)
    for (_, sample), image in zip(group, drawn, strict=True):
        if not sample.file.exists():
            files.write(sample.file, lambda part, image=image: image.save(part, format="PNG"))
    return how
