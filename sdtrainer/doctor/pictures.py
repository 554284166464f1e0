"""Checks of what is in the pictures: copies, blur, light, frames."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.census import Sample
from .case import Case, Check, Finding, Fix, leave_out
from .look import SIDE, Look
from .twins import groups

BLURRED = 15.0
"""Of 22 photographs all but a smooth colour wheel are above 40; blurred by 3 px of 512, all below 13."""
PLAIN = 0.03
"""The contrast below which there is next to nothing to see."""
DARK, BRIGHT = 0.1, 0.93
_MARGIN = 3 / SIDE


def copies(case: Case) -> Iterator[Finding]:
    """Nearly the same pictures in training: the best is kept. Files with the same bytes are said to be so."""
    for group in groups(case.looks):
        best = max((case.samples[path] for path in group), key=lambda sample: _worth(sample))
        others = tuple(path for path in group if path != best.path)
        same = {case.samples[path].num_bytes for path in group} == {best.num_bytes} and _same_bytes(
            case, group
        )
        names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        sentence = (
            f"{best.path} is the same file as {names}."
            if same
            else f"{best.path}, {best.width} x {best.height} px, is the best; nearly the same: {names}."
        )
        yield Finding(
            (best.path, *others), sentence, (Fix("Keep the best", "left_out", dict.fromkeys(others, True)),)
        )


def leaks(case: Case) -> Iterator[Finding]:
    """Validation pictures that training has as well."""
    both = {("training", path): look for path, look in case.looks.items()}
    both |= {("validation", path): look for path, look in case.held_out_looks.items()}
    for group in groups(both):
        held_out = [path for kind, path in group if kind == "validation"]
        trained = [path for kind, path in group if kind == "training"]
        if held_out and trained:
            has = f"{trained[0]}, which is" if len(trained) == 1 else f"{len(trained)} that are"
            sentence = f"{held_out[0]} is held out for validation; training has {has} nearly the same."
            yield Finding(tuple(trained), sentence, (leave_out(*trained),))


def blurred(case: Case) -> Iterator[Finding]:
    for path, look in case.looks.items():
        if look.sharpness < BLURRED and look.contrast >= PLAIN:
            yield Finding((path,), "No part of it is sharp.", (leave_out(path),))


def light(case: Case) -> Iterator[Finding]:
    for path, look in case.looks.items():
        if look.contrast < PLAIN:
            yield Finding((path,), "There is next to nothing to see in it.", (leave_out(path),))
        elif look.brightness < DARK:
            yield Finding((path,), "It is very dark.", (leave_out(path),))
        elif look.brightness > BRIGHT:
            yield Finding((path,), "It is very bright.", (leave_out(path),))


def frames(case: Case) -> Iterator[Finding]:
    yield from _edges(case, "frame", "A plain strip runs along its {}.")


def bands(case: Case) -> Iterator[Finding]:
    yield from _edges(case, "band", "A strip with something on it, such as text, runs along its {}.")


def _edges(case: Case, kind: str, sentence: str) -> Iterator[Finding]:
    for path, look in case.looks.items():
        if case.samples[path].crop:
            continue
        sides = getattr(look, kind)
        names = [name for name, depth in zip(("left", "top", "right", "bottom"), sides, strict=True) if depth]
        if names:
            where = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
            yield Finding(
                (path,), sentence.format(where), (Fix("Crop it away", "crops", {path: _inside(look)}),)
            )


def _inside(look: Look) -> list[float]:
    """What remains within frame and band: left, top, right and bottom in fractions."""
    depths = [max(both) + _MARGIN if max(both) else 0.0 for both in zip(look.frame, look.band, strict=True)]
    return [round(edge, 4) for edge in (depths[0], depths[1], 1 - depths[2], 1 - depths[3])]


def _worth(sample: Sample) -> tuple[float, ...]:
    """More pixels first, then a caption, then more bytes: what was compressed less."""
    return (sample.width * sample.height, bool(sample.caption), sample.num_bytes)


def _same_bytes(case: Case, paths: list[str]) -> bool:
    try:
        first = case.samples[paths[0]].file.read_bytes()
        return all(case.samples[path].file.read_bytes() == first for path in paths[1:])
    except OSError:
        return False


CHECKS = (
    Check(
        "leaks",
        "Validation pictures in training",
        "bad",
        "Validation then says that all is well while the model learns by heart. Leave them out of training.",
        leaks,
    ),
    Check(
        "copies",
        "Nearly the same",
        "warn",
        "What is there twice is learnt twice as strongly. Keep the best of each.",
        copies,
    ),
    Check(
        "blurred",
        "Blurred",
        "warn",
        "The model learns the blur. Leave them out, unless the blur is what you want.",
        blurred,
    ),
    Check("light", "Too dark, too bright or empty", "warn", "Little can be learnt from them.", light),
    Check(
        "frames",
        "Plain frames",
        "warn",
        "The model learns to draw the frame. Only straight, plain strips are seen, no marks on the picture.",
        frames,
    ),
    Check(
        "bands",
        "Strips with text",
        "warn",
        "The model learns to draw letters there. Only strips along an edge are seen, no marks elsewhere.",
        bands,
    ),
)
