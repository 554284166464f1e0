"""The picture of a model with the trained blocks lit, drawn from its anatomy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from ..anatomy import KINDS, Block, Kind, totals
from ..seams import DENOISER, T5
from . import words
from .words import tag

KIND_WORDS: dict[Kind, str] = {
    "attention": "attention",
    "feed-forward": "feed-forward",
    "convolutions": "convolutions",
    "words": "words",
    "others": "other",
}
PART_WORDS = {
    DENOISER: "Denoiser: paints",
    "text_encoder": "Text encoder: reads the prompt",
    "text_encoder_2": "Larger text encoder: reads it, too",
    T5: "Largest text encoder, T5: reads it, too",
}
STRIPES: tuple[Kind, ...] = ("convolutions", "attention", "feed-forward")
WIDE, GAP, TALL, STEP, BASE = 40, 6, 168, 27, 186
ROW, ROW_WIDE = 13, 150


def model(blocks: Sequence[Block], trained: int) -> str:
    """Draw all parts side by side, with a key; `trained` is how many numbers learn in all."""
    figures = [
        tag(
            "figure",
            tag("figcaption", words.safe(PART_WORDS.get(part, part.replace("_", " ").capitalize())))
            + _drawn(part, list(of_part)),
        )
        for part, of_part in groupby(sorted(blocks, key=lambda b: b.part != DENOISER), key=lambda b: b.part)
    ]
    total = sum(block.total for block in blocks)
    said = f"{_count(trained)} numbers learn; the model has {_count(total)}. Point at a block for its share."
    return tag("div", "".join(figures), "anatomy") + _key(blocks) + tag("p", said, "quiet")


def _drawn(part: str, blocks: list[Block]) -> str:
    """A UNet has a middle; all else is a stack."""
    if any(block.place == "middle" for block in blocks):
        return _unet(blocks)
    return _stack(blocks, "The denoiser" if part == DENOISER else "The text encoder")


def _unet(blocks: list[Block]) -> str:
    """An hourglass: the picture is made smaller on the way down, and larger again on the way up."""
    places = [place for place in dict.fromkeys(b.place for b in blocks) if place != "ends"]
    middle = places.index("middle")
    shapes = []
    for number, place in enumerate(places):
        height = max(TALL - STEP * _depth(number, middle, len(places)), 40)
        shapes += _column(
            [b for b in blocks if b.place == place], number * (WIDE + GAP), (TALL - height) / 2, height
        )
        shapes.append(_label(number * (WIDE + GAP) + WIDE / 2, BASE, place.replace("middle", "mid")))
    width = len(places) * (WIDE + GAP) - GAP
    return _svg("".join(shapes), width, BASE + 8, _sentence("The denoiser", blocks))


def _depth(number: int, middle: int, count: int) -> int:
    """How small the picture is at a block: the first two columns and the last two are its full size."""
    return max(0, min(number, count - 1 - number) - 1 + (number == middle))


def _column(blocks: list[Block], x: float, top: float, height: float) -> list[str]:
    found = sorted((b for b in blocks if b.kind in STRIPES), key=lambda b: STRIPES.index(b.kind))
    each = height / max(1, len(found))
    return [_rect(block, x, top + i * each, WIDE, each - 2) for i, block in enumerate(found)]


def _stack(blocks: list[Block], name: str) -> str:
    """The table of words first, then the layers through which a prompt passes, or words and picture."""
    shown = [b for b in blocks if b.place not in ("ends", "in", "out") and b.kind in KINDS[:4]]
    rows = [(place, list(of_place)) for place, of_place in groupby(shown, key=lambda b: b.place)]
    shapes = []
    for number, (place, found) in enumerate(rows):
        each = ROW_WIDE / len(found)
        shapes += [_rect(b, i * each, number * ROW, each - 2, ROW - 3) for i, b in enumerate(found)]
        label = "words" if place == "words" else str(int(place.split()[1]) + 1)
        shapes.append(_label(ROW_WIDE + 6, number * ROW + ROW - 4, label, "start"))
    return _svg("".join(shapes), ROW_WIDE + 44, len(rows) * ROW + 2, _sentence(name, blocks))


def _rect(block: Block, x: float, y: float, width: float, height: float) -> str:
    look = f"lit-{block.kind}" if block.trained else "unlit"
    learns = f"{_count(block.trained)} numbers learn" if block.trained else "stays as it is"
    said = f"{block.place}, {KIND_WORDS[block.kind]} ({_count(block.total)}): {learns}"
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3"'
    return f'<rect class="{look}" {place}><title>{words.safe(said)}</title></rect>'


def _label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words.safe(text)}</text>'


def _svg(body: str, width: float, height: float, said: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{words.safe(said)}">{body}</svg>'
    )


def _sentence(name: str, blocks: Iterable[Block]) -> str:
    lit = [f"{_count(trained)} in {KIND_WORDS[kind]}" for kind, _, trained in totals(blocks) if trained]
    return f"{name}: {', '.join(lit)} learn." if lit else f"{name} stays as it is."


def _key(blocks: Sequence[Block]) -> str:
    rows = []
    for kind, _, trained in totals(blocks):
        if kind != "others" or trained:
            square = tag("rect", "", f"lit-{kind}" if trained else "unlit", width=10, height=10, rx=2)
            drawn = tag("svg", square, viewBox="0 0 10 10", aria_hidden="true")
            rows.append(drawn + KIND_WORDS[kind] + tag("b", _count(trained) if trained else "unchanged"))
    return tag("ul", words.items(rows), "keys anatomy-key")


def _count(number: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
