"""How often each tag is in the set; a click finds its pictures."""

from __future__ import annotations

import heapq
from typing import Any

import gradio as gr

from .. import words
from ..desk import Desk
from ..panel import CLICKS
from ..words import tag
from .finder import Finder, Show
from .shelf import Shelf
from .views import Moment

SHOWN = 40
EVERYWHERE = 0.9
"""A tag in so many of the captions says nothing about any one picture."""


class Tags:
    """The frequent ones as bars, the rare ones as a list."""

    def __init__(self, desk: Desk, shelf: Shelf, finder: Finder) -> None:
        self.desk, self.shelf, self.finder = desk, shelf, finder

    def build(self) -> None:
        with gr.Accordion("Tags of the set", open=False, elem_id="tags"):
            self.chart = gr.HTML(js_on_load=CLICKS, elem_id="tag-chart")

    @property
    def shows(self) -> list[Any]:
        return [self.chart]

    def wire(self, show: Show, shows: list[Any]) -> None:
        look_for = lambda given: self.finder.look_for(given, given.clicked["tag"]) | show(given)  # noqa: E731
        all_shown = list(dict.fromkeys([*shows, *self.finder.shows]))
        self.desk.on(self.chart.click, look_for, (), all_shown, clicks=True, queue=False)

    def render(self, moment: Moment) -> dict[Any, Any]:
        counts, total = self.shelf.tags(moment.shelved), len(moment.shelved.by_path)
        if not counts:
            return {self.chart: tag("p", "There are no captions yet.", "quiet")}
        common = heapq.nsmallest(SHOWN, counts.items(), key=lambda of: (-of[1], of[0]))
        once = sorted(name for name, count in counts.items() if count == 1)
        rare = once[:SHOWN] if len(once) < len(counts) / 2 else []  # else these are sentences
        rows = "".join(_bar(name, count, total) for name, count in common)
        said = f"{words.count(len(counts), 'tag')}, compared without capitals. A click finds its pictures."
        found = tag("p", said, "quiet") + tag("div", rows, "tag-bars")
        if rare:
            names = "".join(_button(name, "tag-chip") for name in rare)
            found += tag("h4", "In one caption only: misspelt, or not worth a tag?")
            found += tag("div", names, "chips")
        return {self.chart: found}


def _bar(name: str, count: int, total: int) -> str:
    part = count / total
    note = "in nearly all: becomes part of the trigger word" if part >= EVERYWHERE and total > 1 else ""
    fill = tag("div", tag("div", "", "fill", style=f"width:{100 * part:.1f}%"), "bar-track")
    numbers = tag("span", f"{count:,}", "bar-count")
    return tag("div", _button(name, "bar-name") + fill + numbers + tag("span", note, "quiet"), "bar-row")


def _button(name: str, class_: str) -> str:
    return tag("button", words.safe(name), class_, type="button", title=name, data_act="tag", data_tag=name)
