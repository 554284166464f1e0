"""What a file tells of its training, as settings of ours: the values, and what has no counterpart here.

Owns how a table of rows is read. A row names an entry of the file, the setting that it becomes, and how its
text is read; the tables are those of each trainer.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

UNSET = ("", "None", "none", None, "{}", "[]")
"""What trainers write where nothing was asked for."""


class Unlike(Exception):
    """A value has no counterpart here; says why, as the end of a sentence."""


@dataclass(frozen=True)
class Left:
    """One entry that was not carried over."""

    name: str
    value: str
    why: str


@dataclass
class Likeness:
    """`values` by dotted setting. `source` is the program that wrote the file, in words."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)

    def leave(self, name: str, value: Any, why: str) -> None:
        text = str(value)
        self.left.append(Left(name, text if len(text) <= 80 else f"{text[:77]}...", why))


@dataclass(frozen=True)
class Row:
    """`setting` is dotted. `unset` is the value where the file says that nothing was asked for; None leaves
    ours as it is.
    """

    entry: str
    setting: str
    read: Callable[[Any], Any]
    unset: Any = None


def carry(rows: Iterable[Row], entries: Mapping[str, Any], into: Likeness) -> None:
    """Read the entries that there are; the first of several for one setting counts."""
    for row in rows:
        if row.entry not in entries or row.setting in into.values:
            continue
        given = entries[row.entry]
        if given in UNSET:
            if row.unset is not None:
                into.values[row.setting] = row.unset
            continue
        try:
            into.values[row.setting] = row.read(given)
        except Unlike as unlike:
            into.leave(row.entry, given, str(unlike))
        except (ValueError, TypeError, SyntaxError, IndexError, KeyError):
            into.leave(row.entry, given, "cannot be read")


def leave(
    reasons: Mapping[str, tuple[tuple[Any, ...], str]], entries: Mapping[str, Any], into: Likeness
) -> None:
    """Name what is set and has no counterpart: {entry: (values at which it has no effect, why)}."""
    for entry, (idle, why) in reasons.items():
        if entry in entries and entries[entry] not in (*UNSET, *idle):
            into.leave(entry, entries[entry], why)


def forget_rates(into: Likeness) -> None:
    """Where the optimizer finds its learning rate, that of the file is only a factor of it."""
    if into.values.get("optim.name") in _FINDS_ITS_RATE:
        for setting in ("optim.lr", "optim.text_encoder_lr"):
            into.values.pop(setting, None)


def table(words: Mapping[str, Any], why: str) -> Callable[[Any], Any]:
    """Return a reader of words; others have no counterpart."""

    def read(given: Any) -> Any:
        word = str(given).strip().lower()
        if word not in words:
            raise Unlike(why)
        return words[word]

    return read


def whole(given: Any) -> int:
    return round(float(given))


def number(given: Any) -> float:
    found = float(given)
    if not math.isfinite(found):
        raise ValueError(given)
    return found


def switch(given: Any) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[str(given).strip().lower()]


def length(given: Any) -> str:
    return str(whole(given))


def side(given: Any) -> int:
    """Read "512", "(512, 768)" or "768x512" as the side of a square of as many pixels, a multiple of 8."""
    sides = [int(text) for text in re.findall(r"\d+", str(given))[:2]]
    return round(math.sqrt(sides[0] * sides[-1]) / 8) * 8


def run_name(given: Any) -> str:
    name = re.sub(r"[^\w .\-]+", "-", str(given)).strip(" .-_")[:80].rstrip(" .-")
    if not name:
        raise Unlike("no name for a folder is left of it")
    return name


def literal(given: Any) -> Any:
    """Read a Python value, as argument lists hold them; text that is none stays text."""
    try:
        return ast.literal_eval(str(given))
    except (ValueError, SyntaxError):
        return str(given)


OPTIMIZERS: Mapping[str, str] = {
    "adamw": "adamw", "adamw8bit": "adamw8bit", "pagedadamw8bit": "adamw8bit", "adafactor": "adafactor",
    "lion": "lion", "lion8bit": "lion8bit", "pagedlion8bit": "lion8bit", "prodigy": "prodigy",
    "adamwschedulefree": "adamw_schedulefree", "schedulefreeadamw": "adamw_schedulefree",
}  # fmt: skip
"""Ours by the names of the classes, without case and underscores."""
_FINDS_ITS_RATE = ("prodigy",)


def optimizer(given: Any) -> str:
    """Read "torch.optim.adamw.AdamW(weight_decay=0.1)", "AdamW8bit" or "ADAMW_8BIT"."""
    name = str(given).partition("(")[0].rpartition(".")[2].replace("_", "").lower()
    return str(table(OPTIMIZERS, "this optimizer is not here: 'auto' takes one like AdamW")(name))
