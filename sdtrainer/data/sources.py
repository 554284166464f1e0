"""Where the caption of each image of a folder comes from, and what is wrong with the captions found."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .census import Kind, Problem, Sample
from .index import Known
from .overlay import Overlay
from .parquet import BadTable
from .section import CaptionSource
from .texts import (
    MAX_CAPTION_BYTES,
    METADATA_NAMES,
    caption_of_name,
    describes,
    one_line,
    read_caption,
    read_metadata,
    repeats_of_folder,
    same_path,
)
from .walk import Files, Folder, Found

FROM_APP, FROM_FILE_NAME, FROM_FOLDER_NAME = "the app", "file names", "folder names"
TEXT_EXTENSIONS = (".txt", ".caption")
TABLE_EXTENSIONS = {posixpath.splitext(name)[1] for name in METADATA_NAMES}
FOLDERS_AT_ONCE = 8
"""How many folders' texts are held: those that a group of pictures next to each other lies in."""


@functools.lru_cache(4096)
def kohya_folder(root: Path, folder: str) -> tuple[int, str] | None:
    """Return (repeats, class word) of the nearest folder named as kohya's trainer wants it."""
    names = [root.name, *folder.split("/")]
    return next((parsed for name in reversed(names) if (parsed := repeats_of_folder(name))), None)


class Texts:
    """The text files of one folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._places = folder, dict(folder.places(TEXT_EXTENSIONS))

    def of(self, found: Found) -> Found | None:
        """Return the one that is a picture's caption."""
        name = self._name_for(found)
        return self._folder.at(self._places[name], name) if name else None

    def without(self, pictures: Iterable[Found]) -> Iterator[Found]:
        """Yield those that are the caption of none of these, the folder's pictures."""
        is_used = bytearray(len(self._folder))
        for found in pictures:
            if name := self._name_for(found):
                is_used[self._places[name]] = True
        for name, place in self._places.items():
            if not is_used[place] and not _is_note(name):
                yield self._folder.at(place, name)

    def _name_for(self, found: Found) -> str:
        names = [stem + extension for stem in (found.name, found.stem) for extension in TEXT_EXTENSIONS]
        for name in names:
            if name in self._places:
                return name
        return next((text for name in names if (text := self._folded.get(name.casefold()))), "")

    @functools.cached_property
    def _folded(self) -> dict[str, str]:
        """The names by themselves in small letters; made only where a picture has no text in its own."""
        return {name.casefold(): name for name in self._places}


