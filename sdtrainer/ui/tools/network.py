"""An adapter drawn layer by layer: where it changes the model, how strongly, and where it is broken. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...recognition.layers import in_order
from .. import words
from ..words import tag

Layer = Mapping[str, Any]
WIDE, GAP, TALL = 44, 8, 260
FLATTEST, TALLEST = 2.0, 9.0
STATE_LOOKS = {"dead": "dead", "too large": "broken", "not numbers": "broken"}
FAINTEST = 0.12
KIND_LOOKS = {
    "attention": "lit-attention",
    "feed-forward": "lit-feed-forward",
    "convolution": "lit-convolutions",
    "other": "lit-others",
}


def drawn(layers: Sequence[Layer]) -> str:
    """Draw every part of the model side by side: a column for each place, a stripe for each layer."""
    strongest = max((layer["gain"] for layer in layers if _is_fine(layer)), default=0.0)
    widest = max((layer["rank"] for layer in layers), default=0)
    parts = sorted({str(layer["part"]) for layer in layers}, key=lambda part: (part != "denoiser", part))
    figures = [
        tag(
            "figure",
            tag("figcaption", words.safe(part.capitalize()))
            + _part(part, [layer for layer in layers if layer["part"] == part], strongest, widest),
        )
        for part in parts
    ]
    said = (
        "Each stripe is a layer: the stronger its colour, the larger its change; the wider, the higher its "
    )
    said += "rank. Point at one for its numbers."
    return tag("div", "".join(figures), "anatomy network") + _key(layers) + tag("p", said, "quiet")


def table(layers: Sequence[Layer]) -> str:
    """List all layers, those with the largest change first."""
    head = ("Layer", "Rank", "Alpha", "Size of change", "Gain", "")
    ordered = sorted(layers, key=lambda la: -(la["gain"] if la["gain"] is not None else math.inf))
    rows = [
        (
            la["name"],
            str(la["rank"] or "-"),
            f"{la['alpha']:g}",
            _said(la["norm"]),
            _said(la["gain"]),
            la["state"],
        )
        for la in ordered
    ]
    body = "".join(tag("tr", "".join(tag("td", words.safe(cell)) for cell in row)) for row in rows)
    return tag("table", tag("tr", "".join(tag("th", cell) for cell in head)) + body)


def _part(part: str, layers: Sequence[Layer], strongest: float, widest: int) -> str:
    places = in_order(layers)
    columns = [[layer for layer in layers if layer["place"] == place] for place in places]
    each = min(TALLEST, max(FLATTEST, TALL / max(len(column) for column in columns)))
    tall = each * max(len(column) for column in columns)
    shapes = []
    for number, (place, column) in enumerate(zip(places, columns, strict=True)):
        left, top = number * (WIDE + GAP), tall - each * len(column)
        for row, layer in enumerate(column):
            shapes.append(_stripe(layer, left, top + row * each, each, strongest, widest))
        at = f'x="{left + WIDE / 2:.1f}" y="{tall + 13:.1f}"'
        shapes.append(f'<text {at} text-anchor="middle">{words.safe(place)}</text>')
    width = len(places) * (WIDE + GAP) - GAP
    label = f"{part}: {len(layers)} layers are changed in {len(places)} places"
    return (
        f'<svg viewBox="0 0 {width} {tall + 18:.0f}" width="{width}" role="img" '
        f'aria-label="{words.safe(label)}">{"".join(shapes)}</svg>'
    )


def _stripe(layer: Layer, left: float, top: float, tall: float, strongest: float, widest: int) -> str:
    wide = WIDE * (0.35 + 0.65 * layer["rank"] / widest) if widest and layer["rank"] else WIDE
    look = STATE_LOOKS.get(layer["state"], KIND_LOOKS[layer["kind"]])
    strength = math.sqrt(layer["gain"] / strongest) if _is_fine(layer) and strongest else 1.0
    said = f"{layer['name']}: rank {layer['rank'] or '-'}, alpha {layer['alpha']:g}, size of change "
    said += f"{_said(layer['norm'])}, gain {_said(layer['gain'])}"
    said += "" if layer["state"] == "fine" else f" ({layer['state']})"
    place = (
        f'x="{left + (WIDE - wide) / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{max(tall - 1, 1):.1f}"'
    )
    paint = f'fill-opacity="{FAINTEST + (1 - FAINTEST) * strength:.2f}"'
    return f'<rect class="{look}" {place} {paint}><title>{words.safe(said)}</title></rect>'


def _key(layers: Sequence[Layer]) -> str:
    rows = []
    kinds = [(look, kind) for kind, look in KIND_LOOKS.items()] + [("dead", "dead"), ("broken", "broken")]
    for look, word in kinds:
        count = sum(STATE_LOOKS.get(la["state"], KIND_LOOKS[la["kind"]]) == look for la in layers)
        if count:
            square = tag("svg", tag("rect", "", look, width=10, height=10, rx=2), viewBox="0 0 10 10")
            rows.append(square + word + tag("b", str(count)))
    return tag("ul", words.items(rows), "keys anatomy-key")


def _is_fine(layer: Layer) -> bool:
    return layer["state"] == "fine"


def _said(number: float | None) -> str:
    return "no number" if number is None else f"{number:.3g}"
