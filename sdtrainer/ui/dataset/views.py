"""What one open page looks at among the pictures, and what was sent to it already."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...data.caption_edits import EditSection
from ...data.caption_search import SearchSection
from ...data.census import Sample
from ..remembered import Remembered
from .shelf import Shelved


@dataclass(frozen=True)
class View:
    """`picked` are the pictures selected, in `num_picks` clicks. `open` is the one shown large, `order` those
    it was opened among; the page's text field got `sent` (for the `version`th time), and holds `held` by now.
    """

    search: SearchSection = field(default_factory=SearchSection)
    edit: EditSection = field(default_factory=EditSection)
    page: int = 0
    picked: frozenset[str] = frozenset()
    num_picks: int = 0
    open: str = ""
    order: Sequence[str] = ()
    sent: str = ""
    held: str = ""
    version: int = 0
    asks: bool = False

    def with_text(self, text: str) -> View:
        """Give the text field something else to hold."""
        return replace(self, sent=text, held=text, version=self.version + 1)


class Views(Remembered[View]):
    """The views of all open pages. Who reads one and writes it anew holds `lock` meanwhile: a page is told
    news while it acts.
    """

    def __init__(self) -> None:
        super().__init__(View())
        self.lock = threading.RLock()

    def change(self, session: str, /, **fields: Any) -> View:
        with self.lock:
            view = self[session] = replace(self[session], **fields)
            return view


@dataclass(frozen=True)
class Moment:
    """All that a part of the page needs to draw itself. `trouble` is what is wrong with the search."""

    view: View
    shelved: Shelved
    found: Sequence[Sample]
    trouble: str = ""

    @property
    def chosen(self) -> Sequence[Sample]:
        """The pictures that a change is for: those selected, else all that were found."""
        by_path = self.shelved.by_path
        picked = [by_path[path] for path in self.view.picked if path in by_path]
        return picked or self.found


class Sent:
    """Keeps from sending a page what it shows already, so that nothing jumps there."""

    def __init__(self) -> None:
        self._pages: Remembered[Mapping[Any, str]] = Remembered({})

    def news(self, page: str, updates: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the updates that are new to this page, and take them as sent."""
        known = self._pages[page]
        marks = {part: hashlib.sha256(repr(update).encode()).hexdigest() for part, update in updates.items()}
        self._pages[page] = {**known, **marks}
        return {part: update for part, update in updates.items() if known.get(part) != marks[part]}
