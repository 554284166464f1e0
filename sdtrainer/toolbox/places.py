"""Which file is meant."""

from __future__ import annotations

from pathlib import Path

from ..section import UserError


def existing(text: str, setting: str, title: str = "File") -> Path:
    """Return the path that a setting names.

    Raises:
        UserError: it is empty, or nothing is there.
    """
    if not text.strip():
        raise UserError(f"{title}: none is given.", "Choose one.", setting)
    path = Path(text.strip()).expanduser()
    if not path.exists():
        raise UserError(f"{title}: there is nothing at '{path}'.", "Check the path.", setting)
    return path
