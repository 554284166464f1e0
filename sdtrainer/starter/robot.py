"""The zib robot: a character the starter cannot draw, for the user's first training to teach it.

A zib robot is purple, has one big round eye and a yellow antenna with a ball.  Every drawing is flat,
four times supersampled, and posed by a seeded random generator.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from sdtrainer.starter.world import background_colour, with_article

DRAWING_SIZE = 256
SUPERSAMPLING = 4

TRAINING_BACKGROUNDS = ("green", "white", "blue", "yellow", "gray", "orange")
HELD_OUT_BACKGROUNDS = ("pink", "red", "black", "pink")

_PURPLE = (128, 60, 190)
_DARK_PURPLE = (88, 36, 140)
_LIGHT_PURPLE = (178, 128, 226)
_YELLOW = (255, 210, 40)
_DARK_YELLOW = (226, 160, 20)
_EYE_WHITE = (250, 250, 252)
_IRIS = (40, 190, 210)
_PUPIL = (24, 24, 40)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Pose:
    """How one zib robot stands: all lengths as shares of the drawing."""

    background: str
    scale: float
    left: float
    top: float
    tilt: float
    arms_up: bool
    flipped: bool

    @property
    def caption(self) -> str:
        """What the drawing shows, in the world's own words."""
        size = "small " if self.scale < 0.62 else "big " if self.scale > 0.86 else ""
        return f"{with_article(size + 'zib robot')} on {with_article(self.background)} background"


def random_pose(rng: random.Random, background: str) -> Pose:
    """A pose chosen by the generator."""
    return Pose(
        background=background,
        scale=rng.uniform(0.56, 0.92),
        left=rng.random(),
        top=rng.random(),
        tilt=rng.uniform(-9, 9),
        arms_up=rng.random() < 0.5,
        flipped=rng.random() < 0.5,
    )


def draw_robot(pose: Pose, size: int = DRAWING_SIZE) -> Image.Image:
    """The drawing of a posed zib robot, square, RGB."""
    edge = round(size * pose.scale) * SUPERSAMPLING
    robot = _robot_sprite(edge, pose.arms_up).rotate(pose.tilt, Image.Resampling.BICUBIC)
    if pose.flipped:
        robot = robot.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    robot = robot.resize((edge // SUPERSAMPLING,) * 2, Image.Resampling.LANCZOS)
    drawing = Image.new("RGB", (size, size), background_colour(pose.background))
    room = size - robot.width
    drawing.paste(robot, (round(room * pose.left), round(room * pose.top)), robot)
    return drawing


def write_robot_drawings(training: Path, held_out: Path, seed: int = 7) -> None:
    """Write the twelve training drawings and the four held-out ones, each with its caption beside it."""
    rng = random.Random(f"zib robot {seed}")
    _write(training, [random_pose(rng, name) for name in TRAINING_BACKGROUNDS * 2])
    _write(held_out, [random_pose(rng, name) for name in HELD_OUT_BACKGROUNDS])


def _write(folder: Path, poses: list[Pose]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pose in enumerate(poses, start=1):
        draw_robot(pose).save(folder / f"{number:02d}.png", optimize=True)
        (folder / f"{number:02d}.txt").write_text(pose.caption + "\n", encoding="utf-8")


def _robot_sprite(edge: int, arms_up: bool) -> Image.Image:
    sprite = Image.new("RGBA", (edge, edge), (*_PURPLE, 0))
    draw = ImageDraw.Draw(sprite)
    _draw_antenna(draw, edge)
    _draw_limbs(draw, edge, arms_up)
    _draw_body(draw, edge)
    _draw_head(draw, edge)
    return sprite


def _draw_antenna(draw: ImageDraw.ImageDraw, edge: int) -> None:
    draw.line(_scaled((0.5, 0.12, 0.5, 0.26), edge), fill=_DARK_YELLOW, width=round(edge * 0.035))
    draw.ellipse(_scaled((0.435, 0.02, 0.565, 0.15), edge), fill=_YELLOW)
    draw.ellipse(_scaled((0.46, 0.04, 0.505, 0.085), edge), fill=(255, 240, 160))


def _draw_limbs(draw: ImageDraw.ImageDraw, edge: int, arms_up: bool) -> None:
    hand_height = 0.42 if arms_up else 0.84
    for side in (-1, 1):
        shoulder, hand = 0.5 + side * 0.2, 0.5 + side * 0.36
        arm = _scaled((shoulder, 0.66, hand, hand_height), edge)
        draw.line(arm, fill=_DARK_PURPLE, width=round(edge * 0.06))
        draw.ellipse(_scaled(_around(hand, hand_height, 0.06), edge), fill=_LIGHT_PURPLE)
        foot = 0.5 + side * 0.11
        draw.rectangle(_scaled((foot - 0.035, 0.85, foot + 0.035, 0.94), edge), fill=_DARK_PURPLE)
        shoe = _scaled((foot - 0.085, 0.91, foot + 0.085, 0.98), edge)
        draw.rounded_rectangle(shoe, radius=edge * 0.03, fill=_LIGHT_PURPLE)


def _draw_body(draw: ImageDraw.ImageDraw, edge: int) -> None:
    draw.rounded_rectangle(_scaled((0.29, 0.58, 0.71, 0.88), edge), radius=edge * 0.07, fill=_PURPLE)
    draw.rounded_rectangle(_scaled((0.38, 0.68, 0.62, 0.8), edge), radius=edge * 0.03, fill=_DARK_PURPLE)
    for place in (0.44, 0.5, 0.56):
        draw.ellipse(_scaled(_around(place, 0.74, 0.02), edge), fill=_YELLOW)


def _draw_head(draw: ImageDraw.ImageDraw, edge: int) -> None:
    draw.rounded_rectangle(_scaled((0.22, 0.22, 0.78, 0.62), edge), radius=edge * 0.13, fill=_PURPLE)
    draw.ellipse(_scaled(_around(0.5, 0.4, 0.16), edge), fill=_EYE_WHITE)
    draw.ellipse(_scaled(_around(0.53, 0.4, 0.095), edge), fill=_IRIS)
    draw.ellipse(_scaled(_around(0.54, 0.4, 0.05), edge), fill=_PUPIL)
    draw.ellipse(_scaled(_around(0.52, 0.37, 0.022), edge), fill=_EYE_WHITE)
    mouth = _scaled((0.42, 0.5, 0.58, 0.59), edge)
    draw.arc(mouth, start=25, end=155, fill=_LIGHT_PURPLE, width=round(edge * 0.018))


def _around(x: float, y: float, radius: float) -> Box:
    return x - radius, y - radius, x + radius, y + radius


def _scaled(box: Box, edge: int) -> Box:
    left, top, right, bottom = (share * edge for share in box)
    return left, top, right, bottom
