"""Which sizes images are trained at. Pure arithmetic on (width, height) in pixels.

Images keep their shape as far as possible: each goes to the bucket of nearest aspect ratio, is scaled to
cover it and cropped. All buckets of a resolution have about the same area, so one batch costs about as much
as any other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .section import DataSection

Size = tuple[int, int]
Point = tuple[float, float]
CENTER = (0.5, 0.5)
MAX_SIDE = 2048


@dataclass(frozen=True)
class Table:
    """The buckets of one resolution."""

    resolution: int
    step: int
    min_side: int
    max_side: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an upright image of `whole` size, in pixels; `right` and `bottom` are the first left out."""

    whole: Size
    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        return (self.right - self.left, self.bottom - self.top)

    @property
    def box(self) -> tuple[int, int, int, int]:
        return (self.left, self.top, self.right, self.bottom)


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image of `source` size fills its bucket: scaled to `scale_to`, cut at (left, top) to `size`.

    With `crop` the source is that part of the image.
    """

    source: Size
    scale_to: Size
    left: int
    top: int
    size: Size
    crop: Crop | None = None

    @property
    def whole(self) -> Size:
        """The size of the upright image."""
        return self.crop.whole if self.crop else self.source

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """What the model sees: left, top, right and bottom in pixels of the upright image."""
        x, y = (self.source[axis] / self.scale_to[axis] for axis in (0, 1))
        left, top = (self.crop.left, self.crop.top) if self.crop else (0, 0)
        right, bottom = self.left + self.size[0], self.top + self.size[1]
        return (left + self.left * x, top + self.top * y, left + right * x, top + bottom * y)

    @property
    def enlargement(self) -> float:
        return self.scale_to[0] / self.source[0]

    @property
    def part_lost(self) -> float:
        """The part of the image's area that is cropped away, 0 to 1."""
        return 1 - self.size[0] * self.size[1] / (self.scale_to[0] * self.scale_to[1])

    def mirrored(self) -> Fit:
        """Return the same cut seen in the mirror image."""
        left = self.scale_to[0] - self.size[0] - self.left
        return replace(self, left=left)


def table_for(resolution: int, section: DataSection) -> Table:
    """Return the buckets of one resolution, the automatic limits resolved.

    Automatic: step by resolution, sides from half to twice the resolution and at most 2048. A limit of the
    user wins over an automatic one.
    """
    step = section.bucket_step or automatic_step(resolution)
    longest = section.bucket_max or max(min(MAX_SIDE, 2 * resolution), section.bucket_min)
    shortest = section.bucket_min or min(resolution // 2, longest)
    longest = max(step, longest // step * step)
    shortest = min(longest, max(step, -(-shortest // step) * step))
    return Table(resolution, step, shortest, longest, bucket_sizes(resolution, step, shortest, longest))


def automatic_step(resolution: int) -> int:
    """Return 64 px from 512 px on and less below, so that small resolutions have as many shapes."""
    return next((step for least, step in ((512, 64), (256, 32), (128, 16)) if resolution >= least), 8)


def bucket_sizes(resolution: int, step: int, min_side: int, max_side: int) -> tuple[Size, ...]:
    """Return the (width, height) of every bucket, narrowest first.

    Source: kohya-ss/sd-scripts, library/model_util.py, make_bucket_resolutions (the rule, not the code).
    Deviation: the square too keeps to max_side.
    """
    area = resolution * resolution
    square = min(max_side, max(step, resolution // step * step))
    sizes = {(square, square)}
    for width in range(min_side, max_side + 1, step):
        height = min(max_side, area // width // step * step)
        if height >= min_side:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


@functools.lru_cache(4096)  # thousands of images have few sizes
def assign(width: int, height: int, table: Table, upscale: bool) -> Size:
    """Return the bucket for an image: the nearest aspect ratio, compared as logarithms so that portrait and
    landscape are treated alike. Without `upscale`, an image that cannot fill it gets a bucket of its own,
    never larger than it is.
    """
    bucket = min(
        table.sizes, key=lambda s: (abs(math.log(width * s[1]) - math.log(height * s[0])), -s[0] * s[1])
    )
    if upscale or (width >= bucket[0] and height >= bucket[1]):
        return bucket
    return _own_bucket(width, height, table)


def fit(width: int, height: int, bucket: Size, position: Point = CENTER) -> Fit:
    """Scale an image to cover its bucket and cut at `position` (0 is left or top, 1 is right or bottom)."""
    scale = max(bucket[0] / width, bucket[1] / height)
    scaled = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    left, top = (round((scaled[axis] - bucket[axis]) * position[axis]) for axis in (0, 1))
    return Fit((width, height), scaled, left, top, bucket)


def crop_of(fractions: Sequence[float], whole: Size) -> Crop:
    """Return a crop given as left, top, right and bottom in fractions of the upright image: at least a pixel
    of it.
    """
    near, far = [], []
    for axis in (0, 1):
        first = min(max(0, round(fractions[axis] * whole[axis])), whole[axis] - 1)
        near.append(first)
        far.append(min(max(first + 1, round(fractions[axis + 2] * whole[axis])), whole[axis]))
    return Crop(whole, *near, *far)


def window(
    source: Size, table: Table, upscale: bool, crop: Crop | None = None, focus: Point | None = None
) -> Fit:
    """Return exactly what the model will see of an image of `source` size: the size of its crop, if it has
    one. `focus` (fractions of the upright image) comes as near to the middle as the image allows.
    """
    bucket = assign(*source, table, upscale)
    centred = fit(*source, bucket)
    if crop:
        centred = replace(centred, crop=crop)
    return _towards(centred, focus) if focus else centred


def _towards(centred: Fit, focus: Point) -> Fit:
    start = (centred.crop.left, centred.crop.top) if centred.crop else (0, 0)
    places = []
    for axis in (0, 1):
        scale = centred.scale_to[axis] / centred.source[axis]
        middle = (focus[axis] * centred.whole[axis] - start[axis]) * scale
        room = centred.scale_to[axis] - centred.size[axis]
        places.append(min(max(0, round(middle - centred.size[axis] / 2)), room))
    return replace(centred, left=places[0], top=places[1])


def _own_bucket(width: int, height: int, table: Table) -> Size:
    """Shrink to the table's area and longest side, then floor to the step (kohya's bucket_no_upscale).

    A side shorter than the step becomes one step: the only enlargement left, of images thinner than the model
    can see.
    """
    area = table.resolution * table.resolution
    scale = min(1.0, math.sqrt(area / (width * height)), table.max_side / max(width, height))
    return _floored(width * scale, table.step), _floored(height * scale, table.step)


def _floored(side: float, step: int) -> int:
    return max(step, int(side) // step * step)
