"""Drawings of what was measured, as SVG files that stand alone. Pure."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from math import ceil, floor, log2

from .rows import PHASES, WANTED, Row

SIDE, LEFT, TOP = 520, 70, 50
NAME_WIDTH = 400
COLOURS = {"cache": "#8b8f99", "train": "#2f6fd6", "sample": "#d9822b"}
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#555}.title{font-size:15px;fill:#222}"
    ".rule{stroke:#ddd}.band{fill:#2f6fd6;opacity:.12}.even{stroke:#888;stroke-dasharray:4 4}"
)
GIB = 2**30


def scatter(rows: Sequence[Row], title: str) -> str:
    """Draw measured over predicted bytes of each phase on logarithmic axes, with the band that is wanted."""
    points = [row for row in rows if row.kind in COLOURS]
    if not points:
        return ""
    sizes = [log2(value) for row in points for value in (row.predicted, row.measured)]
    low, high = floor(min(sizes)), ceil(max(sizes) + 1e-9)

    def x(value: float) -> float:
        return LEFT + SIDE * (log2(value) - low) / (high - low)

    def y(value: float) -> float:
        return TOP + SIDE - (x(value) - LEFT)

    inner = "".join(_axis(2.0**power, x, y) for power in range(low, high + 1))
    inner += _band(2.0**low, 2.0**high, x, y)
    inner += "".join(_dot(row, x, y) for row in points)
    inner += _text(LEFT + SIDE / 2, TOP + SIDE + 44, "estimated", "middle")
    inner += (
        f'<g transform="rotate(-90 16 {TOP + SIDE / 2})">{_text(16, TOP + SIDE / 2, "held", "middle")}</g>'
    )
    inner += _text(LEFT, 28, title, "start", "title")
    for number, kind in enumerate(PHASES):
        left = LEFT + 14 + 80 * number
        inner += f'<circle cx="{left}" cy="{TOP + 14}" r="4" fill="{COLOURS[kind]}"/>'
        inner += _text(left + 10, TOP + 18, kind)
    return _page(LEFT + SIDE + 30, TOP + SIDE + 60, title, inner)


def bars(values: Sequence[tuple[str, float, str]], title: str) -> str:
    """Draw one bar for each (name, value, value in words), the longest for the largest value."""
    width, height, most = 360, 26, max((value for _, value, _ in values), default=0) or 1
    inner, left = _text(10, 28, title, "start", "title"), 10 + NAME_WIDTH
    for number, (name, value, words) in enumerate(values):
        top, length = TOP + height * number, width * value / most
        inner += _text(10, top + 14, name)
        inner += (
            f'<rect x="{left}" y="{top}" width="{length:.1f}" height="18" rx="3" fill="{COLOURS["train"]}"/>'
        )
        inner += _text(left + 8 + length, top + 14, words)
    return _page(left + width + 110, TOP + height * len(values) + 10, title, inner)


Scale = Callable[[float], float]


def _axis(value: float, x: Scale, y: Scale) -> str:
    words = f"{value / GIB:g} GiB" if value >= GIB else f"{value / 2**20:g} MiB"
    lines = f'<path class="rule" d="M{x(value):.1f} {TOP}V{TOP + SIDE}M{LEFT} {y(value):.1f}H{LEFT + SIDE}"/>'
    return (
        lines
        + _text(x(value), TOP + SIDE + 20, words, "middle")
        + _text(LEFT - 6, y(value) + 4, words, "end")
    )


def _band(low: float, high: float, x: Scale, y: Scale) -> str:
    """Where the estimate is good enough, with the diagonal."""
    room = abs(y(low * (1 + WANTED)) - y(low))
    a, b, c, d = x(low), y(low), x(high), y(high)
    corners = f"{a:.1f},{b - room:.1f} {c:.1f},{d - room:.1f} {c:.1f},{d + room:.1f} {a:.1f},{b + room:.1f}"
    return f'<polygon class="band" points="{corners}"/><path class="even" d="M{a} {b}L{c} {d}"/>'


def _dot(row: Row, x: Scale, y: Scale) -> str:
    told = html.escape(f"{row.cell}, {row.kind}: {100 * row.error:+.1f} %")
    place = f'cx="{x(row.predicted):.1f}" cy="{y(row.measured):.1f}"'
    return f'<circle {place} r="4" fill="{COLOURS[row.kind]}" opacity=".8"><title>{told}</title></circle>'


def _text(x: float, y: float, words: str, anchor: str = "start", class_: str = "") -> str:
    named = f' class="{class_}"' if class_ else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{html.escape(words)}</text>'


def _page(width: float, height: float, title: str, inner: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(title)}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{inner}</svg>\n'
    )
