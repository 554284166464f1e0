"""Control: the words that reach a running training from outside: from the page, a signal or a test."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from typing import Literal, get_args

Word = Literal["stop", "suspend", "pause", "go", "sample", "save"]
WORDS: tuple[str, ...] = get_args(Word)
"""stop: end now and export. suspend: save a checkpoint and end. pause / go. sample, save: now."""


class Control:
    """A mailbox that any thread may fill and the training loop empties between steps.

    `is_ending` is true from the moment that a word asks for the end, for those who do not read the mail.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._mail: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.is_ending = False
        for word in words:
            self.put(word)

    def put(self, word: str) -> None:
        assert word in WORDS, word
        self.is_ending |= word in ("stop", "suspend")
        self._mail.put(word)

    def take(self, wait: float = 0.0) -> list[str]:
        """Return the words that came, in order; waits up to `wait` seconds for the first."""
        words = []
        try:
            words.append(self._mail.get(timeout=wait) if wait else self._mail.get_nowait())
            while True:
                words.append(self._mail.get_nowait())
        except queue.Empty:
            return words
