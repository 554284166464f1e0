"""Checks of captions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from ..data.captions import CHUNK_TOKENS, has_word
from ..families.clip_tokenizer import count_tokens, window_starts
from ..methods import method_of
from .case import Case, Check, Finding, Fix, caption

NEAR_EMPTY = 3
"""Letters and digits of the shortest caption that says anything."""
SHOWN = 36
"""Letters of a long caption that a sentence shows."""
MIXED = 0.2
"""From this part on, captions of the other kind are no exception."""
_TAG_WORDS = 3.0
_BROKEN = re.compile("\ufffd|[\u00c2\u00c3\u00e2][\u0080-\u00bf\u0152-\u0178\u2013-\u2122]|[\u0080-\u009f]")
"""Replacement characters, UTF-8 that was read as Windows-1252, and control characters."""


def missing(case: Case) -> Iterator[Finding]:
    if case.config.data.caption_from == "none":
        return
    bare = tuple(s.path for s in case.census.samples if not s.caption)
    if bare and len(bare) == len(case.census.samples):
        if not all(s.class_word for s in case.census.samples):
            yield Finding((), "No picture has a caption, so only the trigger word is learned.")
        return
    for path in bare:
        instead = case.trained_as[path]
        yield Finding(
            (path,),
            f"It is trained with '{instead}' alone." if instead else "It is trained without any words.",
        )


def near_empty(case: Case) -> Iterator[Finding]:
    for sample in case.census.samples:
        if sample.caption and len(re.findall(r"\w", sample.caption)) < NEAR_EMPTY:
            yield Finding((sample.path,), f"Its caption is '{sample.caption}'.")


def too_long(case: Case) -> Iterator[Finding]:
    """Captions beyond one window, with the words around its end. A token has a letter at least, so that most
    captions need not be counted.
    """
    paths = [path for path, text in case.trained_as.items() if len(text.encode()) > CHUNK_TOKENS]
    for path, tokens in zip(paths, count_tokens([case.trained_as[p] for p in paths]), strict=True):
        if tokens <= CHUNK_TOKENS:
            continue
        text = case.trained_as[path]
        cut = window_starts(text, CHUNK_TOKENS)[0]
        first, rest = _end(text[:cut]), _start(text[cut:])
        sentence = f"It has {tokens} tokens; the first {CHUNK_TOKENS} end at '{first}', before '{rest}'."
        yield Finding((path,), sentence, _shortened(case, path, text[:cut]))


def _end(text: str) -> str:
    """Return the last whole words."""
    text = text.strip()
    return text if len(text) <= SHOWN else f"… {text[-SHOWN:].partition(' ')[2]}"


def _start(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SHOWN else f"{text[:SHOWN].rpartition(' ')[0]} …"


def _shortened(case: Case, path: str, kept: str) -> tuple[Fix, ...]:
    """Cut the caption as written where its trained form is cut, behind a whole word or tag."""
    written = case.samples[path].caption
    start = case.trained_as[path].find(written)
    short = kept[start:] if written and start >= 0 else ""
    if (
        written
        and not short.endswith((" ", ","))
        and len(short) < len(written)
        and written[len(short)] not in " ,."
    ):
        short = short[: max(short.rfind(" "), short.rfind(","), 0)]
    short = short.strip(" ,;")
    return (caption("Use the short one", path, short),) if short else ()


def without_trigger(case: Case) -> Iterator[Finding]:
    data = case.config.data
    trigger = data.trigger.strip()
    words = [trigger] if trigger else list(method_of(case.config.method.kind).words(case.config.method))
    without = [s for s in case.census.samples if s.caption and not any(has_word(s.caption, w) for w in words)]
    if words and without:
        joint = data.tag_separator.strip() + " "
        values = {sample.path: f"{words[0]}{joint}{sample.caption}" for sample in without}
        written = sum(bool(sample.caption) for sample in case.census.samples)
        count = f"{len(without):,} of {written:,} captions do not have '{words[0]}'"
        sentence = f"{count}; training puts it in front of them."
        yield Finding(tuple(values), sentence, (Fix("Write it into them", "captions", values),))


def identical(case: Case) -> Iterator[Finding]:
    captions = [s.caption for s in case.census.samples]
    if len(captions) > 2 and captions[0] and len(set(captions)) == 1:
        yield Finding((), f"All {len(captions):,} captions are '{captions[0][:80]}'.")
        return
    by_text = defaultdict(list)
    for sample in case.census.samples:
        by_text[sample.caption].append(sample.path)
    for text, paths in by_text.items():
        if len(text) > 60 and len(paths) > 2:
            yield Finding(tuple(paths), f"{len(paths)} captions are '{text[:60]}…'.")


def broken(case: Case) -> Iterator[Finding]:
    """Letters spoilt by a wrong encoding, put right where that can be told."""
    for sample in case.census.samples:
        if found := _BROKEN.search(sample.caption):
            place = max(0, found.start() - 20)
            shown = sample.caption[place : found.end() + 20]
            before, after = "… " * (place > 0), " …" * (found.end() + 20 < len(sample.caption))
            mended = _mended(sample.caption)
            fixes = (caption("Put right", sample.path, mended),) if mended else ()
            sentence = f"Its caption has broken letters: '{before}{shown}{after}'."
            yield Finding(
                (sample.path,), sentence + (f" Meant is '{mended[place:][:60]}'." if mended else ""), fixes
            )


def _mended(text: str) -> str:
    try:
        mended = text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return ""
    return "" if _BROKEN.search(mended) else mended


def mixed(case: Case) -> Iterator[Finding]:
    """Some captions lists of tags, others sentences."""
    kinds = {s.path: kind for s in case.census.samples if (kind := style(s.caption))}
    counts = Counter(kinds.values())
    if len(counts) == 2 and min(counts.values()) >= MIXED * len(kinds):
        fewer = min(counts, key=lambda kind: counts[kind])
        sentence = f"{counts['tags']} captions are lists of tags, and {counts['sentence']} are sentences."
        yield Finding(tuple(path for path, kind in kinds.items() if kind == fewer), sentence)


def style(text: str) -> str:
    """Return "tags", "sentence", or "" where it cannot be told."""
    parts = [part.split() for part in text.split(",") if part.strip()]
    if len(parts) >= 3 and sum(map(len, parts)) <= _TAG_WORDS * len(parts):
        return "tags"
    return "sentence" if any(len(part) >= 5 for part in parts) else ""


CHECKS = (
    Check(
        "missing",
        "No caption",
        "warn",
        "Write what is seen, or let a captioner do it: what no caption names is taken for the subject.",
        missing,
    ),
    Check(
        "near-empty", "Captions of a letter or two", "warn", "Write what is seen in the picture.", near_empty
    ),
    Check(
        "too-long",
        "Long captions",
        "note",
        "The text encoder reads 75 tokens at once. Training here reads the rest in further windows, which"
        " takes memory; other programs may cut it off.",
        too_long,
    ),
    Check(
        "trigger",
        "Without the trigger word",
        "note",
        "Nothing is wrong, for training adds it. Write it in to choose its place, or for other programs.",
        without_trigger,
    ),
    Check(
        "identical",
        "The same caption",
        "warn",
        "What all captions say becomes part of the trigger word. Say in each what is different.",
        identical,
    ),
    Check(
        "broken", "Broken letters", "warn", "The text was saved in one encoding and read in another.", broken
    ),
    Check(
        "mixed",
        "Tags and sentences mixed",
        "note",
        "Both work; one kind throughout is easier to prompt for.",
        mixed,
    ),
)
