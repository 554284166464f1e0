"""What every page knows about the pictures: captions as they are at this moment, their tokens and tags."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...data import caption_edits, captions
from ...data.caption_search import Known, SearchSection, found
from ...data.census import Census, Sample
from ...data.overlay import Overlay, overlay_for
from ...data.section import DataSection
from ...data.sources import FROM_APP
from ...data.walk import path_key
from ...planner import Found
from ...section import UserError
from ..desk import Desk

KEPT = 32


@dataclass(frozen=True)
class Shelved:
    """One moment. `by_path` holds the samples in natural order, with the captions edited in the app."""

    found: Found
    edits: Mapping[str, str]
    overlay: Overlay
    version: int
    by_path: Mapping[str, Sample]
    section: DataSection

    @property
    def census(self) -> Census:
        return self.found.census

    @property
    def stamp(self) -> tuple[Any, ...]:
        return (self.census.folder, id(self.found), self.version, self.section.model_dump_json())

    def trained_as(self, caption: str, class_word: str) -> str:
        return captions.compose(caption, self.section, None, class_word)


class TagCounter:
    """Counts tags, and from then on only those of captions that changed."""

    def __init__(self) -> None:
        self.tags: Counter[str] = Counter()
        self._counted: Mapping[str, Sample] = {}
        self._of: tuple[Any, ...] = ()

    def count(self, shelved: Shelved) -> None:
        of = (shelved.census.folder, shelved.section.tag_separator)
        if of != self._of:
            self.tags, self._counted, self._of = Counter(), {}, of
        if shelved.by_path is self._counted:
            return
        before, now = self._counted, shelved.by_path
        gone = [s.caption for path, s in before.items() if path not in now or now[path].caption != s.caption]
        come = [
            s.caption for path, s in now.items() if path not in before or before[path].caption != s.caption
        ]
        tags = self.tags.copy()  # other pages may be reading the old one
        tags.update(caption_edits.frequencies(come, shelved.section.tag_separator))
        for name, count in caption_edits.frequencies(gone, shelved.section.tag_separator).items():
            tags[name] -= count
            if not tags[name]:
                del tags[name]
        self.tags, self._counted = tags, now


class Shelf:
    """One per app. What is computed for one page serves the next."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._lock = threading.RLock()
        self._moment: Shelved | None = None
        self._values: Any = None
        self._counter = TagCounter()
        self._answers: OrderedDict[Any, Any] = OrderedDict()
        self._tokens: dict[str, int] = {}
        self._tokenizer: threading.Thread | None = None

    def look(self) -> Shelved:
        """Return the set as it is now. Raises UserError if there is none."""
        try:
            found, section = self.desk.pictures()
        except UserError:
            if self._moment and self.desk.project.values.get("data") == self._values:
                return self._moment  # another setting is wrong
            raise
        self._values = self.desk.project.values.get("data")
        return self._shelved(found, section)

    def find(self, shelved: Shelved, section: SearchSection) -> Sequence[Sample]:
        """Return the pictures that a page asks for. Raises UserError."""
        return self._once(("found", shelved.stamp, section), partial(self._found, shelved, section))

    def tags(self, shelved: Shelved) -> Counter[str]:
        """Return in how many captions each tag is."""
        with self._lock:
            self._counter.count(shelved)
            return self._counter.tags

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return how many tokens each caption has; None while the tokenizer is being loaded."""
        if not self._has_tokenizer():
            return None
        from ...families import clip_tokenizer

        new = [text for text in dict.fromkeys(texts) if text not in self._tokens]
        self._tokens.update(zip(new, clip_tokenizer.count_tokens(new), strict=True))
        return [self._tokens[text] for text in texts]

    def apply(self, what: str, values: Mapping[str, Any], joins: bool = False) -> int:
        """Change captions; every page hears of it. Returns how many are new."""
        num_new = self.look().overlay.apply(what, values, joins=joins)
        if num_new:
            self.desk.captions_changed(is_over=not joins)
        return num_new

    def _shelved(self, found: Found, section: DataSection) -> Shelved:
        with self._lock:
            overlay = overlay_for(self.desk.workspace.root, found.census.folder)
            version, now = overlay.version, self._moment
            if now and (now.found is found, now.version, now.section) == (True, version, section):
                return now
            edits = overlay.captions if section.caption_from != "none" else {}
            if now and now.found is found:
                changed = {path for path, _ in edits.items() ^ now.edits.items()} & now.by_path.keys()
                by_path = {**now.by_path, **_edited([now.by_path[path] for path in changed], edits)}
            else:
                by_path = _edited(_all_of(found), edits)
            self._moment = Shelved(found, edits, overlay, version, by_path, section)
            return self._moment

    def _found(self, shelved: Shelved, section: SearchSection) -> list[Sample]:
        known = Known(
            trigger=shelved.section.trigger,
            trained_as=lambda sample: shelved.trained_as(sample.caption, sample.class_word),
            count_tokens=self._counted,
            troubled={problem.file for problem in shelved.census.problems},
            edited=shelved.overlay.captions,
            separator=shelved.section.tag_separator,
        )
        return found(list(shelved.by_path.values()), section, known)

    def _counted(self, texts: Sequence[str]) -> list[int]:
        counts = self.tokens(texts)
        if counts is None:
            raise UserError("Tokens cannot be counted yet.", "Try again in a few seconds.", "only")
        return counts

    def _has_tokenizer(self) -> bool:
        if not self.desk.is_warm:
            return False
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = threading.Thread(target=self._load_tokenizer, daemon=True)
                self._tokenizer.start()
        self._tokenizer.join(0.05)
        return not self._tokenizer.is_alive()

    def _load_tokenizer(self) -> None:
        from ...families import clip_tokenizer

        clip_tokenizer.shared()
        self.desk.tell()

    def _once(self, question: Any, answer: Any) -> Any:
        """Return what was answered before; of many answers the latest are kept."""
        if question in self._answers:
            return self._answers[question]
        found_out = answer()
        with self._lock:
            self._answers[question] = found_out
            while len(self._answers) > KEPT:
                self._answers.popitem(last=False)
        return found_out


def _all_of(found: Found) -> tuple[Sample, ...]:
    """Return the pictures of the folder in natural order, those held out for validation as well."""
    held_out = found.validation
    if held_out is None or held_out.folder != found.census.folder:
        return found.census.samples
    return tuple(sorted((*found.census.samples, *held_out.samples), key=lambda s: path_key(s.path)))


def _edited(samples: Iterable[Sample], edits: Mapping[str, str]) -> dict[str, Sample]:
    """Return the samples by path, with these captions or else those of the files."""
    return {sample.path: _captioned(sample, edits.get(sample.path)) for sample in samples}


def _captioned(sample: Sample, caption: str | None) -> Sample:
    written = sample.written or (sample.caption, sample.caption_from)
    now = written if caption is None else (caption, FROM_APP)
    if now == (sample.caption, sample.caption_from):
        return sample
    return replace(sample, caption=now[0], caption_from=now[1], written=None if caption is None else written)
