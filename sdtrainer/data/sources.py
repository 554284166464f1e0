"""Where the caption of each image of a folder comes from, and what is wrong with the captions found."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Sequence
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
from .walk import Found

FROM_APP, FROM_FILE_NAME, FROM_FOLDER_NAME = "the app", "file names", "folder names"
TEXT_EXTENSIONS = (".txt", ".caption")


@functools.lru_cache(4096)
def kohya_folder(root: Path, folder: str) -> tuple[int, str] | None:
    """Return (repeats, class word) of the nearest folder named as kohya's trainer wants it."""
    names = [root.name, *folder.split("/")]
    return next((parsed for name in reversed(names) if (parsed := repeats_of_folder(name))), None)


class Captions:
    """The captions of one folder, from every place that the mode allows."""

    def __init__(
        self,
        root: Path,
        files: Sequence[Found],
        images: Sequence[Found],
        mode: CaptionSource,
        overlay: Overlay | None,
        known: Known,
    ) -> None:
        self.root, self.mode, self.overlay, self._known = root, mode, overlay, known
        self._problems: list[Problem] = []
        self._texts: dict[str, Found] = {}
        self._metadata: dict[str, tuple[str, str]] = {}
        if mode in ("auto", "sidecar"):
            self._texts = {found.path: found for found in files if found.extension in TEXT_EXTENSIONS}
        if mode in ("auto", "metadata"):
            tables = [found for found in files if found.name.lower() in METADATA_NAMES]
            pictures = {same_path(found.path) for found in images} if tables else set()
            for table in tables:
                self._take_metadata(table, pictures)
        texts_of = ((found.path, self._find_text(found)) for found in images if self._texts)
        self._text_of = {path: text for path, text in texts_of if text}
        # Names are captions only where nothing better is: else a forgotten text file would go unseen.
        has_better = bool(
            self._text_of
            or self._metadata
            or any(kohya_folder(root, folder) for folder in {found.folder for found in images})
        )
        self._auto_names = (
            mode == "auto"
            and not has_better
            and 2 * sum(describes(found.stem) for found in images) >= len(images)
        )

    def edited(self, found: Found) -> tuple[str, str] | None:
        """Return (caption, where it is from) of one image, if it was edited in the app."""
        edited = self.overlay.caption(found.path) if self.overlay and self.mode != "none" else None
        return None if edited is None else (edited, FROM_APP)

    def written(self, found: Found) -> tuple[str, str]:
        """Return (caption, where it is from) of one image, as the user's files have it."""
        if self.mode == "none":
            return "", ""
        if text := self._text_of.get(found.path):
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
        used = {text.path for text in self._text_of.values()}
        for path, text in self._texts.items():
            if path not in used and not _is_note(text):
                self._warn(text, "orphan caption", "No image has this name; the caption is not used.")
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

    def _find_text(self, found: Found) -> Found | None:
        stems = (found.path, found.bare)
        names = [stem + extension for stem in stems for extension in TEXT_EXTENSIONS]
        for name in names:
            if text := self._texts.get(name):
                return text
        return next((text for name in names if (text := self._folded.get(name.casefold()))), None)

    @functools.cached_property
    def _folded(self) -> dict[str, Found]:
        """The texts by their path in small letters; made only where a picture has none in its own."""
        return {path.casefold(): text for path, text in self._texts.items()} | self._texts

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
    instead = folder if sample.class_word else "only the trigger word"
    return f"It has no caption; {instead} is used."


def _is_note(text: Found) -> bool:
    return text.stem.lower().startswith(("readme", "license", "licence", "requirements"))
