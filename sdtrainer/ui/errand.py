"""Long work while the page is open, in the background: each kind once at a time, and the card for one."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .. import child
from ..child import Hand
from ..events import PhaseBegan
from ..section import UserError

STOPPED = "It was stopped."
Tell = Callable[[Any], None]
Work = Callable[[Hand, Tell], Any]


@dataclass(frozen=True)
class Doing:
    """What is under way. `progress` is what was told last, None at first; `phase` is what is being done."""

    kind: str
    needs_card: bool = False
    progress: Any = None
    phase: str = ""
    is_stopping: bool = False


class Errands:
    """`news` is called at every step forward. By kind: `doing` is under way, `ended` says why it ended early,
    and `found` is what the last one that came to its end returned.
    """

    def __init__(self, news: Callable[[], None], log: Callable[[str], None]) -> None:
        self._news, self._log = news, log
        self._lock = threading.Lock()
        self._hands: dict[str, tuple[Hand, threading.Thread]] = {}
        self.doing: dict[str, Doing] = {}
        self.ended: dict[str, str] = {}
        self.found: dict[str, Any] = {}

    @property
    def has_card(self) -> Doing | None:
        """What has the card for itself now."""
        with self._lock:
            return next((doing for doing in self.doing.values() if doing.needs_card), None)

    def begin(self, kind: str, work: Work, needs_card: bool = False) -> None:
        """Do it in the background: `work` puts its child into the hand, and tells how far it is.

        Raises:
            UserError: this is being done already, or something else has the card.
        """
        holder = self.has_card
        with self._lock:
            if kind in self.doing:
                raise UserError("This is being done already.", "Wait for it, or stop it first.")
            if needs_card and holder:
                what = f"'{holder.kind}' has the card at the moment."
                raise UserError(what, "Wait for it, or stop it first.")
            hand = Hand()
            thread = threading.Thread(target=self._work, args=(kind, work, hand), name=kind, daemon=True)
            self.doing[kind], self._hands[kind] = Doing(kind, needs_card), (hand, thread)
            self.ended.pop(kind, None)
            self.found.pop(kind, None)
            thread.start()
        self._news()

    def stop(self, kind: str) -> None:
        """End this, if it is under way; its child is gone when this returns."""
        with self._lock:
            hand, thread = self._hands.get(kind, (None, None))
            if kind in self.doing:
                self.doing[kind] = replace(self.doing[kind], is_stopping=True)
        if hand and thread and thread is not threading.current_thread():
            hand.stop()
            thread.join(10)

    def free_card(self) -> None:
        """End what has the card."""
        while holder := self.has_card:
            self.stop(holder.kind)

    def close(self) -> None:
        for kind in list(self.doing):
            self.stop(kind)

    def _tell(self, kind: str, progress: Any) -> None:
        with self._lock:
            if kind in self.doing:
                doing = self.doing[kind]
                phase = progress.what if isinstance(progress, PhaseBegan) else doing.phase
                self.doing[kind] = replace(doing, progress=progress, phase=phase)
        self._news()

    def _work(self, kind: str, work: Work, hand: Hand) -> None:
        said, found = "", None
        try:
            found = work(hand, lambda progress: self._tell(kind, progress))
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
            self.doing.pop(kind, None)
            self._hands.pop(kind, None)
            if said:
                self.ended[kind] = said
            else:
                self.found[kind] = found
        self._news()
