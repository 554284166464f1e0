"""Answers that take seconds to find: asked for while the page is drawn, found in the background, kept."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")
KEPT = 64


class Answers(Generic[Answer]):
    """One thread finds them. Of the questions that wait, only the newest is answered.

    `news` is called when there is a new answer; `failed` is the answer where finding it failed.
    """

    def __init__(self, failed: Answer, news: Callable[[], None], log: Callable[[str], None]) -> None:
        self._failed, self._news, self._log = failed, news, log
        self._known: dict[Hashable, Answer] = {}
        self._waiting: tuple[Hashable, Callable[[], Answer]] | None = None
        self._current: Hashable | None = None
        self._is_busy = False
        self._lock = threading.Lock()

    def get(self, question: Hashable, find: Callable[[], Answer]) -> Answer | None:
        """Return the answer; None while it is being found."""
        with self._lock:
            if question in self._known:
                return self._known[question]
            if question != self._current:
                self._waiting = question, find
            if not self._is_busy:
                self._is_busy = True
                threading.Thread(target=self._work, name="answers", daemon=True).start()
        return None

    def _work(self) -> None:
        while task := self._next():
            question, find = task
            answer = self._failed
            try:
                answer = find()
            except Exception:
                self._log(traceback.format_exc())
            with self._lock:
                self._known[question] = answer
                for oldest in list(self._known)[:-KEPT]:
                    del self._known[oldest]
            self._news()

    def _next(self) -> tuple[Hashable, Callable[[], Answer]] | None:
        with self._lock:
            task, self._waiting = self._waiting, None
            self._current = task[0] if task else None
            self._is_busy = task is not None
            return task
