"""What a training of the starter achieved: is the robot learnt, are the other things kept?

A small classifier that ships with the starter names the pictures; the person looks at the sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .families import ASSETS
from .sample import Request, Sampler
from .starter.judge import Judge
from .starter.prompts import ROBOT_NAME, ROBOT_PROMPTS, WORLD_PROMPTS

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_OTHERS = 8
SIDE, STEPS, GUIDANCE, BATCH = 128, 20, 4.0, 8


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
    named = Judge.load(ASSETS / "starter-model")
    world = WORLD_PROMPTS[:others]
    robots = draw([prompt.text for prompt in ROBOT_PROMPTS], drawing)
    things = draw([prompt.text for prompt in world], drawing)
    wanted = [prompt.name for prompt in world]
    learnt = sum(name == ROBOT_NAME for name in named.names(robots))
    kept = sum(name == right for name, right in zip(named.names(things), wanted, strict=True))
    return Verdict(robots, things, learnt, kept)


def draw(prompts: Sequence[str], drawing: Sampler) -> list[Image]:
    """Draw each prompt with a seed of its own, the same every time."""
    requests = [Request(text, "", SIDE, SIDE, STEPS, GUIDANCE, seed) for seed, text in enumerate(prompts, 1)]
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
