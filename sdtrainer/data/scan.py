"""Read an image folder as it is: any layout, headers only, nothing changed.

A bad file is reported, never fatal.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..section import UserError
from .census import Census, Problem, Sample
from .images import EXTENSIONS, UNREAD_EXTENSIONS, BadImage, read_header
from .overlay import Overlay
from .section import CaptionSource, DataSection
from .texts import (
    MAX_CAPTION_BYTES,
    MAX_REPEATS,
    METADATA_NAMES,
    caption_of_name,
    describes,
    one_line,
    read_caption,
    read_metadata,
    repeats_of_folder,
    same_path,
)
from .walk import Found, walk

FROM_APP, FROM_FILE_NAME, FROM_FOLDER_NAME = "the app", "file names", "folder names"
TEXT_EXTENSIONS = (".txt", ".caption")


def scan(folder: Path, section: DataSection, overlay: Overlay | None = None) -> Census:
    """Return what `folder` holds, in natural order.

    Captions in auto mode come from the app's edits, text files, metadata tables, then kohya folder names,
    then file names if most are descriptions. Raises UserError if there is no folder or no usable image in it.
    """
    root = _checked(folder)
    problems: list[Problem] = []
    files = walk(root, problems)
    images = [found for found in files if found.extension in EXTENSIONS]
    captions = _Captions(root, files, images, section.caption_from, overlay)
    samples = [sample for found in images if (sample := _sample(root, found, captions, problems))]
    problems += [_unread(found) for found in files if found.extension in UNREAD_EXTENSIONS]
    problems += _name_problems(images)
    problems += captions.problems(samples)
    if not samples:
        raise _nothing_usable(root, problems)
    return Census(root, tuple(samples), tuple(problems), _layout(samples))


def _checked(folder: Path) -> Path:
    path = "data.folder"
    if not str(folder).strip() or folder == Path():
        raise UserError("No image folder is chosen.", "Choose the folder that holds your images.", path)
    if not folder.exists():
        raise UserError(
            f"The folder {folder} does not exist.", "Check the path, or choose another folder.", path
        )
    if not folder.is_dir():
        raise UserError(f"{folder} is a file.", "Choose the folder that holds your images.", path)
    return folder.resolve()


def _nothing_usable(root: Path, problems: Sequence[Problem]) -> UserError:
    skipped = [p for p in problems if p.level == "skipped"]
    if skipped:
        reasons = " ".join(f"{p.file}: {p.sentence}" for p in skipped[:3])
        what = f"None of the images in {root} can be used. {reasons}"
    else:
        what = f"There are no images in {root}."
    return UserError(what, "Put PNG, JPEG or WebP images into it, or choose another folder.", "data.folder")


def _sample(root: Path, found: Found, captions: _Captions, problems: list[Problem]) -> Sample | None:
    """Return the image as a sample, or None after saying why not."""
    repeats, class_word = _kohya(root, found.folder) or (1, "")
    if repeats == 0:
        problems.append(Problem(found.path, "folder", "Its folder's name asks for 0 repeats.", "skipped"))
        return None
    if found.num_bytes == 0:
        problems.append(Problem(found.path, "empty file", "The file is empty; copy it anew.", "skipped"))
        return None
    try:
        header = read_header(root / found.path)
    except BadImage as error:
        problems.append(Problem(found.path, error.kind, str(error), "skipped"))
        return None
    real = "JPEG" if header.format == "MPO" else header.format
    if real != EXTENSIONS[found.extension]:
        sentence = f"It is named {found.extension} but is a {real} file; it is used as such."
        problems.append(Problem(found.path, "wrong extension", sentence, "warning"))
    if header.is_animated:
        problems.append(
            Problem(found.path, "animated", "It has several frames; only the first is used.", "warning")
        )
    caption, caption_from = captions.of(found)
    fallback = class_word if captions.mode == "auto" else ""
    return Sample(
        path=found.path, root=root, width=header.width, height=header.height, caption=caption,
        caption_from=caption_from, class_word=fallback, repeats=repeats, num_bytes=found.num_bytes,
        mtime_ns=found.mtime_ns,
    )  # fmt: skip


def _kohya(root: Path, folder: str) -> tuple[int, str] | None:
    """Return (repeats, class word) of the nearest folder named as kohya's trainer wants it."""
    names = [root.name, *folder.split("/")]
    return next((parsed for name in reversed(names) if (parsed := repeats_of_folder(name))), None)


