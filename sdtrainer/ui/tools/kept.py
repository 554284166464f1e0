"""How much of each layer's change a tool kept, as bars in the order of the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from .. import words
from ..words import tag

Row = Mapping[str, Any]
WIDE, TALL, LITTLE = 1000.0, 120, 0.9
"""A bar that keeps less than the last stands out."""


def bars(rows: Sequence[Row]) -> str:
    """Draw a bar for each layer, {part, path, rank, kept}, a figure for each part of the model."""
    figures = [_part(part, list(of_part)) for part, of_part in groupby(rows, key=lambda row: row["part"])]
    worst = sorted(rows, key=lambda row: row["kept"])[:3]
    said = ", ".join(f"{row['path']} ({row['kept']:.1%})" for row in worst)
    least = f"Least is kept of {said}." if rows and worst[0]["kept"] < 1 else ""
    hint = (
        f"Each bar is a layer; those that keep less than {LITTLE:.0%} stand out. Point at one for its rank."
    )
    return tag("div", "".join(figures), "kept") + tag("p", words.safe(f"{least} {hint}".strip()), "quiet")


def _part(part: str, rows: Sequence[Row]) -> str:
    each = WIDE / len(rows)
    shapes = [_bar(row, number * each, each) for number, row in enumerate(rows)]
    mean = sum(row["kept"] for row in rows) / len(rows)
    label = f"{part}: {len(rows)} layers, {mean:.1%} kept on average"
    rules = "".join(
        f'<line class="rule" x1="0" x2="{WIDE:.0f}" y1="{y}" y2="{y}"/>' for y in (0, TALL / 2, TALL)
    )
    drawn = (
        f'<svg viewBox="0 0 {WIDE:.0f} {TALL}" preserveAspectRatio="none" role="img" '
        f'aria-label="{words.safe(label)}">{rules}{"".join(shapes)}</svg>'
    )
    return tag("figure", tag("figcaption", words.safe(label.replace("_", " "))) + drawn)


def _bar(row: Row, left: float, wide: float) -> str:
    kept = min(1.0, max(0.0, row["kept"]))
    tall = max(1.0, kept * TALL)
    look = "little" if kept < LITTLE else "enough"
    said = f"{row['path']}: rank {row['rank']}, {row['kept']:.2%} kept"
    place = f'x="{left:.2f}" y="{TALL - tall:.1f}" width="{wide * 0.85:.2f}" height="{tall:.1f}"'
    return f'<rect class="{look}" {place}><title>{words.safe(said)}</title></rect>'
