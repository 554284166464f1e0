"""Curves as SVG: the raw values faint, the smoothed strong, validation dotted. Pure.

gradio's LinePlot draws all lines alike and redraws at every update; this is a string that the browser swaps.
The drawing stretches with its frame; the labels are HTML around it and stay readable on a narrow window.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from .words import safe, tag

Points = Sequence[tuple[int, float]]
WIDTH, HEIGHT = 1000, 300
TICKS = 4

HOVER = """element.addEventListener('mousemove', event => {
  const plot = event.target.closest('.plot'); if (!plot) return;
  const frame = plot.querySelector('svg').getBoundingClientRect(), data = JSON.parse(plot.dataset.points);
  const step = data.from + (event.clientX - frame.left) / frame.width * (data.to - data.from);
  const near = points => points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
  const lines = Object.entries(data.lines).filter(([, points]) => points.length);
  if (!lines.length) return;
  plot.querySelector('.readout').textContent = 'step ' + near(lines[0][1])[0].toLocaleString('en') + ': ' +
    lines.map(([name, points]) => name + ' ' + near(points)[1].toPrecision(4)).join(', ');
});
element.addEventListener('mouseleave', () => {
  const readout = element.querySelector('.readout'); if (readout) readout.textContent = '';
}, true);"""
"""Shows the values under the pointer."""


@dataclass(frozen=True)
class Line:
    """One curve. `look` is a class of the style sheet: raw, smooth, dotted, a, b, c."""

    name: str
    look: str
    points: Points


def plot(title: str, lines: Sequence[Line], last_step: int) -> str:
    """Draw curves over steps from 0 to `last_step`."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    low, high = _range(lines)
    right = max(1, last_step, *(line.points[-1][0] for line in lines))
    ticks = [t for t in _ticks(low, high) if low <= t <= high]

    def y(value: float) -> float:
        return HEIGHT * (1 - (min(max(value, low), high) - low) / (high - low))

    rules = "".join(f'<path class="rule" d="M0 {y(t):.1f}H{WIDTH}"/>' for t in ticks)
    drawn = "".join(_draw(line, right, y) for line in lines)
    box = f"0 0 {WIDTH} {HEIGHT}"
    svg = tag("svg", rules + drawn, viewBox=box, preserveAspectRatio="none", aria_hidden="true")
    labels = "".join(tag("span", f"{t:g}", style=f"top:{100 * y(t) / HEIGHT:.1f}%") for t in ticks)
    parts = next((n for n in range(TICKS, 1, -1) if right % n == 0), 1) if right < 2 * TICKS else TICKS
    steps = "".join(tag("span", f"{round(right * i / parts):,}") for i in range(parts + 1))
    last = ", ".join(f"{line.name} {line.points[-1][1]:.4g}" for line in lines)
    keys = tag("ul", "".join(_key(line) for line in lines), "keys")
    head = tag("h3", safe(title)) + keys + tag("span", "", "readout")
    return tag(
        "div",
        tag("div", head, "plot-head")
        + tag("div", tag("div", labels, "y-labels") + svg + tag("div", steps, "x-labels"), "plot-frame"),
        "plot",
        role="img",
        aria_label=f"{title}. At step {lines[0].points[-1][0]:,}: {last}.",
        data_points=json.dumps(_data(lines, right), separators=(",", ":")),
    )


def _draw(line: Line, right: int, y: Callable[[float], float]) -> str:
    path = " ".join(f"{WIDTH * step / right:.1f},{y(value):.1f}" for step, value in line.points)
    if len(line.points) == 1:  # a line needs two points; a cap makes a dot of it
        path = f"{path} {path}"
    return f'<polyline class="curve {line.look}" points="{path}"/>'


def _key(line: Line) -> str:
    stroke = tag("path", "", f"curve {line.look}", d="M1 4H21")
    swatch = tag("svg", stroke, viewBox="0 0 22 8", aria_hidden="true")
    return tag("li", swatch + safe(line.name))


def _data(lines: Sequence[Line], right: int) -> dict[str, object]:
    rounded = {line.name: [[step, float(f"{value:.5g}")] for step, value in line.points] for line in lines}
    return {"from": 0, "to": right, "lines": rounded}


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    """The values to show. Single wild steps of the raw curve do not flatten the rest."""
    values: list[float] = []
    for line in lines:
        own = sorted(value for _, value in line.points)
        cut = len(own) // 50 if line.look == "raw" else 0
        values += own[cut : len(own) - cut]
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, about TICKS of them."""
    rough = (high - low) / TICKS
    size = 10 ** floor(log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough)
    first = ceil(low / step)
    return [round(n * step, 12) for n in range(first, floor(high / step) + 1)]
