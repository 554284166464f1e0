"""The pictures found, a page of them at a time, and which are selected."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import gradio as gr

from ...data.captions import CHUNK_TOKENS
from ...data.census import Sample
from .. import words
from ..desk import Desk
from ..listen import Given
from ..words import image, tag
from .finder import Show
from .shelf import Shelf
from .views import Moment, Views

PER_PAGE = 60
PICKS = """
const cells = () => [...element.querySelectorAll('.cell')];
let last = '';
element.addEventListener('click', event => {
  const cell = event.target.closest('.cell');
  if (!cell) return;
  const picture = cell.dataset.picture;
  if (!(event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest('.tick'))) {
    window.scrollOfPictures = window.scrollY;
    return trigger('click', {act: 'open', picture});
  }
  const on = !cell.classList.contains('picked'), all = cells(), here = all.indexOf(cell);
  const from = event.shiftKey ? all.findIndex(other => other.dataset.picture === last) : -1;
  const range = from < 0 ? [cell] : all.slice(Math.min(from, here), Math.max(from, here) + 1);
  for (const one of range) {
    one.classList.toggle('picked', on);
    one.querySelector('.tick').setAttribute('aria-checked', on);
  }
  last = picture;
  trigger('click', {act: 'pick', on, pictures: range.map(one => one.dataset.picture)});
});
if (window.scrollOfPictures) requestAnimationFrame(() => {
  window.scrollTo(0, window.scrollOfPictures);
  window.scrollOfPictures = 0;
});
"""


class Grid:
    """Thumbnails are made when the browser asks for them: a page of fresh pictures is there at once."""

    def __init__(self, desk: Desk, shelf: Shelf, views: Views) -> None:
        self.desk, self.shelf, self.views = desk, shelf, views

    def build(self) -> None:
        with gr.Row(elem_classes="controls"):
            self.said = gr.HTML(elem_id="found-pictures")
            self.clear = gr.Button("Show all", size="sm", min_width=100, visible=False, elem_id="show-all")
            self.all = gr.Button("Select all", size="sm", min_width=100, elem_id="select-all")
            self.none = gr.Button("Select none", size="sm", min_width=100, elem_id="select-none")
        self.grid = gr.HTML(js_on_load=PICKS, elem_id="pictures")
        with gr.Row(elem_classes="pager"):
            self.back = gr.Button("Previous page", size="sm", min_width=110, visible=False)
            self.where = gr.HTML()
            self.on_ = gr.Button("Next page", size="sm", min_width=110, visible=False)

    @property
    def shows(self) -> list[Any]:
        return [self.said, self.clear, self.all, self.none, self.grid, self.back, self.where, self.on_]

    def wire(self, show: Show, shows: list[Any], opens: Any) -> None:
        """`opens` is what a click on a picture does."""
        on = self.desk.on
        on(self.back.click, lambda g: self._turn(g, -1, show), (), shows, queue=False)
        on(self.on_.click, lambda g: self._turn(g, 1, show), (), shows, queue=False)
        on(self.all.click, lambda g: self._select(g, True, show), (), shows, queue=False)
        on(self.none.click, lambda g: self._select(g, False, show), (), shows, queue=False)
        act = {"open": opens, "pick": lambda g: self._pick(g, show)}
        hears = {"clicks": True, "queue": False, "trigger_mode": "multiple"}  # quick clicks count, too
        on(self.grid.click, lambda g: act[g.clicked["act"]](g), (), shows, **hears)

    def render(self, moment: Moment) -> dict[Any, Any]:
        view, found = moment.view, moment.found
        pages = max(1, ceil(len(found) / PER_PAGE))
        page = min(max(view.page, 0), pages - 1)
        shown = found[page * PER_PAGE : (page + 1) * PER_PAGE]
        long = self._long(moment, shown)
        cells = "".join(self._cell(s, s.path in view.picked, s.path in long) for s in shown)
        return {
            self.said: tag("p", _said(moment), "quiet"),
            self.clear: gr.update(visible=len(found) < len(moment.shelved.by_path)),
            self.all: gr.update(interactive=bool(found)),
            self.none: gr.update(interactive=bool(view.picked)),
            self.grid: self._drawn(moment, cells),
            self.where: tag("span", f"Page {page + 1:,} of {pages:,}", "quiet") if pages > 1 else "",
            self.back: gr.update(visible=pages > 1, interactive=page > 0),
            self.on_: gr.update(visible=pages > 1, interactive=page < pages - 1),
        }

    @staticmethod
    def _drawn(moment: Moment, cells: str) -> str:
        if not cells:
            return tag("p", _nothing(moment), "quiet")
        return tag("div", cells, "pictures", data_picks=moment.view.num_picks)

    def _long(self, moment: Moment, shown: Sequence[Sample]) -> set[str]:
        """Which captions do not fit one window of tokens."""
        counts = self.shelf.tokens([moment.shelved.trained_as(s.caption, s.class_word) for s in shown])
        return {s.path for s, n in zip(shown, counts or (), strict=False) if n > CHUNK_TOKENS}

    def _cell(self, sample: Sample, is_picked: bool, is_long: bool) -> str:
        text = sample.caption or sample.class_word
        caption = tag("span", words.safe(text) if text else "no caption", "" if text else "quiet")
        label = f"{sample.path}, caption beyond 75 tokens" if is_long else sample.path
        inner = image(self.desk.thumbnails.address(sample.file), label) + caption
        tick = tag(
            "button", "", "tick", type="button", role="checkbox", aria_checked=str(is_picked).lower(),
            aria_label=f"Select {sample.path}", title="Select",
        )  # fmt: skip
        marks = " ".join(["cell", *(["picked"] if is_picked else []), *(["long"] if is_long else [])])
        open_ = tag("button", inner, "thumbnail", type="button", title=label)
        return tag("div", open_ + tick, marks, data_picture=sample.path)

    def _turn(self, given: Given, by: int, show: Show) -> dict[Any, Any]:
        with self.views.lock:
            self.views.change(given.session, page=max(0, self.views[given.session].page + by))
        return show(given)

    def _select(self, given: Given, is_on: bool, show: Show) -> dict[Any, Any]:
        search = self.views[given.session].search
        found = self.shelf.find(self.shelf.look(), search) if is_on else ()
        self.views.change(given.session, picked=frozenset(sample.path for sample in found))
        return show(given)

    def _pick(self, given: Given, show: Show) -> dict[Any, Any]:
        """Take in what was clicked. The page has marked it already, which gradio does not know: what is shown
        next must differ from what was shown before.
        """
        pictures = frozenset(map(str, given.clicked["pictures"]))
        with self.views.lock:
            view = self.views[given.session]
            picked = view.picked | pictures if given.clicked["on"] else view.picked - pictures
            self.views.change(given.session, picked=picked, num_picks=view.num_picks + 1)
        return {part: update for part, update in show(given).items() if part is not self.grid}


def _said(moment: Moment) -> str:
    if moment.trouble:
        return words.safe(moment.trouble)
    total, num_found = len(moment.shelved.by_path), len(moment.found)
    text = words.count(total, "picture")
    if num_found != total:
        text = f"{num_found:,} of {text}"
    return f"{text}, {len(moment.view.picked):,} selected" if moment.view.picked else text


def _nothing(moment: Moment) -> str:
    return "" if moment.trouble else "No picture is like this."
