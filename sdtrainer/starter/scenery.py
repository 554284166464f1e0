"""Pictures for the decoder beyond the world: the font's other emoji and random flat shapes.

A decoder that had only seen the world's things would redraw a user's own pictures as those things.
"""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageDraw, ImageOps

from sdtrainer.starter.things import THINGS
from sdtrainer.starter.world import BACKGROUNDS, PICTURE_SIZE, background_colour, draw_scene, glyph_of, render

WORLD_SHARE, EMOJI_SHARE = 0.6, 0.25  # the rest is shapes
_PICTOGRAPHS = (
    range(0x1F300, 0x1F3FB),
    range(0x1F400, 0x1F53E),
    range(0x1F600, 0x1F6D3),
    range(0x1F90C, 0x1FA00),
)


def any_picture(rng: random.Random) -> Image.Image:
    """One picture for the decoder to learn from."""
    draw = rng.random()
    if draw < WORLD_SHARE:
        return render(draw_scene(rng))
    if draw < WORLD_SHARE + EMOJI_SHARE:
        return _other_emoji(rng)
    return random_shapes(rng)


def random_shapes(rng: random.Random) -> Image.Image:
    """Flat shapes of random colours, overlapping on a plain background."""
    edge = 2 * PICTURE_SIZE
    picture = Image.new("RGB", (edge, edge), _background(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(3, 10)):
        _draw_shape(rng, draw, edge)
    return picture.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)


def _other_emoji(rng: random.Random) -> Image.Image:
    picture = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), _background(rng))
    glyph = glyph_of(rng.choice(_other_characters()))
    ratio = rng.uniform(0.4, 0.95) * PICTURE_SIZE / max(glyph.size)
    size = max(1, round(glyph.width * ratio)), max(1, round(glyph.height * ratio))
    glyph = glyph.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        glyph = ImageOps.mirror(glyph)
    place = rng.randint(0, PICTURE_SIZE - size[0]), rng.randint(0, PICTURE_SIZE - size[1])
    picture.paste(glyph, place, glyph)
    return picture


@cache
def _other_characters() -> tuple[str, ...]:
    known = set(THINGS.values())
    candidates = (chr(code) for block in _PICTOGRAPHS for code in block)
    return tuple(character for character in candidates if character not in known and _is_drawn(character))


def _is_drawn(character: str) -> bool:
    return glyph_of(character).getbbox() is not None


def _draw_shape(rng: random.Random, draw: ImageDraw.ImageDraw, edge: int) -> None:
    colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    width, height = edge * rng.uniform(0.05, 0.5), edge * rng.uniform(0.05, 0.5)
    left, top = rng.uniform(-0.1, 0.9) * edge, rng.uniform(-0.1, 0.9) * edge
    box = (left, top, left + width, top + height)
    kind = rng.randrange(4)
    if kind == 0:
        draw.ellipse(box, fill=colour)
    elif kind == 1:
        draw.rounded_rectangle(box, radius=min(width, height) * rng.uniform(0, 0.45), fill=colour)
    elif kind == 2:
        draw.line(box, fill=colour, width=rng.randint(4, 16))
    else:
        draw.polygon(
            [(left, top), (left + width, top), (left + rng.random() * width, top + height)], fill=colour
        )


def _background(rng: random.Random) -> tuple[int, int, int]:
    if rng.random() < 0.8:
        tint = (rng.randint(-8, 8), rng.randint(-8, 8), rng.randint(-8, 8))
        return background_colour(rng.choice(list(BACKGROUNDS)), tint)
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
