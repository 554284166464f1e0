"""The starter's world: which things it knows, and how one picture of it is drawn and captioned.

Every picture is one emoji on one plain background.  A scene is drawn from a seeded random generator, so
the same seed always gives the same picture and the same caption.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from sdtrainer.starter.things import KEEPS_ITS_SIDE, THINGS

PICTURE_SIZE = 128
FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the only size at which the bitmap font holds glyphs
SMALLEST, LARGEST = 0.55, 0.90
SMALL_BELOW, BIG_ABOVE = 0.64, 0.81

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (28, 28, 32),
    "gray": (140, 142, 146),
    "red": (205, 62, 62),
    "orange": (240, 150, 60),
    "yellow": (248, 222, 96),
    "green": (96, 176, 98),
    "blue": (84, 140, 220),
    "purple": (142, 92, 190),
    "pink": (246, 172, 200),
}


@dataclass(frozen=True)
class Scene:
    """One picture of the world, before it is drawn."""

    name: str
    background: str
    tint: tuple[int, int, int]
    scale: float
    left: float
    top: float
    flipped: bool
    caption: str


def thing_names() -> list[str]:
    """All things the starter knows, in a fixed order."""
    return list(THINGS)


def draw_scene(rng: random.Random, name: str | None = None, background: str | None = None) -> Scene:
    """Choose everything about one picture; what is given is kept."""
    name = name or rng.choice(list(THINGS))
    background = background or rng.choice(list(BACKGROUNDS))
    scale = rng.uniform(SMALLEST, LARGEST)
    return Scene(
        name=name,
        background=background,
        tint=(rng.randint(-8, 8), rng.randint(-8, 8), rng.randint(-8, 8)),
        scale=scale,
        left=rng.random(),
        top=rng.random(),
        flipped=name not in KEEPS_ITS_SIDE and rng.random() < 0.25,
        caption=_caption(rng, name, background, scale),
    )


def render(scene: Scene, size: int = PICTURE_SIZE) -> Image.Image:
    """The picture of a scene, square, RGB."""
    picture = Image.new("RGB", (size, size), background_colour(scene.background, scene.tint))
    glyph = glyph_of(THINGS[scene.name])
    ratio = scene.scale * size / max(glyph.size)
    glyph = glyph.resize((round(glyph.width * ratio), round(glyph.height * ratio)), Image.Resampling.LANCZOS)
    if scene.flipped:
        glyph = ImageOps.mirror(glyph)
    room = (size - glyph.width, size - glyph.height)
    picture.paste(glyph, (_place(scene.left, room[0]), _place(scene.top, room[1])), glyph)
    return picture


def background_colour(background: str, tint: tuple[int, int, int] = (0, 0, 0)) -> tuple[int, int, int]:
    """The colour behind the word, slightly shifted by the tint."""
    red, green, blue = (min(255, max(0, c + t)) for c, t in zip(BACKGROUNDS[background], tint, strict=True))
    return red, green, blue


@cache
def glyph_of(character: str) -> Image.Image:
    """An emoji as RGBA, cropped to what is drawn."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    font = ImageFont.truetype(str(FONT_PATH), FONT_SIZE)
    ImageDraw.Draw(canvas).text((10, 10), character, font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def with_article(words: str) -> str:
    """The words with "a" or "an" in front, as English wants."""
    silent = ("unicorn", "universe", "unicycle")
    vowel = words[0] in "aeiou" and not words.startswith(silent)
    return f"{'an' if vowel else 'a'} {words}"


def _place(fraction: float, room: int) -> int:
    # Pulled towards the middle: hobby pictures are rarely composed at the very edge.
    return round(room * (0.2 + 0.6 * fraction))


def _caption(rng: random.Random, name: str, background: str, scale: float) -> str:
    if scale < SMALL_BELOW and rng.random() < 0.6:
        return f"{with_article('small ' + name)} on {with_article(background)} background"
    if scale > BIG_ABOVE and rng.random() < 0.6:
        return f"{with_article('big ' + name)} on {with_article(background)} background"
    templates = (
        f"{with_article(name)} on {with_article(background)} background",
        f"{with_article(name)} on {with_article(background)} background",
        f"{with_article(name)}, {background} background",
        with_article(name),
    )
    return rng.choice(templates)