def _unread(found: Found) -> Problem:
    kind = found.extension[1:].upper()
    return Problem(
        found.path, "undecodable", f"{kind} images cannot be read; save it as PNG or JPEG.", "skipped"
    )


def _name_problems(images: Sequence[Found]) -> Iterator[Problem]:
    by_stem = defaultdict(list)
    for found in images:
        by_stem[found.folder, found.stem].append(found)
    for group in by_stem.values():
        if len(group) > 1:
            names = " and ".join(found.name for found in group)
            sentence = f"{names} share a name, and so one caption file; all are used."
            yield Problem(group[0].path, "duplicate name", sentence, "warning")
    for folder in dict.fromkeys(found.folder for found in images):
        number = posixpath.basename(folder).partition("_")[0]
        if "_" in folder and number.isdecimal() and int(number) > MAX_REPEATS:
            sentence = f"{number} is taken as part of the folder's name: repeats go up to {MAX_REPEATS}."
            yield Problem(folder, "folder", sentence, "warning")


class _Captions:
    """The captions of one folder, from every place that the mode allows."""

    def __init__(
        self,
        root: Path,
        files: Sequence[Found],
        images: Sequence[Found],
        mode: CaptionSource,
        overlay: Overlay | None,
    ) -> None:
        self.root, self.mode, self.overlay = root, mode, overlay
        self._problems: list[Problem] = []
        self._texts: dict[str, Found] = {}
        self._metadata: dict[str, tuple[str, str]] = {}
        if mode in ("auto", "sidecar"):
            texts = [found for found in files if found.extension in TEXT_EXTENSIONS]
            self._texts = {found.path.casefold(): found for found in texts} | {
                found.path: found for found in texts
            }
        if mode in ("auto", "metadata"):
            known = {same_path(found.path) for found in images}
            for found in files:
                if found.name.lower() in METADATA_NAMES:
                    self._take_metadata(found, known)
        self._used = {text.path for found in images if (text := self._text_of(found))}
        # Names are captions only where nothing better is: else a forgotten text file would go unseen.
        has_better = bool(self._used or self._metadata or any(_kohya(root, found.folder) for found in images))
        num_described = sum(describes(found.stem) for found in images)
        self._auto_names = mode == "auto" and not has_better and 2 * num_described >= len(images)

    def of(self, found: Found) -> tuple[str, str]:
        """Return (caption, where it is from) of one image."""
        if self.mode == "none":
            return "", ""
        edited = self.overlay.caption(found.path) if self.overlay else None
        if edited is not None:
            return one_line(edited), FROM_APP
        if text := self._text_of(found):
            return self._read(text), text.extension
        if entry := self._metadata.get(same_path(found.path)):
            return entry
        if self.mode == "file name" or (self._auto_names and describes(found.stem)):
            return caption_of_name(found.stem), FROM_FILE_NAME
        if self.mode == "folder name":
            folder = posixpath.basename(found.folder) or self.root.name
            parsed = _kohya(self.root, found.folder)
            return (parsed[1] if parsed else one_line(folder.replace("_", " "))), FROM_FOLDER_NAME
        return "", ""

    def problems(self, samples: Sequence[Sample]) -> list[Problem]:
        """Return what is wrong with the captions: texts without an image, images without a text."""
        orphans = [
            text
            for text in dict.fromkeys(self._texts.values())
            if text.path not in self._used and not _is_note(text)
        ]
        self._problems += [
            Problem(
                text.path, "orphan caption", "No image has this name; the caption is not used.", "warning"
            )
            for text in orphans
        ]
        return self._problems + self._missing(samples)

    def _missing(self, samples: Sequence[Sample]) -> list[Problem]:
        bare = [sample for sample in samples if not sample.caption]
        if self.mode == "none" or not bare:
            return []
        if len(bare) == len(samples) and all(sample.class_word for sample in bare):
            return []  # a kohya folder that never meant to have captions
        if len(bare) == len(samples):
            sentence = (
                "No image has a caption: only the trigger word is learned. Caption them for better control."
            )
            return [Problem("", "caption missing", sentence, "warning")]
        return [Problem(s.path, "caption missing", _missing_sentence(s), "warning") for s in bare]

    def _text_of(self, found: Found) -> Found | None:
        stem = found.path[: -len(found.extension)]
        names = [base + extension for base in (found.path, stem) for extension in TEXT_EXTENSIONS]
        spellings = [*names, *(name.casefold() for name in names)]
        return next((text for name in spellings if (text := self._texts.get(name))), None)

    def _read(self, text: Found) -> str:
        if text.num_bytes > MAX_CAPTION_BYTES:
            sentence = f"It is larger than {MAX_CAPTION_BYTES // 1024} KB, so it is taken for no caption."
            self._problems.append(Problem(text.path, "caption unreadable", sentence, "warning"))
            return ""
        try:
            return read_caption(self.root / text.path)
        except OSError as error:
            sentence = f"It cannot be read: {error.strerror}."
            self._problems.append(Problem(text.path, "caption unreadable", sentence, "warning"))
            return ""

    def _take_metadata(self, found: Found, known: set[str]) -> None:
        try:
            table = read_metadata(self.root, found.path)
        except OSError as error:
            sentence = f"It cannot be read: {error.strerror}."
            self._problems.append(Problem(found.path, "caption unreadable", sentence, "warning"))
            return
        strangers = [path for path in table.captions if path not in known]
        self._metadata |= {path: (text, found.name) for path, text in table.captions.items() if path in known}
        if table.num_bad_rows:
            sentence = f"{table.num_bad_rows} of its rows lack file_name or text and are not used."
            self._problems.append(Problem(found.path, "caption unreadable", sentence, "warning"))
        if strangers:
            sentence = f"{len(strangers)} of its rows name images that are not there, such as {strangers[0]}."
            self._problems.append(Problem(found.path, "orphan caption", sentence, "warning"))


