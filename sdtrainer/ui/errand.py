"""Measuring while the page is open: in the background, and one thing at a time, as it needs the card for
itself.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..bench import child
from ..bench.child import Hand
from ..section import UserError

Kind = Literal["measure", "compare"]
STOPPED = "It was stopped."
Tell = Callable[[Any], None]
Work = Callable[[Hand, Tell], None]


@dataclass(frozen=True)
class Doing:
    """What is under way. `progress` is what was told last; None at first."""

    kind: Kind
    progress: Any = None
    is_stopping: bool = False


class Errand:
    """`news` is called at every step forward. `ended` says of each kind why it ended early, if it did."""

    def __init__(self, news: Callable[[], None], log: Callable[[str], None]) -> None:
        self._news, self._log = news, log
        self._lock = threading.Lock()
        self._hand: Hand | None = None
        self._thread: threading.Thread | None = None
        self.doing: Doing | None = None
        self.ended: dict[Kind, str] = {}

    def begin(self, kind: Kind, work: Work) -> None:
        """Do it in the background: `work` puts its child into the hand, and tells how far it is.

        Raises:
            UserError: something is measured already.
        """
        with self._lock:
            if self.doing:
                raise UserError("Something is being measured already.", "Wait for it, or stop it first.")
            self.doing, self._hand = Doing(kind), Hand()
            self.ended.pop(kind, None)
            self._thread = threading.Thread(
                target=self._work, args=(kind, work, self._hand), name="errand", daemon=True
            )
            self._thread.start()
        self._news()

    def stop(self) -> None:
        """End what is under way, if anything is; its child is gone when this returns."""
        with self._lock:
            hand, thread = self._hand, self._thread
            if self.doing:
                self.doing = replace(self.doing, is_stopping=True)
        if hand and thread and thread is not threading.current_thread():
            hand.stop()
            thread.join(10)

    def _tell(self, progress: Any) -> None:
        with self._lock:
            if self.doing:
                self.doing = replace(self.doing, progress=progress)
        self._news()

    def _work(self, kind: Kind, work: Work, hand: Hand) -> None:
        said = ""
        try:
            work(hand, self._tell)
        except child.Stopped:
            said = STOPPED
        except child.Failed as error:
            said = f"It failed: {error}."
        except UserError as error:
            said = str(error)
        except Exception:
            self._log(traceback.format_exc())
            said = "It failed; log.txt in the workspace says why."
        with self._lock:
            self.doing = self._hand = None
            self.ended |= {kind: said} if said else {}
        self._news()
