"""How each image is used: crops, focus points and backgrounds kept in the app, put on what a scan found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .buckets import crop_of
from .census import Sample
from .overlay import Overlay


def reframed(sample: Sample, overlay: Overlay) -> Sample:
    """Return a sample that was framed before as it is framed now."""
    width, height = sample.crop.whole if sample.crop else (sample.width, sample.height)
    bare = replace(sample, crop=None, focus=None, width=width, height=height)
    return next(framed([bare], overlay))


def framed(samples: Iterable[Sample], overlay: Overlay | None) -> Iterator[Sample]:
    """Yield the samples as they are used: a cropped image has the size of its crop."""
    crops, focus = (overlay.entries("crops"), overlay.entries("focus")) if overlay else ({}, {})
    backgrounds = overlay.entries("backgrounds") if overlay else {}
    for sample in samples:
        if colour := backgrounds.get(sample.path):
            sample = replace(sample, background=colour)
        if point := focus.get(sample.path):
            sample = replace(sample, focus=(float(point[0]), float(point[1])))
        if fractions := crops.get(sample.path):
            crop = crop_of(fractions, (sample.width, sample.height))
            sample = replace(sample, crop=crop, width=crop.size[0], height=crop.size[1])
        yield sample
