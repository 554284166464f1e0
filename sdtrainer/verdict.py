"""What a training of the starter achieved: is the robot learnt, are the other things kept?

A small classifier that ships with the starter names the pictures; the person looks at the sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .families import ASSETS
from .sample import Request, Sampler
from .starter.judge import Judge
from .starter.prompts import ROBOT_PROMPTS, WORLD_PROMPTS, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_OTHERS = 8
SIDE, STEPS, GUIDANCE, BATCH = 128, 20, 4.0, 8


@dataclass(frozen=True)
class Seen:
    """Pictures drawn from prompts, and how many of them the judge names as their prompt does."""

    images: Sequence[Image]
    right: int

    @property
    def part(self) -> float:
        return self.right / len(self.images)


@dataclass(frozen=True)
class Verdict:
    """`learnt` of `learnt_of` pictures show the robot; `kept` of `kept_of` other things are named rightly."""

    robots: Sequence[Image]
    others: Sequence[Image]
    learnt: int
    kept: int

    @property
    def learnt_of(self) -> int:
        return len(self.robots)

    @property
    def kept_of(self) -> int:
        return len(self.others)


def judge(drawing: Sampler, others: int = len(WORLD_PROMPTS)) -> Verdict:
    """Draw the robot's fixed prompts and the first `others` of the other things', and name what is seen.

    All 56 pictures take about half a minute on two processor cores.
    """
    robots, things = look(ROBOT_PROMPTS, drawing), look(WORLD_PROMPTS[:others], drawing)
    return Verdict(robots.images, things.images, robots.right, things.right)


def look(prompts: Sequence[Prompt], drawing: Sampler, steps: int = STEPS) -> Seen:
    """Draw the prompts, in this many sampling steps, and have the judge name them."""
    images = draw([prompt.text for prompt in prompts], drawing, steps)
    names = _judge().names(images)
    return Seen(images, sum(name == prompt.name for name, prompt in zip(names, prompts, strict=True)))


def draw(prompts: Sequence[str], drawing: Sampler, steps: int = STEPS, first_seed: int = 1) -> list[Image]:
    """Draw each prompt with a seed of its own, the same every time."""
    requests = [
        Request(text, "", SIDE, SIDE, steps, GUIDANCE, seed) for seed, text in enumerate(prompts, first_seed)
    ]
    batches = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
    return [image for batch in batches for image in drawing.draw_all(batch)]


def sheet(before: Verdict, after: Verdict, path: Path) -> None:
    """Save the before/after picture: above the robot prompts, below other things, each before and after."""
    from PIL import Image, ImageDraw

    rows = (
        ("a zib robot: before", before.robots),
        ("a zib robot: after", after.robots),
        ("other things: before", before.others[:SHOWN_OTHERS]),
        ("other things: after", after.others[:SHOWN_OTHERS]),
    )
    margin, title = 6, 18
    width = max(len(images) for _, images in rows) * (SIDE + margin) + margin
    picture = Image.new("RGB", (width, len(rows) * (SIDE + title + margin) + margin), "white")
    pen = ImageDraw.Draw(picture)
    for row, (text, images) in enumerate(rows):
        top = margin + row * (SIDE + title + margin)
        pen.text((margin, top), text, fill="black")
        for column, image in enumerate(images):
            picture.paste(image, (margin + column * (SIDE + margin), top + title))
    picture.save(path, format="PNG")


@cache
def _judge() -> Judge:
    return Judge.load(ASSETS / "starter-model")