def _missing_sentence(sample: Sample) -> str:
    if sample.caption_from:
        return f"Its caption from {sample.caption_from} is empty."
    instead = (
        f"'{sample.class_word}' from the folder's name" if sample.class_word else "only the trigger word"
    )
    return f"It has no caption; {instead} is used."


def _is_note(text: Found) -> bool:
    return text.stem.lower().startswith(("readme", "license", "licence", "requirements"))


def _layout(samples: Sequence[Sample]) -> str:
    folders = {s.path.rpartition("/")[0] for s in samples}
    kohya = {folder for folder in folders if _kohya(samples[0].root, folder)}
    where = _count(len(folders), "folder")
    if kohya:
        where = _count(len(kohya), "kohya folder")
        if others := len(folders - kohya):
            where += f" and {others} more"
    return f"{_count(len(samples), 'image')} in {where}, {_sources(samples)}"


def _sources(samples: Iterable[Sample]) -> str:
    counts = Counter(s.caption_from or (FROM_FOLDER_NAME if s.class_word else "") for s in samples)
    num_bare = counts.pop("", 0)
    if not counts:
        return "no captions"
    named = {f"{source} files" if source.startswith(".") else source: n for source, n in counts.most_common()}
    single = len(named) == 1 and not num_bare
    text = "captions from " + " and ".join(name if single else f"{name} ({n})" for name, n in named.items())
    return f"{text}, {num_bare} without" if num_bare else text


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
