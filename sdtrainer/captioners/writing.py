"""From what a model says to a caption: tidied, put into a template, joined to what was there. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..data.texts import one_line
from ..section import UserError
from .section import Mode

CAPTION, TRIGGER, NAME, FOLDER = "{caption}", "{trigger}", "{name}", "{folder}"
_PLACES = (CAPTION, TRIGGER, NAME, FOLDER)
_PLACE = re.compile(r"\{[^{}]*\}")


def tidy(text: str, is_cut: bool = False) -> str:
    """Return a model's words as one line without quotes around them; a text that `is_cut` ends with its last
    whole sentence, or else its last whole word.
    """
    line = one_line(text)
    if is_cut:
        ends = [end.end() for end in re.finditer(r"[.!?](?=\s|$)", line)]
        line = line[: ends[-1]] if ends else line.rpartition(" ")[0].rstrip(" ,;:") or line
    if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
        line = line[1:-1].strip()
    return line


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return the template with its places filled in; commas around an empty one go too."""
    text = _PLACE.sub(lambda place: values[place[0]], template)
    text = re.sub(r"(?:\s*,)+\s*(?=,)|,\s*(?=[.;!?])", "", one_line(text))
    return text.strip(" ,;")


def check_template(template: str, trigger: str, must_caption: bool) -> None:
    """Raise UserError if the template cannot be filled in, or has no place for what was seen."""
    unknown = [place for place in _PLACE.findall(template) if place not in _PLACES]
    if unknown:
        what = f"Caption as: {unknown[0]} stands for nothing."
        raise UserError(what, f"There are {', '.join(_PLACES)}.", "template")
    if TRIGGER in template and not trigger.strip():
        what = f"Caption as: {TRIGGER} stands for the trigger word, and there is none."
        raise UserError(what, "Write a trigger word, or a template without it.", "trigger")
    if must_caption and CAPTION not in template:
        what = f"Caption as: without {CAPTION} nothing of what is seen gets into the caption."
        raise UserError(what, f"Put {CAPTION} into it, or choose the captioner 'template'.", "template")


def joined(old: str, new: str, mode: Mode, are_tags: bool) -> str:
    """Return the caption that comes of an old and a new one. Joined twice it is the same as once."""
    if mode == "replace" or not old:
        return new
    if are_tags:
        return _joined_tags(old, new, mode)
    if new.casefold() in old.casefold():
        return old
    first, second = (old, new) if mode == "after" else (new, old)
    return f"{first.rstrip(' ,;')}{' ' if first.rstrip().endswith(('.', '!', '?')) else ', '}{second}"


def _joined_tags(old: str, new: str, mode: Mode) -> str:
    there = _tags(old)
    known = {tag.casefold() for tag in there}
    added = [tag for tag in _tags(new) if tag.casefold() not in known]
    return ", ".join(there + added if mode == "after" else added + there)


def _tags(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]
