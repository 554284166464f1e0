"""Which pictures are nearly the same: by perceptual hash and colours, in groups. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from .look import Look

MOST_BITS = 6
"""Of 64. Among 22 photographs, copies in poor JPEG, half size or another brightness differ in 0 to 4 mostly,
and no two of different things in fewer than 20.
"""
MOST_COLOUR = 0.1
"""How far average colours may be from each other, as a part of 1: drawings of one thing on other grounds are
no copies.
"""
_BANDS = 8
Name = TypeVar("Name", bound=Hashable)


def groups(looks: Mapping[Name, Look]) -> list[list[Name]]:
    """Return the groups of two and more that are nearly the same, in the order given."""
    names = list(looks)
    leader = list(range(len(names)))

    def first(index: int) -> int:
        while leader[index] != index:
            leader[index] = index = leader[leader[index]]
        return index

    for one, other in _pairs([looks[name] for name in names]):
        a, b = sorted((first(one), first(other)))
        leader[b] = a
    found: dict[int, list[Name]] = defaultdict(list)
    for index, name in enumerate(names):
        found[first(index)].append(name)
    return [group for group in found.values() if len(group) > 1]


def _pairs(looks: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Yield pairs of near copies. Two that differ in 6 bits have at least two of their 8 bytes in common."""
    if len(looks) < 2:
        return
    hashes = np.array([int(look.phash, 16) for look in looks], np.uint64)
    colours = np.array([(*look.ring, *_colour(look.average)) for look in looks], np.float32)
    octets = hashes.view(np.uint8).reshape(-1, _BANDS)
    for band in range(_BANDS):
        order = np.argsort(octets[:, band], kind="stable")
        cuts = np.flatnonzero(np.diff(octets[order, band])) + 1
        for alike in np.split(order, cuts):
            for place, one in enumerate(alike[:-1]):
                others = alike[place + 1 :]
                near = np.bitwise_count(hashes[others] ^ hashes[one]) <= MOST_BITS
                others = others[near]
                same = np.abs(colours[others] - colours[one]).max(1, initial=0) <= MOST_COLOUR
                yield from ((int(one), int(other)) for other in others[same])


def _colour(text: str) -> tuple[float, float, float]:
    red, green, blue = (int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue
