"""Which pictures of a set are meant: found by their captions, put in order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..section import Section, knob
from . import patterns
from .caption_edits import same_tag, tags_of
from .captions import CHUNK_TOKENS, has_word
from .census import Sample

Only = Literal[
    "all", "without a caption", "too long", "with problems", "without the trigger word", "edited here"
]
Order = Literal[
    "name", "longest caption", "shortest caption", "newest", "oldest", "largest file", "smallest file"
]
CountTokens = Callable[[Sequence[str]], Sequence[int]]


class SearchSection(Section):
    """Which pictures. With everything left as it is, all of them, by name."""

    search: str = knob("", "Search", "What to look for; empty finds all.", level="basic", max_length=1000)
    search_by: Literal["text", "tag", "pattern", "file name"] = knob(
        "text",
        "Search for",
        "Text anywhere in captions, one whole tag, a regular expression such as '^a photo', or part of a"
        " file's name.",
        level="basic",
    )
    only: Only = knob("all", "Show", "Too long are captions of more than 75 tokens.", level="basic")
    source: str = knob(
        "", "Captions from", "Only captions from here: .txt, metadata.jsonl, the app; empty for any.",
        level="basic", max_length=200,
    )  # fmt: skip
    sort: Order = knob("name", "Order", "In which order they are shown.", level="basic")


@dataclass(frozen=True)
class Known:
    """What a search may have to know besides the captions: the trigger word, the caption as trained, tokens
    counted, the paths of pictures with problems, and those edited.
    """

    trigger: str
    trained_as: Callable[[Sample], str]
    count_tokens: CountTokens
    troubled: Collection[str] = ()
    edited: Collection[str] = ()
    separator: str = ","


def found(samples: Sequence[Sample], section: SearchSection, known: Known) -> list[Sample]:
    """Return the pictures meant, in order; they are given by name.

    Raises:
        UserError: the regular expression is none, or takes too long.
    """
    chosen = [s for s in samples if not section.source or s.caption_from == section.source]
    if section.search.strip():
        fits = _FITS[section.search_by](section, known)
        chosen = [s for s in chosen if fits(s)]
    chosen, key = _ONLY[section.only](chosen, known), _ORDERS[section.sort]
    return sorted(chosen, key=key) if key else chosen


def _text(section: SearchSection, known: Known) -> Callable[[Sample], bool]:
    words = section.search.strip().casefold()
    return lambda sample: words in sample.caption.casefold()


def _name(section: SearchSection, known: Known) -> Callable[[Sample], bool]:
    words = section.search.strip().casefold()
    return lambda sample: words in sample.path.casefold()


def _tag(section: SearchSection, known: Known) -> Callable[[Sample], bool]:
    wanted = same_tag(section.search)
    return lambda sample: any(same_tag(tag) == wanted for tag in tags_of(sample.caption, known.separator))


def _pattern(section: SearchSection, known: Known) -> Callable[[Sample], bool]:
    pattern = patterns.compiled(section.search, True, setting="search")
    return lambda sample: pattern.is_in(sample.caption)


def _too_long(samples: list[Sample], known: Known) -> list[Sample]:
    counts = known.count_tokens([known.trained_as(sample) for sample in samples])
    return [s for s, count in zip(samples, counts, strict=True) if count > CHUNK_TOKENS]


def _without_trigger(samples: list[Sample], known: Known) -> list[Sample]:
    trigger = known.trigger.strip()
    return [s for s in samples if not (trigger and has_word(s.caption, trigger))]


_FITS: Mapping[str, Callable[[SearchSection, Known], Callable[[Sample], bool]]] = {
    "text": _text,
    "tag": _tag,
    "pattern": _pattern,
    "file name": _name,
}
_ONLY: Mapping[str, Callable[[list[Sample], Known], list[Sample]]] = {
    "all": lambda samples, known: samples,
    "without a caption": lambda samples, known: [s for s in samples if not s.caption.strip()],
    "too long": _too_long,
    "with problems": lambda samples, known: [s for s in samples if s.path in known.troubled],
    "without the trigger word": _without_trigger,
    "edited here": lambda samples, known: [s for s in samples if s.path in known.edited],
}
_ORDERS: Mapping[str, Callable[[Sample], Any] | None] = {
    "name": None,
    "longest caption": lambda s: -len(s.caption),
    "shortest caption": lambda s: len(s.caption),
    "newest": lambda s: -s.mtime_ns,
    "oldest": lambda s: s.mtime_ns,
    "largest file": lambda s: -s.num_bytes,
    "smallest file": lambda s: s.num_bytes,
}
assert _ONLY.keys() == set(get_args(Only)) and _ORDERS.keys() == set(get_args(Order))
