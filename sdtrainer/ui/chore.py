"""A chore on the page: its settings as fields, a button that begins it, how far it is, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from ..chores import CHORES, Answer
from ..events import PhaseBegan, Progress
from ..section import fields
from . import costs, pictures, words
from .desk import Desk
from .errand import Doing
from .form import Field, field_of
from .listen import Given
from .words import tag

Found = Callable[[Answer], str]


class ChoreCard:
    """Settings named in `fixed` have no field: `begin` is given their values. What was found is shown by
    `found`, by default as the lines of the command line.
    """

    def __init__(
        self, desk: Desk, verb: str, start: str, fixed: tuple[str, ...] = (), found: Found | None = None
    ) -> None:
        self.desk, self.chore, self.start_words, self.fixed = desk, CHORES[verb], start, fixed
        self._found = found or self._lines
        self.fields: dict[str, Field] = {}

    def build(self) -> None:
        """Put fields, buttons and an empty place for news here."""
        self.place("basic")
        if self._waiting("advanced"):
            with gr.Accordion("More settings", open=False):
                self.place("advanced")
        self.build_controls()

    def place(self, level: str) -> None:
        """Put the settings of this level here that have no place yet."""
        with gr.Row(elem_classes="grid"):
            for name in self._waiting(level):
                self.place_one(name)

    def place_one(self, name: str, **looks: Any) -> Any:
        verb = self.chore.verb
        knob = fields(self.chore.settings)[name]
        field = field_of(knob, {"elem_id": f"{verb}-{name.replace('_', '-')}"} | looks)
        self.fields[name] = field
        return field.widget

    def build_controls(self) -> None:
        verb = self.chore.verb
        with gr.Row(elem_classes="controls"):
            self.start = gr.Button(self.start_words, variant="primary", size="sm", elem_id=f"start-{verb}")
            self.stop = gr.Button("Stop", size="sm", interactive=False, elem_id=f"stop-{verb}")
        self.news = gr.HTML(elem_id=f"news-{verb}")

    @property
    def uses(self) -> set[Any]:
        return {field.widget for field in self.fields.values()}

    @property
    def shows(self) -> list[Any]:
        return [self.start, self.stop, self.news]

    @property
    def doing(self) -> Doing | None:
        return self.desk.errands.doing.get(self.chore.verb)

    @property
    def answer(self) -> Answer | None:
        """What it found when it was last done; None while it is under way, and before."""
        return self.desk.errands.found.get(self.chore.verb)

    def values(self, given: Given) -> dict[str, Any]:
        return {name: field.read(given[field.widget]) for name, field in self.fields.items()}

    def begin(self, given: Given, fixed: Mapping[str, Any] | None = None) -> dict[Any, Any]:
        """Begin it with what the fields hold. Raises UserError."""
        self.desk.begin(self.chore.verb, self.values(given) | dict(fixed or {}))
        return self.show()

    def wire(
        self, fixed: Callable[[Given], Mapping[str, Any]] | None = None, uses: set[Any] | None = None
    ) -> None:
        """`fixed` gives the values of the settings without a field, from components of `uses`."""
        begin = lambda given: self.begin(given, fixed(given) if fixed else None)  # noqa: E731
        on = self.desk.on
        on(self.start.click, begin, self.uses | (uses or set()), self.shows, trigger_mode="once")
        on(self.stop.click, self._stop, (), self.shows, trigger_mode="once")

    def show(self) -> dict[Any, Any]:
        doing = self.doing
        return {
            self.start: gr.update(interactive=doing is None),
            self.stop: gr.update(interactive=doing is not None and not doing.is_stopping),
            self.news: self._news(doing),
        }

    def _waiting(self, level: str) -> list[str]:
        known = fields(self.chore.settings)
        return [n for n, k in known.items() if k.level == level and n not in (*self.fields, *self.fixed)]

    def _stop(self, given: Given) -> dict[Any, Any]:
        self.desk.errands.stop(self.chore.verb)
        return self.show()

    def _news(self, doing: Doing | None) -> str:
        if doing:
            return progress(doing)
        ended = costs.ended(self.desk.errands.ended.get(self.chore.verb, ""))
        return ended + (self._found(self.answer) if self.answer is not None else "")

    def _lines(self, answer: Answer) -> str:
        return "".join(tag("p", words.safe(line)) for line in self.chore.told(answer))


def progress(doing: Doing) -> str:
    """Say how far a chore is, and how long still."""
    said = doing.progress
    if doing.is_stopping or said is None:
        return tag("p", "Stopping …" if doing.is_stopping else "Starting …", "found")
    if isinstance(said, Progress) and said.total:
        left = "" if said.seconds_left is None else f", about {words.duration(said.seconds_left)} left"
        bar = pictures.progress(said.done / said.total, "Progress")
        phase = f"{doing.phase}: " if doing.phase else ""
        return bar + tag("p", words.safe(f"{phase}{said.done:,} of {said.total:,} {said.unit}{left}."))
    text = doing.phase if isinstance(said, PhaseBegan) else getattr(said, "text", "Working")
    return tag("p", f"{words.safe(text)} …", "found")
