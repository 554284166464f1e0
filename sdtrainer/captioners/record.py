"""What the last captioning of a folder has written: to go on where it was broken off, and to undo it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..data.overlay import overlay_for

SCHEMA = 1
Question = Mapping[str, Any]
"""What was asked, as plain data: another question is another captioning."""


class Record:
    """One JSON file for each image folder, always whole; the captions themselves are in the overlay.

    `what` names this captioning in the overlay's history.
    """

    def __init__(self, workspace: Path, folder: Path) -> None:
        self._overlay = overlay_for(workspace, folder)
        self.path = workspace / "captions" / "written" / f"{self._overlay.path.stem}.json"
        self._data = self._read()

    @property
    def what(self) -> str:
        return self._data["what"]

    def begin(self, question: Question, title: str) -> frozenset[str]:
        """Begin a captioning; return which pictures are done, if the same one was broken off."""
        if self._data["is_whole"] or self._data["question"] != question:
            what = f"Captioned by {title}, {time.strftime('%H:%M:%S')}"
            self._data = _EMPTY | {"question": dict(question), "what": what, "is_whole": False, "written": {}}
            self._save()
            return frozenset()
        captions = self._overlay.captions
        return frozenset(path for path, text in self._data["written"].items() if captions.get(path) == text)

    def write(self, captions: Mapping[str, str]) -> None:
        """Keep captions. After a crash in between nothing is lost but, at most, that these are done."""
        self._overlay.apply(self.what, captions, joins=True)
        self._data["written"].update({path: self._overlay.caption(path) for path in captions})
        self._save()

    def end(self) -> None:
        """The captioning came to its end: the same words begin another one."""
        self._data["is_whole"] = True
        self._save()

    @property
    def num_written(self) -> int:
        """How many captions were written by a captioning that was broken off; 0 if there is none."""
        return 0 if self._data["is_whole"] else len(self._data["written"])

    @property
    def can_undo(self) -> bool:
        """Whether nothing was changed in the folder's captions since."""
        return bool(self.what) and self._overlay.undoable == self.what

    def undo(self) -> int:
        """Take back all that was written, which may be several changes; return how many captions."""
        names: set[str] = set()
        while self.can_undo and (step := self._overlay.undo()):
            names.update(step.names)
        if names:
            self.path.unlink(missing_ok=True)
        return len(names)

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            data = None
        return data if isinstance(data, dict) and data.get("schema") == SCHEMA else dict(_EMPTY)

    def _save(self) -> None:
        files.write_bytes(self.path, json.dumps(self._data, ensure_ascii=False).encode())


_EMPTY = {"schema": SCHEMA, "question": None, "what": "", "is_whole": True, "written": {}}
