"""What the model is told about an image: the caption as written, made into the caption as trained. Pure."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable

from .section import DataSection

TRIGGER = "{trigger}"
CHUNK_TOKENS = 75


def compose(caption: str, section: DataSection, rng: random.Random | None, class_word: str = "") -> str:
    """Return the caption that is trained on: prefix, trigger, tags, suffix.

    With `rng` None nothing is left to chance: the form used for validation and for caching. The trigger word
    is in every caption that is not dropped whole; it is not repeated where the caption has it already.
    """
    if rng and rng.random() < section.caption_dropout:
        return ""
    text = caption.strip() or class_word.strip()
    if rng and not is_fixed(section):
        text = _varied_tags(text, section, rng)
    trigger = section.trigger.strip()
    prefix, text, suffix = (
        part.replace(TRIGGER, trigger).strip() for part in (section.prefix, text, section.suffix)
    )
    if trigger and not _has_word(f"{prefix} {text} {suffix}", trigger):
        text = f"{trigger}{_joint(section)}{text}" if text else trigger
    if prefix:
        text = f"{prefix} {text}".strip()
    if suffix:
        text = (text + suffix if suffix[0] in ",.;:!?" else f"{text} {suffix}").strip()
    return text


def is_fixed(section: DataSection) -> bool:
    """Tell whether a caption is always the same, or else empty: only such can be encoded beforehand."""
    return not section.shuffle_tags and section.tag_dropout == 0


def chunks_needed(captions: Iterable[str], count_tokens: Callable[[str], int]) -> int:
    """Return the number of 75-token chunks that holds the longest caption, at least 1."""
    return max([1, *(math.ceil(count_tokens(caption) / CHUNK_TOKENS) for caption in captions)])


def _varied_tags(text: str, section: DataSection, rng: random.Random) -> str:
    tags = [tag.strip() for tag in text.split(section.tag_separator) if tag.strip()]
    kept, loose = tags[: section.keep_tags], tags[section.keep_tags :]
    loose = [tag for tag in loose if rng.random() >= section.tag_dropout]
    if section.shuffle_tags:
        rng.shuffle(loose)
    return _joint(section).join(kept + loose)


def _joint(section: DataSection) -> str:
    return section.tag_separator.strip() + " "


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
