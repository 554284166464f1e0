"""Captions from what is known of a picture unseen: its name, its folder, the caption that it has."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.census import Sample
from ..data.sources import kohya_folder
from ..data.texts import CAMERA_WORDS, caption_of_name, one_line
from . import As, Captioner, Captioning, Device, Name, Picture
from .section import Settings


@dataclass(frozen=True)
class Rule(Captioner):
    """`says` gives the words for one picture."""

    name: Name
    title: str
    about: str
    says: Callable[[Sample], str]
    only_fills: bool = False

    def load(self, folder: Path | None, device: Device, precision: As, settings: Settings) -> Captioning:
        return self._caption

    def _caption(self, pictures: Sequence[Picture]) -> list[str]:
        return [self.says(picture.sample) for picture in pictures]


def words_of_name(sample: Sample) -> str:
    """Return the words of the file name; '' where a camera gave it."""
    text = caption_of_name(posixpath.splitext(posixpath.basename(sample.path))[0])
    words = re.findall(r"[^\W\d_]+", text)
    return text if any(word.casefold() not in CAMERA_WORDS for word in words) else ""


def words_of_folder(sample: Sample) -> str:
    """Return the words of the folder's name; of one named as kohya's trainer wants it, the class."""
    folder = posixpath.dirname(sample.path)
    kohya = kohya_folder(sample.root, folder)
    return kohya[1] if kohya else one_line((posixpath.basename(folder) or sample.root.name).replace("_", " "))


FILE_NAME = Rule(
    "file-name", "File names",
    "The words of each file name: red_car-2.jpg becomes 'red car'. At once, and nothing to download.",
    words_of_name,
)  # fmt: skip
FOLDER_NAME = Rule(
    "folder-name", "Folder names",
    "The name of the folder that each picture lies in. At once, and nothing to download.",
    words_of_folder,
)  # fmt: skip
TEMPLATE = Rule(
    "template", "Template",
    "Puts the captions that are there into a sentence of yours, as in: a photo of {trigger}, {caption}.",
    lambda sample: sample.caption,
    only_fills=True,
)  # fmt: skip