class Captions:
    """The captions of one folder, from every place that the mode allows."""

    def __init__(
        self,
        root: Path,
        files: Files,
        pictures: Callable[[Files | Folder], Iterator[Found]],
        mode: CaptionSource,
        overlay: Overlay | None,
        known: Known,
    ) -> None:
        self.root, self.mode, self.overlay, self._known = root, mode, overlay, known
        self._files, self._pictures = files, pictures
        self._problems: list[Problem] = []
        self._texts_of = functools.lru_cache(FOLDERS_AT_ONCE)(Texts)
        self._folders = {}
        if mode in ("auto", "sidecar"):
            self._folders = {folder.path: folder for folder in files.folders if folder.has(TEXT_EXTENSIONS)}
        self._text_for: Mapping[str, Found] = {}
        self._metadata: dict[str, tuple[str, str]] = {}
        if mode in ("auto", "metadata"):
            tables = [found for found in files.of(TABLE_EXTENSIONS) if found.name.lower() in METADATA_NAMES]
            names = {same_path(found.path) for found in pictures(files)} if tables else set()
            for table in tables:
                self._take_metadata(table, names)
        self._auto_names = mode == "auto" and not self._has_better() and self._names_describe()

    def expect(self, pictures: Sequence[Found]) -> None:
        """Find the texts of these, as they are asked for next."""
        self._text_for = {found.path: text for found in pictures if (text := self._text_of(found))}
        self._known.expect([*self._text_for.values()])

    def edited(self, found: Found) -> tuple[str, str] | None:
        """Return (caption, where it is from) of one image, if it was edited in the app."""
        edited = self.overlay.caption(found.path) if self.overlay and self.mode != "none" else None
        return None if edited is None else (edited, FROM_APP)

    def written(self, found: Found) -> tuple[str, str]:
        """Return (caption, where it is from) of one image that was expected, as the user's files have it."""
        if self.mode == "none":
            return "", ""
        if text := self._text_for.get(found.path):
            return self._read(text), text.extension
        if self._metadata and (entry := self._metadata.get(same_path(found.path))):
            return entry
        if self.mode == "file name" or (self._auto_names and describes(found.stem)):
            return caption_of_name(found.stem), FROM_FILE_NAME
        if self.mode == "folder name":
            folder = posixpath.basename(found.folder) or self.root.name
            parsed = kohya_folder(self.root, found.folder)
            return (parsed[1] if parsed else one_line(folder.replace("_", " "))), FROM_FOLDER_NAME
        return "", ""

    def problems(self, samples: Sequence[Sample]) -> list[Problem]:
        """Return what is wrong with the captions: texts without an image, images without a text."""
        for folder in self._folders.values():
            for text in self._texts_of(folder).without(self._pictures(folder)):
                self._warn(text, "orphan caption", "No image has this name; the caption is not used.")
        self._texts_of.cache_clear()
        return self._problems + self._missing(samples)

    def _missing(self, samples: Sequence[Sample]) -> list[Problem]:
        bare = [sample for sample in samples if not sample.caption]
        if self.mode == "none" or not bare:
            return []
        if len(bare) == len(samples) and all(sample.class_word for sample in bare):
            return []  # a kohya folder that never meant to have captions
        if len(bare) == len(samples):
            sentence = "No image has a caption, so only the trigger word is learned; caption them."
            return [Problem("", "caption missing", sentence, "warning")]
        return [Problem(s.path, "caption missing", _missing_sentence(s), "warning") for s in bare]

    def _has_better(self) -> bool:
        """Tell whether captions are anywhere; file names are none then, or a forgotten text goes unseen."""
        folders = self._files.folders
        return (
            bool(self._metadata)
            or any(self._text_of(found) for folder in folders for found in self._pictures(folder))
            or any(kohya_folder(self.root, f.path) for f in folders if any(self._pictures(f)))
        )

    def _names_describe(self) -> bool:
        told = [describes(found.stem) for found in self._pictures(self._files)]
        return 2 * sum(told) >= len(told)

    def _text_of(self, found: Found) -> Found | None:
        folder = self._folders.get(found.folder)
        return self._texts_of(folder).of(found) if folder else None

    def _read(self, text: Found) -> str:
        if text.num_bytes > MAX_CAPTION_BYTES:
            self._warn(
                text,
                "caption unreadable",
                f"It is larger than {MAX_CAPTION_BYTES // 1024} KB, so it is taken for no caption.",
            )
            return ""
        if (caption := self._known.get(text)) is not None:
            return str(caption)
        try:
            caption = read_caption(self.root / text.path)
            self._known.put(text, caption)
            return caption
        except OSError as error:
            self._warn(text, "caption unreadable", f"It cannot be read: {error.strerror}.")
            return ""

    def _take_metadata(self, found: Found, known: set[str]) -> None:
        try:
            table = read_metadata(self.root, found.path)
        except (OSError, BadTable) as error:
            why = error.why if isinstance(error, BadTable) else error.strerror
            self._warn(found, "caption unreadable", f"It cannot be read: {why}.")
            return
        strangers = [path for path in table.captions if path not in known]
        self._metadata |= {path: (text, found.name) for path, text in table.captions.items() if path in known}
        if table.num_bad_rows:
            self._warn(
                found,
                "caption unreadable",
                f"{table.num_bad_rows} of its rows lack file_name or text and are not used.",
            )
        if strangers:
            self._warn(
                found,
                "orphan caption",
                f"{len(strangers)} of its rows name images that are not there, such as {strangers[0]}.",
            )

    def _warn(self, found: Found, kind: Kind, sentence: str) -> None:
        self._problems.append(Problem(found.path, kind, sentence, "warning"))


def _missing_sentence(sample: Sample) -> str:
    if sample.caption_from:
        return f"Its caption from {sample.caption_from} is empty."
    folder = f"'{sample.class_word}' from the folder's name"
    instead = folder if sample.class_word else "only the trigger word, if you set one,"
    return f"It has no caption; {instead} is used."


def _is_note(name: str) -> bool:
    return name.lower().startswith(("readme", "license", "licence", "requirements"))
