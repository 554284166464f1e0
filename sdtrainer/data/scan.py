"""Read an image folder as it is: any layout, headers only, nothing changed.

A bad file is reported, never fatal.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..section import UserError
from .census import Census, Problem, Sample
from .frames import framed
from .images import EXTENSIONS, UNREAD_EXTENSIONS, BadImage, Header, read_header
from .index import ASKED_AT_ONCE, Index, Known
from .masks import MaskFiles
from .overlay import Overlay
from .section import DataSection
from .sources import FROM_FOLDER_NAME, Captions, kohya_folder
from .texts import MAX_REPEATS, METADATA_NAMES
from .walk import Files, Found, walk

TOLD_EVERY = 100
Told = Callable[[int, int], object]
"""Hears how many pictures are read, of how many; what it raises ends the reading."""
PACKED = ".parquet"


class Packed(UserError):
    """The images are inside Parquet files, and can be imported from there; `source` is what to import."""

    def __init__(self, source: Path) -> None:
        what = f"{source} holds its images inside Parquet files, from which nothing can be trained."
        super().__init__(
            what, "Import it first: under Import and export, or by the verb import.", "data.folder"
        )
        self.source = source


def scan(
    folder: Path,
    section: DataSection,
    overlay: Overlay | None = None,
    index: Index | None = None,
    told: Told = lambda done, num: None,
) -> Census:
    """Return what `folder` holds, in natural order. With an index only new and changed files are opened.

    Captions in auto mode come from the app's edits, text files, metadata tables, then kohya folder names,
    then file names if most are descriptions. Raises UserError if there is no folder or no usable image in it.
    """
    root = _checked(folder)
    with _without_collecting():
        return _read(root, section, overlay, index, told)


def _read(
    root: Path, section: DataSection, overlay: Overlay | None, index: Index | None, told: Told
) -> Census:
    problems: list[Problem] = []
    files = walk(root, problems)
    masks = MaskFiles(root, files, section, overlay)
    left_out = overlay.entries("left_out") if overlay else {}
    with (
        contextlib.closing(Known(index, "header")) as headers,
        contextlib.closing(Known(index, "caption")) as texts,
    ):
        captions = Captions(root, files, masks.pictures, section.caption_from, overlay, texts)
        chosen = (found for found in masks.pictures(files) if found.path not in left_out)
        ahead = _ahead(chosen, headers.expect, captions.expect)
        bare = (
            sample
            for found in _counted(ahead, masks.num_pictures(files), told)
            if (sample := _sample(root, found, captions, headers, problems))
        )
        faults: list[Problem] = []
        samples = tuple(framed(masks.given(bare, faults), overlay))
        headers.forget_others(files)
        texts.forget_others(files)
    problems += [_unread(found) for found in files.of(UNREAD_EXTENSIONS)]
    if left_out:
        problems += [_left_out(found) for found in masks.pictures(files) if found.path in left_out]
    about_captions = captions.problems(samples)
    for folder in files.folders:
        names = [found.name for found in masks.pictures(folder) if found.path not in left_out]
        problems += _name_problems(folder.path, names)
    problems += about_captions
    if not samples:
        raise _packed(root, files, problems) or _nothing_usable(root, problems)
    return Census(root, samples, (*problems, *faults), _layout(samples))


def _ahead(pictures: Iterator[Found], *expect: Callable[[Sequence[Found]], None]) -> Iterator[Found]:
    """Yield the pictures, each after those that look at them next were told to expect it."""
    while part := list(itertools.islice(pictures, ASKED_AT_ONCE)):
        for each in expect:
            each(part)
        yield from part


def _counted(pictures: Iterable[Found], total: int, told: Told) -> Iterator[Found]:
    for done, found in enumerate(pictures):
        if done % TOLD_EVERY == 0:
            told(done, total)
        yield found


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Hold off the garbage collector, which would look through all samples again each time some came."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _checked(folder: Path) -> Path:
    path = "data.folder"
    if not str(folder).strip() or folder == Path():
        raise UserError("No image folder is chosen.", "Choose the folder that holds your images.", path)
    folder = folder.expanduser()
    if not folder.exists():
        what = f"The folder {folder} does not exist."
        raise UserError(what, "Check the path, or choose another folder.", path)
    if folder.suffix.lower() == PACKED:
        raise Packed(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is a file.", "Choose the folder that holds your images.", path)
    return folder.resolve()


def _packed(root: Path, files: Files, problems: Iterable[Problem]) -> Packed | None:
    """Return what to say of a folder that holds its images in Parquet files, or in links to some."""
    there = [*(found.path for found in files), *(problem.file for problem in problems)]
    shards = [path for path in there if path.lower().endswith(PACKED)]
    is_table = [path.rpartition("/")[2].lower() in METADATA_NAMES for path in shards]
    return Packed(root) if shards and not all(is_table) else None


def _nothing_usable(root: Path, problems: Sequence[Problem]) -> UserError:
    skipped = [p for p in problems if p.level == "skipped"]
    if skipped:
        reasons = " ".join(p.told for p in skipped[:3])
        what = f"None of the images in {root} can be used. {reasons}"
    else:
        what = f"There are no images in {root}."
    return UserError(what, "Put PNG, JPEG or WebP images into it, or choose another folder.", "data.folder")


def header_of(root: Path, found: Found, known: Known) -> Header:
    """Return the header of a file, remembered if it is sound: a bad file is looked at anew.

    Raises: BadImage.
    """
    if (values := known.get(found)) is not None:
        return Header(*values)
    header = read_header(root / found.path)
    known.put(found, header)
    return header


def _sample(
    root: Path, found: Found, captions: Captions, headers: Known, problems: list[Problem]
) -> Sample | None:
    """Return the image as a sample, or None after saying why not."""
    repeats, class_word = kohya_folder(root, found.folder) or (1, "")
    if repeats == 0:
        problems.append(Problem(found.path, "folder", "Its folder's name asks for 0 repeats.", "skipped"))
        return None
    if found.num_bytes == 0:
        problems.append(Problem(found.path, "empty file", "The file is empty; copy it anew.", "skipped"))
        return None
    try:
        header = header_of(root, found, headers)
    except BadImage as error:
        problems.append(Problem(found.path, error.kind, str(error), "skipped"))
        return None
    real = "JPEG" if header.format == "MPO" else header.format
    if real != EXTENSIONS[found.extension]:
        sentence = f"It is named {found.extension} but is a {real} file; it is used as such."
        problems.append(Problem(found.path, "wrong extension", sentence, "warning"))
    if header.is_animated:
        sentence = "It has several frames; only the first is used."
        problems.append(Problem(found.path, "animated", sentence, "warning"))
    written = captions.written(found)
    edited = captions.edited(found)
    caption, caption_from = edited or written
    fallback = class_word if captions.mode == "auto" else ""
    return Sample(
        path=found.path, root=root, width=header.width, height=header.height, caption=caption,
        caption_from=caption_from, class_word=fallback, repeats=repeats, num_bytes=found.num_bytes,
        mtime_ns=found.mtime_ns, written=written if edited else None,
    )  # fmt: skip


def _left_out(found: Found) -> Problem:
    return Problem(found.path, "left out", "You left it out; the file itself stays.", "skipped")


def _unread(found: Found) -> Problem:
    sentence = f"{found.extension[1:].upper()} images cannot be read; save it as PNG or JPEG."
    return Problem(found.path, "undecodable", sentence, "skipped")


def _name_problems(folder: str, names: Sequence[str]) -> Iterator[Problem]:
    """Yield what is wrong with the names of the pictures of one folder."""
    stems = [name.rpartition(".")[0] for name in names]
    by_stem = defaultdict(list)
    for stem, name in zip(stems, names, strict=True) if len(set(stems)) < len(stems) else ():
        by_stem[stem].append(name)
    for group in by_stem.values():
        if len(group) > 1:
            sentence = f"{' and '.join(group)} share a name, and so one caption file; all are used."
            yield Problem(posixpath.join(folder, group[0]), "duplicate name", sentence, "warning")
    number = posixpath.basename(folder).partition("_")[0]
    if "_" in folder and names and number.isdecimal() and int(number) > MAX_REPEATS:
        sentence = f"{number} is taken as part of the folder's name: repeats go up to {MAX_REPEATS}."
        yield Problem(folder, "folder", sentence, "warning")


def _layout(samples: Sequence[Sample]) -> str:
    folders = {s.path.rpartition("/")[0] for s in samples}
    kohya = {folder for folder in folders if kohya_folder(samples[0].root, folder)}
    where = _count(len(folders), "folder")
    if kohya:
        where = _count(len(kohya), "kohya folder")
        if others := len(folders - kohya):
            where += f" and {others} more"
    num_masked = sum(sample.mask is not None for sample in samples)
    masked = f", {_count(num_masked, 'mask')}" if num_masked else ""
    return f"{_count(len(samples), 'image')} in {where}, {_sources(samples)}{masked}"


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
