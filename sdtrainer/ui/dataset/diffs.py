"""A caption before and after, word by word. Pure."""

from __future__ import annotations

import difflib
import re

from .. import words
from ..words import tag


def diff(before: str, after: str) -> str:
    """Return HTML of both texts as one: what went is struck out, what came is marked."""
    old, new = _pieces(before), _pieces(after)
    parts = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = "".join(old[a:b]), "".join(new[c:d])
        if what == "equal":
            parts.append(words.safe(gone))
            continue
        parts.append(tag("del", words.safe(gone)) if gone else "")
        parts.append(tag("ins", words.safe(come)) if come else "")
    return "".join(parts)


def _pieces(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)
