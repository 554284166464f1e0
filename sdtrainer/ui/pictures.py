"""Small drawings as SVG and HTML: memory squares, bucket bars. Pure; colours come from the style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from . import words
from .words import GIB, tag

COLUMNS = 8
PART_WORDS = {
    "average": "running average",
    "temporary": "for a moment",
    "overhead": "CUDA itself",
    "others": "other programs",
}


def squares(parts: Mapping[str, float], card_bytes: float) -> str:
    """Draw a card as squares of 1 GiB. `parts` are bytes by what they hold, in the order drawn.

    A square shared by several parts is divided; what does not fit on the card is drawn beyond it, outlined.
    """
    cells = max(1, ceil(max(card_bytes, sum(parts.values())) / GIB))
    size, gap, rows = 40, 6, ceil(cells / COLUMNS)
    width, height = COLUMNS * (size + gap) - gap, rows * (size + gap) - gap
    shapes = [
        _square(i, size, gap, "over" if i >= ceil(card_bytes / GIB) else "free", 0, 1) for i in range(cells)
    ]
    start = 0.0
    for name, num_bytes in parts.items():
        end = start + num_bytes / GIB
        for cell in range(int(start), ceil(end)):
            low, high = max(start, cell) - cell, min(end, cell + 1) - cell
            if high - low > 1e-6:
                shapes.append(_square(cell, size, gap, f"part-{name}", low, high))
        start = end
    label = ", ".join(f"{PART_WORDS.get(name, name)} {words.size(b)}" for name, b in parts.items())
    body = "".join(shapes)
    return (
        f'<svg class="squares" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{words.safe(f"{words.size(card_bytes)} card: {label}")}">{body}</svg>'
    )


def legend(parts: Mapping[str, float], free_bytes: float) -> str:
    """Name the colours with their sizes."""
    rows = [(f"part-{name}", PART_WORDS.get(name, name), words.size(b)) for name, b in parts.items()]
    rows.append(
        ("free", "free", words.size(free_bytes))
        if free_bytes >= 0
        else ("over", "missing", words.size(-free_bytes))
    )
    return tag("ul", "".join(_key(*row) for row in rows), "legend")


def stack(parts: Mapping[str, float], whole: float) -> str:
    """Draw `parts` of `whole` as one bar, in the order and the colours of the squares."""
    whole = max(whole, sum(parts.values()))
    shapes, start = [], 0.0
    for name, num_bytes in parts.items():
        width = 100 * num_bytes / whole
        shapes.append(f'<rect class="part-{name}" x="{start:.2f}" y="0" width="{width:.2f}" height="10"/>')
        start += width
    free = '<rect class="free" x="0" y="0" width="100" height="10"/>'
    body = free + "".join(shapes)
    return tag("svg", body, "stack", viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")


def bars(counts: Mapping[str, int]) -> str:
    """Draw one bar per name, longest for the largest count; the first 12."""
    if not counts:
        return ""
    most = max(counts.values())
    rows = [
        tag(
            "div",
            tag("span", words.safe(name), "bar-name") + _bar(n / most) + tag("span", f"{n:,}", "bar-count"),
            "bar-row",
        )
        for name, n in sorted(counts.items(), key=lambda pair: -pair[1])[:12]
    ]
    more = tag("p", f"and {len(counts) - 12} more", "quiet") if len(counts) > 12 else ""
    return tag("div", "".join(rows), "bars") + more


def amounts(values: Sequence[tuple[str, float, str]]) -> str:
    """Draw one bar for each (name, value, value in words) in this order, longest for the largest value."""
    most = max((value for _, value, _ in values), default=0) or 1
    rows = [
        tag(
            "div",
            tag("span", words.safe(name), "bar-name") + _bar(value / most) + tag("span", said, "bar-count"),
            "bar-row",
        )
        for name, value, said in values
    ]
    return tag("div", "".join(rows), "bars amounts")


def progress(part: float, label: str) -> str:
    """Draw a progress bar."""
    percent = f"{100 * part:.1f}%"
    inner = tag("div", "", "fill", style=f"width:{percent}")
    return tag(
        "div",
        inner,
        "progress",
        role="progressbar",
        aria_label=label,
        aria_valuemin=0,
        aria_valuemax=100,
        aria_valuenow=f"{100 * part:.0f}",
    )


def _bar(part: float) -> str:
    return tag("div", tag("div", "", "fill", style=f"width:{100 * part:.1f}%"), "bar-track")


def _square(cell: int, size: int, gap: int, class_: str, low: float, high: float) -> str:
    x, y = (cell % COLUMNS) * (size + gap), (cell // COLUMNS) * (size + gap)
    height = (high - low) * size
    top = y + size - high * size
    radius = 6 if high - low > 0.99 else 2
    return (
        f'<rect class="{class_}" x="{x}" y="{top:.2f}" width="{size}" height="{height:.2f}" rx="{radius}"/>'
    )


def _key(class_: str, name: str, amount: str) -> str:
    square = tag("rect", "", class_, width=10, height=10, rx=2)
    return tag("li", tag("svg", square, viewBox="0 0 10 10", aria_hidden="true") + name + tag("b", amount))
