"""What the model is told about an image: the caption as written, made into the caption as trained. Pure."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence

from ..section import UserError
from . import templates
from .census import Sample
from .section import DataSection

TRIGGER = "{trigger}"
CHUNK_TOKENS = 75


def compose(caption: str, section: DataSection, rng: random.Random | None, class_word: str = "") -> str:
    """Return the caption that is trained on: prefix, trigger, tags (in a template), suffix.

    With `rng` None nothing is left to chance: the form used for validation and for caching, in the first
    template. The trigger word is in every caption that is not dropped whole; it is not repeated where the
    caption has it already.
    """
    if rng and rng.random() < section.caption_dropout:
        return ""
    text = caption.strip() or class_word.strip()
    if rng and varies_tags(section):
        text = _varied_tags(text, section, rng)
    lines = _lines(section)
    return _completed(rng.choice(lines) if rng and len(lines) > 1 else lines[0], text, section)


def variants(caption: str, section: DataSection, class_word: str = "") -> tuple[str, ...]:
    """Return the caption in every template, nothing else left to chance; without templates it is one."""
    text = caption.strip() or class_word.strip()
    return tuple(_completed(line, text, section) for line in _lines(section))


def with_trigger(section: DataSection, words: Sequence[str], samples: Iterable[Sample]) -> DataSection:
    """Return the settings with the first of a method's new words as the trigger word, if none is given.

    Captions that name some of several words themselves are left as they are.

    Raises:
        UserError: no caption would have any of the words, or a template asks for a trigger word in vain.
    """
    written = {v for s in samples for v in variants(s.caption, section, s.class_word)} if words else set()
    is_named = any(has_word(caption, word) for caption in written for word in words)
    if words and not section.trigger.strip() and not (is_named and len(words) > 1):
        return section.model_copy(update={"trigger": words[0]})
    if words and not is_named:
        raise UserError(
            f"Trigger word: it is '{section.trigger.strip()}', and no caption has {' or '.join(words)}.",
            f"Leave it empty, or write {words[0]} there or in the captions.",
            "data.trigger",
        )
    if not section.trigger.strip() and any(templates.TRIGGER in line for line in _lines(section)):
        raise UserError(
            f"Caption templates: {templates.TRIGGER} stands for the trigger word, and there is none.",
            "Write a trigger word, or templates without it.",
            "data.trigger",
        )
    return section


def has_word(text: str, word: str) -> bool:
    """Tell whether a text has this word, in capitals or not, and not as part of another."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def is_fixed(section: DataSection) -> bool:
    """Tell whether a caption is always the same, or else empty: only such can be encoded beforehand."""
    return not varies_tags(section) and len(_lines(section)) == 1


def varies_tags(section: DataSection) -> bool:
    return section.shuffle_tags or section.tag_dropout > 0


def chunks_needed(captions: Iterable[str], count_tokens: Callable[[str], int]) -> int:
    """Return the number of 75-token chunks that holds the longest caption, at least 1."""
    return max([1, *(math.ceil(count_tokens(caption) / CHUNK_TOKENS) for caption in captions)])


def _lines(section: DataSection) -> tuple[str, ...]:
    return templates.lines(section.templates) or (templates.CAPTION,)


def _completed(line: str, text: str, section: DataSection) -> str:
    """Fill in a template; add prefix, suffix and, where it is missing, the trigger word."""
    trigger = section.trigger.strip()
    text = templates.fill_in(line, text, trigger)
    prefix, text, suffix = (
        part.replace(TRIGGER, trigger).strip() for part in (section.prefix, text, section.suffix)
    )
    if trigger and not has_word(f"{prefix} {text} {suffix}", trigger):
        text = f"{trigger}{_joint(section)}{text}" if text else trigger
    if prefix:
        text = f"{prefix} {text}".strip()
    if suffix:
        text = (text + suffix if suffix[0] in ",.;:!?" else f"{text} {suffix}").strip()
    return text


def _varied_tags(text: str, section: DataSection, rng: random.Random) -> str:
    tags = [tag.strip() for tag in text.split(section.tag_separator) if tag.strip()]
    kept, loose = tags[: section.keep_tags], tags[section.keep_tags :]
    loose = [tag for tag in loose if rng.random() >= section.tag_dropout]
    if section.shuffle_tags:
        rng.shuffle(loose)
    return _joint(section).join(kept + loose)


def _joint(section: DataSection) -> str:
    return section.tag_separator.strip() + " "
