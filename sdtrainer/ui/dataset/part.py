"""What every part of the Dataset tab offers."""

from __future__ import annotations

from typing import Any, Protocol

from ..listen import Given
from ..outlook import Outlook


class Part(Protocol):
    """`title` is the word that chooses it. `states` are components whose values `show` needs."""

    title: str

    @property
    def states(self) -> set[Any]: ...

    @property
    def shows(self) -> list[Any]: ...

    def build(self) -> None: ...

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        """Return the updates that bring this page up to date."""
        ...

    def wire(self, refresh: Any) -> None:
        """`refresh` runs the page's own reaction to changed settings or pictures after an event."""
        ...
