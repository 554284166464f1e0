"""Text and regular expressions that a person wrote, found and replaced in captions, within a bounded time.

Some patterns take years on some texts; they are given up with a sentence. The standard library's cannot be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import regex

from ..section import UserError

SECONDS = 3.0
"""For all captions together; usual patterns take millionths for one."""
Found = TypeVar("Found")


@dataclass(frozen=True)
class Pattern:
    """What is looked for, until a time. `setting` names where it was written."""

    text: str
    compiled: Any
    is_pattern: bool
    setting: str
    until: float

    def is_in(self, caption: str) -> bool:
        """Raises UserError if it takes too long."""
        return self._timed(
            lambda: self.compiled.search(caption, timeout=self._left, concurrent=True) is not None
        )

    def replaced(self, caption: str, new: str) -> str:
        """Raises UserError if it takes too long, or `new` names a group that is not there."""
        by = new if self.is_pattern else new.replace("\\", r"\\")
        try:
            return self._timed(lambda: self.compiled.sub(by, caption, timeout=self._left, concurrent=True))
        except (regex.error, IndexError) as error:
            what = f"New text: '{new}' does not fit the pattern '{self.text}' ({error})."
            raise UserError(what, r"Write \1 only for a group in brackets.", "new") from None

    @property
    def _left(self) -> float:
        return max(0.001, self.until - time.monotonic())

    def _timed(self, work: Callable[[], Found]) -> Found:
        try:
            return work()
        except TimeoutError:
            what = f"Regular expression: '{self.text}' takes too long."
            raise UserError(
                what, "Write a simpler one, without repeats inside repeats.", self.setting
            ) from None


def compiled(text: str, is_pattern: bool, match_case: bool = False, setting: str = "text") -> Pattern:
    """Return what to look for.

    Raises:
        UserError: it is no regular expression.
    """
    flags = regex.VERSION0 if match_case else regex.VERSION0 | regex.IGNORECASE
    try:
        made = regex.compile(text if is_pattern else regex.escape(text), flags)
    except (regex.error, OverflowError, RecursionError) as error:
        what = f"Regular expression: '{text}' is none ({error})."
        raise UserError(
            what, r"Put \ before signs that are meant as such: \( \) \[ \] \. \*", setting
        ) from None
    return Pattern(text, made, is_pattern, setting, time.monotonic() + SECONDS)
