"""What a scan found: `Sample` (one image), `Problem` (one thing to know) and `Census` (all of them).

Plain data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .buckets import Crop, Point

Kind = Literal[
    "undecodable",
    "truncated",
    "empty file",
    "missing",
    "too large",
    "wrong extension",
    "animated",
    "small",
    "caption missing",
    "caption unreadable",
    "orphan caption",
    "duplicate name",
    "link",
    "mask",
    "folder",
    "left out",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing the user should know. `skipped` files are not trained on; `warning` ones are."""

    file: str
    kind: Kind
    sentence: str
    level: Literal["skipped", "warning"]

    @property
    def told(self) -> str:
        """The sentence, with the file in it."""
        name = self.file.rpartition("/")[2]
        is_named = bool(name) and name in self.sentence
        return self.sentence.replace(name, self.file, 1) if is_named else f"{self.file}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One usable image. `width` and `height` are as a viewer shows it, in pixels.

    `path` is relative to `root`, with forward slashes. `caption` is as written; `class_word` stands in where
    it is empty. `caption_from` says where the caption came from (".txt", "metadata.jsonl", "the app", "" for
    none). `written` is the caption that an edit in the app stands for, and where that came from.

    With `crop` width and height are those of the crop. `focus` is the point, in fractions of the upright
    image, that a window is laid around. `mask` is the file that says which places count: the image itself
    where its alpha channel says so. `background` is the colour behind it, empty for that of the settings.
    """

    path: str
    root: Path
    width: int
    height: int
    caption: str
    caption_from: str
    class_word: str
    repeats: int
    num_bytes: int
    mtime_ns: int
    crop: Crop | None = None
    focus: Point | None = None
    mask: Path | None = None
    background: str = ""
    written: tuple[str, str] | None = None

    @property
    def file(self) -> Path:
        return self.root / self.path


@dataclass(frozen=True)
class Census:
    """A scanned folder. `layout` is one sentence on what was recognised."""

    folder: Path
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    layout: str

    @property
    def skipped(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.level == "skipped")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.level == "warning")


def one_picture(side: int) -> Census:
    """Return a folder that is imagined: one square picture of so many pixels."""
    picture = Sample("picture.png", Path(), side, side, "a picture", ".txt", "", 1, 0, 0)
    return Census(Path(), (picture,), (), "")


def split(census: Census, part: float) -> tuple[Census, Census]:
    """Divide into (training, validation), `part` of the images going to validation but never the last one.

    An image is chosen by the hash of its path, so that adding images moves hardly any other.
    """
    if not part:
        return census, replace(census, samples=(), problems=())
    count = min(len(census.samples) - 1, max(1, round(part * len(census.samples))))
    by_hash = sorted(census.samples, key=lambda s: hashlib.sha256(s.path.encode()).digest())
    chosen = {s.path for s in by_hash[:count]}
    training = tuple(s for s in census.samples if s.path not in chosen)
    validation = tuple(s for s in census.samples if s.path in chosen)
    return replace(census, samples=training), replace(census, samples=validation, problems=())
