"""What the server remembers of each open page: what was chosen there, known at once to every later answer.

A `gr.State` would be known only after the answer to the click is out, so that an answer made meanwhile would
show what was chosen before.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")
KEPT = 256


class Remembered(Generic[T]):
    """A value for each page, `default` for those that are not known; of many pages the latest are kept."""

    def __init__(self, default: T, kept: int = KEPT) -> None:
        self._default, self._kept = default, kept
        self._values: OrderedDict[str, T] = OrderedDict()

    def __getitem__(self, page: str) -> T:
        return self._values.get(page, self._default)

    def __setitem__(self, page: str, value: T) -> None:
        self._values[page] = value
        self._values.move_to_end(page)
        while len(self._values) > self._kept:
            self._values.popitem(last=False)
