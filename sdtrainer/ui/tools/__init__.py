"""The Tools tab: what is done with models and adapters after training, a card for each tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from .. import file_lists
from ..desk import Desk
from ..file_lists import Role
from ..listen import Given
from ..sections import Sections
from ..trying import Try
from ..words import tag
from .card import ToolCard
from .looking import Inspect
from .mixing import Mix

ABOUT = "Lists show what runs and tools made and what was uploaded. Any other file is given by its path."

CARDS: tuple[tuple[str, str, str, str, Mapping[str, Role]], ...] = (
    (
        "merge",
        "Merge",
        "Merge",
        "Puts adapters into a base model for good, as a new model that needs none of them; or takes them out "
        "of it again.",
        {"base": "model", "adapters": "adapter"},
    ),
    (
        "extract",
        "Extract",
        "Extract",
        "Makes a LoRA of the difference between two models: a tuned model as a small file for its base.",
        {"base": "model", "tuned": "model"},
    ),
    (
        "resize",
        "Resize",
        "Resize",
        "Gives an adapter another rank: a smaller file that loses little, or room for further training.",
        {"file": "adapter", "base": "model"},
    ),
    (
        "convert",
        "Convert",
        "Convert",
        "Stores an adapter or a whole model in another layout or precision, for other programs.",
        {"file": "any", "base": "model"},
    ),
)
"""Verb, title, what the button says, what it does, and which settings name files."""


class Tools:
    """One part for each tool."""

    def __init__(self, desk: Desk, trying: Try) -> None:
        self.desk, self.trying = desk, trying
        merge, *others = (ToolCard(desk, *card) for card in CARDS)
        self.cards = (Inspect(desk), merge, Mix(desk), *others)

    def build(self) -> None:
        gr.HTML(tag("p", ABOUT, "quiet"))
        with gr.Accordion("Upload a file", open=False):
            self.upload = gr.File(file_count="multiple", label="Files of models", height=140)
        Sections("tool-cards").build({card.title: card.build for card in self.cards})

    @property
    def shows(self) -> list[Any]:
        """All that news of any card may change, and of the place to try."""
        return [shown for card in (*self.cards, self.trying) for shown in card.shows]

    @property
    def lists(self) -> list[Any]:
        """The lists of files, wherever they are."""
        return [field.widget for card in (*self.cards, self.trying) for field in card.lists]

    def wire(self, filled: Any) -> None:
        """`filled` shows changed settings after an action."""
        for card in self.cards:
            card.wire_all(filled)
        self.desk.on(self.upload.upload, self._upload, {self.upload}, [self.upload, *self.lists])

    @property
    def news(self) -> list[str]:
        """The names of what `show` brings up to date."""
        return [f"tool {card.chore.verb}" for card in (*self.cards, self.trying)] + ["tool files"]

    def stamps(self) -> dict[str, object]:
        """Return what the look of each card depends on, and that of the lists of files."""
        news = {f"tool {card.chore.verb}": card.stamp for card in (*self.cards, self.trying)}
        return news | {"tool files": file_lists.known(self.desk.workspace)}

    def show(self, name: str, given: Given) -> dict[Any, Any]:
        """Bring up to date what one of the stamps is of."""
        if name == "tool files":
            return self._offer()
        return next(
            card.show_all(given) for card in (*self.cards, self.trying) if name == f"tool {card.chore.verb}"
        )

    def _offer(self) -> dict[Any, Any]:
        found = file_lists.known(self.desk.workspace)
        lists = [field for card in (*self.cards, self.trying) for field in card.lists]
        return {field.widget: field.offer(found) for field in lists}

    def _upload(self, given: Given) -> dict[Any, Any]:
        taken = file_lists.take_in(self.desk.workspace, given[self.upload] or [])
        gr.Info(f"{', '.join(path.name for path in taken)}: in the lists now.", duration=5)
        return {self.upload: None} | self._offer()
