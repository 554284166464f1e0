"""Advice on the set as a whole: how many pictures, and how different."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from ..seams import Goal
from .case import Case, Check, Finding

MOST = 0.8
"""The part of the set from which on "nearly all" are alike."""
LEAST_COUNTED = 5
PLAIN_GROUND = 0.06
"""How much the outermost tenth of a picture varies where its background is plain, as a part of 1."""
SAME_GROUND = 0.08

ENOUGH: Mapping[Goal, tuple[int, int, int, str]] = {
    "subject": (
        3,
        10,
        40,
        "10 to 30 is a rule of thumb; DreamBooth, Ruiz et al. 2022, teaches one with 3 to 5",
    ),
    "style": (10, 20, 500, "a rule of thumb: a style shows in 20 to 200 different pictures"),
    "concept": (5, 15, 500, "a rule of thumb: 15 to 100 different pictures"),
}
"""(too few, few, many, source) by goal."""


def count(case: Case) -> Iterator[Finding]:
    goal, number = case.config.run.goal, len(case.census.samples)
    least, few, many, source = ENOUGH[goal]
    pictures = "1 picture" if number == 1 else f"{number:,} pictures"
    if number < few:
        how = "too few" if number < least else "few"
        yield Finding(
            (),
            f"{pictures} are {how} for a {goal} ({source})."
            if number > 1
            else f"1 picture is too few for a {goal} ({source}).",
        )
    elif number > many:
        yield Finding((), f"{pictures} are many for a {goal} ({source}); the best of them may do better.")


def same_ground(case: Case) -> Iterator[Finding]:
    """One plain background nearly everywhere."""
    looks = list(case.looks.values())
    if len(looks) < LEAST_COUNTED or case.config.run.goal == "style":
        return
    rings = np.array([look.ring for look in looks])
    near = np.abs(rings - np.median(rings, 0)).max(1) < SAME_GROUND
    plain = np.array([look.ring_spread for look in looks]) < PLAIN_GROUND
    part = float((near & plain).mean())
    if part >= MOST:
        yield Finding(
            (), f"{part:.0%} of the pictures have the same plain background, which is learnt as well."
        )


def same_shape(case: Case) -> Iterator[Finding]:
    """All of one shape: then only that shape is drawn well."""
    shapes = Counter(item.bucket for item in case.items)
    (width, height), number = shapes.most_common(1)[0]
    if len(case.items) >= LEAST_COUNTED and number == len(case.items) and width != height:
        sides = "wide" if width > height else "tall"
        yield Finding((), f"All pictures are {sides} ({width} x {height} px in training).")


def one_repeated(case: Case) -> Iterator[Finding]:
    """One folder outweighing the others by its repeats."""
    shown: Counter[str] = Counter()
    for sample in case.census.samples:
        shown[sample.path.rpartition("/")[0]] += sample.repeats
    if len(shown) > 1:
        (folder, most), total = shown.most_common(1)[0], sum(shown.values())
        if most >= MOST * total:
            name = folder or "the main folder"
            yield Finding((), f"{most / total:.0%} of what is shown comes from '{name}'.")


CHECKS = (
    Check(
        "count",
        "Number of pictures",
        "warn",
        "Too few make the model copy them; many that are alike teach no more than some of them.",
        count,
    ),
    Check(
        "ground",
        "One background",
        "warn",
        "Take some elsewhere, or name the background in captions, so that it is not learnt as the subject.",
        same_ground,
    ),
    Check("shape", "One shape", "note", "Others are drawn better if some pictures have them.", same_shape),
    Check(
        "weight",
        "One folder outweighs the others",
        "note",
        "Its repeats can be lowered in its name.",
        one_repeated,
    ),
)
