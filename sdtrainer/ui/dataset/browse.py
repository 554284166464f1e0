"""The pictures: found, selected, looked at one by one, and their captions changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ...data.census import Problem
from ...section import UserError
from .. import pictures, words
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..words import tag
from .bulk import Bulk
from .changes import Changes
from .editor import Editor
from .finder import Finder
from .grid import Grid
from .shelf import Shelf
from .tags import Tags
from .views import Moment, Sent, Views

KINDS, NAMED = 50, 3
"""Of problems shown, and of files named for each."""


class Browse:
    """Pictures and captions. After every event a page is sent what is new to it, and nothing else."""

    title = "Pictures"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.shelf = Shelf(desk)
        self.views = Views()
        self.sent = Sent()
        self.finder, self.changes = Finder(desk, self.views), Changes(desk, self.shelf, self.views)
        self.editor = Editor(desk, self.shelf, self.views)
        self.grid, self.bulk = Grid(desk, self.shelf, self.views), Bulk(desk, self.shelf, self.views)
        self.tags = Tags(desk, self.shelf, self.finder)

    def build(self) -> None:
        self.changes.build()
        self.editor.build()
        with gr.Column(elem_id="shelves") as self.shelves:
            self.finder.build()
            self.grid.build()
            self.bulk.build()
            self.tags.build()
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                self.problems = gr.HTML()
            with gr.Column(min_width=280):
                self.buckets = gr.HTML()

    @property
    def _parts(self) -> tuple[Any, ...]:
        return (self.changes, self.editor, self.finder, self.grid, self.bulk, self.tags)

    @property
    def states(self) -> set[Any]:
        return set()

    @property
    def shows(self) -> list[Any]:
        return [self.problems, self.buckets, *self._seen]

    @property
    def _seen(self) -> list[Any]:
        parts = [self.changes, self.editor, self.grid, self.bulk, self.tags]
        return [self.shelves, self.finder.source, *(shown for part in parts for shown in part.shows)]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        census = outlook.census
        below = {self.problems: _problems(census.problems) if census else "", self.buckets: _buckets(outlook)}
        return self.sent.news(given.session, below) | self._show(given)

    def wire(self, refresh: Any) -> None:
        seen = self._seen
        self.changes.wire(self._show, seen)
        self.finder.wire(self._show, seen)
        self.editor.wire(self._show, seen)
        self.grid.wire(self._show, seen, self._open)
        self.bulk.wire(self._show, seen)
        self.tags.wire(self._show, seen)
        fields = list(dict.fromkeys([*seen, *self.finder.shows]))
        see_all = lambda given: self.finder.look_for_all(given) | self._show(given)  # noqa: E731
        self.desk.on(self.grid.clear.click, see_all, (), fields, queue=False)

    def _open(self, given: Given) -> dict[Any, Any]:
        self.editor.open(given, str(given.clicked["picture"]))
        return self._show(given)

    def _show(self, given: Given) -> dict[Any, Any]:
        """Show this page everything as it is now. One answer after the other: an older one that came last
        would stay.
        """
        with self.views.lock:
            return self._news(given)

    def _news(self, given: Given) -> dict[Any, Any]:
        try:
            shelved = self.shelf.look()
            view, trouble = self.editor.heard(given.session, shelved), ""
        except UserError:
            return self.sent.news(given.session, {self.shelves: gr.update(visible=False)})
        try:
            found = self.shelf.find(shelved, view.search)
        except UserError as error:
            found, trouble = (), f"{error.what} {error.hint}"
        moment = Moment(view, shelved, found, trouble)
        is_open = view.open in shelved.by_path
        updates = {self.shelves: gr.update(visible=not is_open)}
        for part in (self.changes, self.editor) if is_open else self._parts:
            updates |= part.render(moment)
        return self.sent.news(given.session, updates)


def _problems(problems: tuple[Problem, ...]) -> str:
    """Each kind of problem once, with the pictures that have it."""
    if not problems:
        return tag("h3", "Problems") + tag("p", "None.", "quiet")
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        skipped = " Skipped." if problem.level == "skipped" else ""
        kinds.setdefault(problem.sentence + skipped, []).append(problem.file or "All")
    rows = [_problem(said, found) for said, found in kinds.items()]
    more = tag("p", f"and {len(rows) - KINDS:,} more", "quiet") if len(rows) > KINDS else ""
    return tag("h3", "Problems") + tag("ul", words.items(rows[:KINDS]), "problems") + more


def _problem(said: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{tag('b', words.safe(names[0]))} {words.safe(said)}"
    some = f"({', '.join(names[:NAMED])}{' …' if len(names) > NAMED else ''})"
    return f"{tag('b', f'{len(names):,} files')} {words.safe(said)} {tag('span', words.safe(some), 'quiet')}"


def _buckets(outlook: Outlook) -> str:
    if outlook.plan is None:
        return ""
    intro = "Pictures of like shape are trained together; width x height, and pictures per epoch."
    return tag("h3", "Shapes") + tag("p", intro, "quiet") + pictures.bars(outlook.plan.buckets)
