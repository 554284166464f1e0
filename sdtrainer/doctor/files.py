"""Checks of files: what reading the folder found, and what headers say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ..data.census import Kind
from ..data.images import Header
from ..data.items import item_problems
from .case import Case, Check, Find, Finding, Fix, Level, leave_out

EXTREME_RATIO = 3.0
MUCH_LOST = 0.25
"""The part of a picture that is cropped away to fit its bucket."""
MODES = {
    "CMYK": "made for printing (CMYK); its colours are converted, and may shift",
    "L": "grey",
    "LA": "grey",
    "1": "black and white",
    "P": "stored with 256 colours at most; fine shades may be missing",
    "PA": "stored with 256 colours at most; fine shades may be missing",
    "I": "16-bit grey; it is brought to 8 bits",
    "F": "stored as decimal numbers; it is brought to 8 bits",
    "YCbCr": "stored as brightness and two colours; it is converted",
    "LAB": "stored in Lab colours; they are converted",
}
_FROM_READING: tuple[tuple[Kind, str, Level, str], ...] = (
    (
        "undecodable",
        "Cannot be read",
        "warn",
        "These are not trained on. Save them as PNG or JPEG, or leave them out.",
    ),
    (
        "truncated",
        "A part is missing",
        "warn",
        "Copying broke off. These are not trained on; copy them anew.",
    ),
    ("empty file", "Empty files", "warn", "These are not trained on; copy them anew, or leave them out."),
    ("missing", "Gone meanwhile", "warn", "These went away while the folder was read."),
    (
        "too large",
        "Too many pixels",
        "warn",
        "Such files can fill the memory, so they are refused. Save a smaller copy.",
    ),
    ("link", "Links", "warn", "Only files inside the folder are read."),
    ("folder", "Folders", "note", "What the names of the folders mean."),
    ("mask", "Masks that do not fit", "warn", "These pictures are trained on without their mask."),
    (
        "wrong extension",
        "Wrong ending of the name",
        "note",
        "They are read as what they are; other programs may stumble.",
    ),
    ("animated", "Animations", "note", "Only the first frame is trained on."),
    (
        "duplicate name",
        "One name, several pictures",
        "warn",
        "They share one caption file; rename all but one.",
    ),
    (
        "orphan caption",
        "Captions without a picture",
        "note",
        "Rename the text or the picture so that both have one name.",
    ),
    (
        "caption unreadable",
        "Captions that cannot be read",
        "warn",
        "Write these captions anew, here or in the file.",
    ),
)


_NAMES: Mapping[Kind, str] = {"missing": "missing-file"}


def from_reading(kind: Kind) -> Find:
    def find(case: Case) -> Iterator[Finding]:
        for problem in case.problems:
            if problem.kind == kind:
                is_picture = problem.level == "skipped" and kind not in ("link", "folder")
                fixes = (leave_out(problem.file),) if is_picture else ()
                yield Finding((problem.file,) if problem.file else (), problem.sentence, fixes)

    return find


def transparent(case: Case) -> Iterator[Finding]:
    """Pictures through which the background shows, each with a choice of it."""
    shows = _transparent_by_pixels if case.looks else _transparent_by_header
    for path, header in case.headers.items():
        sample = case.samples.get(path)
        if sample is None or sample.background or not (sentence := shows(case, path, header)):
            continue
        colours = {"White": "white", "Black": "black"}
        if look := case.looks.get(path):
            colours["Its average"] = look.average
        fixes = tuple(Fix(name, "backgrounds", {path: colour}) for name, colour in colours.items())
        yield Finding((path,), sentence, fixes)


def _transparent_by_pixels(case: Case, path: str, header: Header) -> str:
    look = case.looks.get(path)
    if look is None or not look.transparent:
        return ""
    return f"{look.transparent:.0%} of it is transparent, and shows {case.config.data.background}."


def _transparent_by_header(case: Case, path: str, header: Header) -> str:
    return f"It can be transparent, and then shows {case.config.data.background}." if header.has_alpha else ""


def turned(case: Case) -> Iterator[Finding]:
    paths = tuple(path for path, header in case.headers.items() if header.is_turned)
    if paths:
        yield Finding(
            paths, f"{_pictures(len(paths))} stored on the side, and put upright by a note in the file."
        )


def modes(case: Case) -> Iterator[Finding]:
    for path, header in case.headers.items():
        mode = "I" if header.mode.startswith("I;16") else header.mode
        if mode in MODES:
            yield Finding((path,), f"It is {MODES[mode]}.")


def profiles(case: Case) -> Iterator[Finding]:
    for path, header in case.headers.items():
        if header.profile and header.mode != "CMYK":
            yield Finding((path,), f"Its colours are meant for '{header.profile}', and are read as sRGB.")


def small(case: Case) -> Iterator[Finding]:
    for problem in item_problems(case.items):
        yield Finding((problem.file,), problem.sentence, (leave_out(problem.file),))


def extreme(case: Case) -> Iterator[Finding]:
    """Pictures far from a square, and those of which much is cropped away."""
    for path, item in {item.sample.path: item for item in case.items}.items():
        width, height = item.sample.width, item.sample.height
        times = max(width, height) / min(width, height)
        lost = item.fit.part_lost
        if times <= EXTREME_RATIO and lost <= MUCH_LOST:
            continue
        sides = ("wide", "high") if width > height else ("high", "wide")
        cut = f", and {lost:.0%} of it is cropped away" if lost > 0.02 else ""
        shape = f"It is {times:.1f} times as {sides[0]} as {sides[1]}" if times > 1.05 else "It is square"
        yield Finding((path,), f"{shape}{cut}.", (leave_out(path),))


def buckets(case: Case) -> Iterator[Finding]:
    """Shapes with fewer pictures than a batch."""
    batch, by_bucket = case.config.train.batch_size, _by_bucket(case)
    for (width, height), counts in by_bucket.items():
        shown = sum(counts.values())
        if shown < batch and len(by_bucket) > 1:
            shape = f"{width // math.gcd(width, height)}:{height // math.gcd(width, height)}"
            times = "once" if shown == 1 else f"{shown} times"
            sentence = f"The shape {width} x {height} px ({shape}) is shown {times} per epoch"
            yield Finding(tuple(counts), f"{sentence}, which does not fill a batch of {batch}.")


def _by_bucket(case: Case) -> Mapping[tuple[int, int], dict[str, int]]:
    found: dict[tuple[int, int], dict[str, int]] = {}
    for item in case.items:
        counts = found.setdefault(item.bucket, {})
        counts[item.sample.path] = counts.get(item.sample.path, 0) + item.repeats
    return found


def _pictures(count: int) -> str:
    return "1 picture is" if count == 1 else f"{count:,} pictures are"


CHECKS = (
    *(
        Check(_NAMES.get(kind, kind.replace(" ", "-")), title, level, about, from_reading(kind))
        for kind, title, level, about in _FROM_READING
    ),
    Check(
        "transparent",
        "Transparent",
        "warn",
        "The model learns whatever shows through. Choose what that is.",
        transparent,
    ),
    Check(
        "small",
        "Too small",
        "warn",
        "Enlarged they look soft, and the model learns it. Find larger ones, or train at less resolution.",
        small,
    ),
    Check(
        "extreme",
        "Extreme shapes",
        "warn",
        "Much of them is lost or squeezed into a thin strip. Crop them to what matters, or leave them out.",
        extreme,
    ),
    Check(
        "buckets",
        "Rare shapes",
        "note",
        "A batch holds pictures of one shape. Crop these to a shape of others, or use smaller batches.",
        buckets,
    ),
    Check(
        "profile",
        "Other colour profiles",
        "warn",
        "Their colours come out a little duller or brighter. Save them as sRGB to be exact.",
        profiles,
    ),
    Check(
        "mode",
        "Unusual colours",
        "note",
        "All become RGB; nothing needs to be done where that is meant.",
        modes,
    ),
    Check(
        "turned",
        "Turned by the camera",
        "note",
        "The app turns them as a viewer does; nothing to do.",
        turned,
    ),
)
