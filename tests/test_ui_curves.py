"""The page's drawings are well-formed, labelled and to scale."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml

import pytest

from sdtrainer.ui import curves, pictures, words
from sdtrainer.ui.curves import HEIGHT, WIDTH, Line
from sdtrainer.ui.words import GIB


def parsed(html: str) -> xml.Element:
    return xml.fromstring(f"<div>{html}</div>")


def test_a_plot_is_labelled_and_stays_in_its_frame() -> None:
    points = [(step, 1.0 / (1 + step)) for step in range(200)]
    drawn = curves.plot(
        "Loss <now>", [Line("each step", "raw", points), Line("smoothed", "smooth", points)], 400
    )
    root = parsed(drawn)[0]
    assert "Loss <now>" in root.attrib["aria-label"]
    lines = [e for e in root.iter("polyline") if "points" in e.attrib]
    assert len(lines) == 2
    for line in lines:
        pairs = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        assert len(pairs) == len(points)
        assert all(
            0 <= x <= WIDTH / 2 + 1 and 0 <= y <= HEIGHT for x, y in pairs
        )  # half of 400 steps are done


@pytest.mark.parametrize("last", [1, 2, 3, 5, 7, 8, 40, 180])
def test_the_steps_below_a_plot_are_different_and_in_their_places(last: int) -> None:
    drawn = parsed(curves.plot("Loss", [Line("x", "smooth", [(1, 1.0), (last, 2.0)])], last))
    below = next(e for e in drawn.iter("div") if e.attrib.get("class") == "x-labels")
    steps = [int(span.text or "") for span in below]
    assert len(set(steps)) == len(steps) and (steps[0], steps[-1]) == (0, last)
    assert all(abs(step - last * i / (len(steps) - 1)) <= 0.5 for i, step in enumerate(steps))


def test_a_plot_without_points_is_nothing() -> None:
    assert curves.plot("Loss", [Line("each step", "raw", [])], 100) == ""


@pytest.mark.parametrize("value", [0.0, 1e-4, 1.0, -2.0, 1e6])
def test_a_constant_curve_can_be_drawn(value: float) -> None:
    assert parsed(curves.plot("x", [Line("x", "smooth", [(1, value), (2, value)])], 2)) is not None


def test_one_wild_step_does_not_flatten_the_plot() -> None:
    points = [(step, 1.0 + step / 1000) for step in range(200)]
    low, high = curves._range([Line("each step", "raw", [*points, (200, 1e6)])])
    assert high < 2 and low < 1


def test_squares_have_the_area_of_their_bytes() -> None:
    parts = {"weights": 2.5 * GIB, "gradients": 0.25 * GIB, "optimizer": 1.0 * GIB}
    svg = parsed(pictures.squares(parts, 8 * GIB))[0]
    unit = 40.0 * 40.0
    for name, num_bytes in parts.items():
        area = sum(
            float(r.attrib["width"]) * float(r.attrib["height"])
            for r in svg
            if r.attrib["class"] == f"part-{name}"
        )
        assert area / unit == pytest.approx(num_bytes / GIB, abs=0.01)
    assert sum(r.attrib["class"] == "free" for r in svg) == 8


def test_what_does_not_fit_is_drawn_beyond_the_card() -> None:
    svg = parsed(pictures.squares({"weights": 5.5 * GIB}, 4 * GIB))[0]
    assert sum(r.attrib["class"] == "over" for r in svg) == 2
    assert "missing" in pictures.legend({"weights": 5.5 * GIB}, -1.5 * GIB)


def test_numbers_read_like_a_person_says_them() -> None:
    assert [words.duration(s) for s in (4.4, 61, 3600, 4860)] == ["4 s", "1 min", "1 h", "1 h 21 min"]
    assert [words.size(b) for b in (12, 2048, 37 * 2**20, 7.13 * GIB)] == [
        "12 bytes",
        "2.0 KB",
        "37 MB",
        "7.1 GB",
    ]
    assert words.count(1, "step") == "1 step" and words.count(1500, "step") == "1,500 steps"


def test_text_from_outside_never_becomes_markup() -> None:
    assert "<script" not in words.tag("p", words.safe("<script>"), title='"><script>')
    assert re.search(r'title="&quot;&gt;&lt;script&gt;"', words.tag("p", "", title='"><script>'))
