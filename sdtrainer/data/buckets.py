"""Which sizes images are trained at. Pure arithmetic on (width, height) in pixels.

Images keep their shape as far as possible: each goes to the bucket of nearest aspect ratio, is scaled to
cover it and cropped. All buckets of a resolution have about the same area, so one batch costs about as much
as any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .section import DataSection

Size = tuple[int, int]
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


@dataclass(frozen=True)
class Fit:
    """How an image of `source` size fills its bucket: scaled to `scale_to`, cut at (left, top) to `size`."""

    source: Size
    scale_to: Size
    left: int
    top: int
    size: Size

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
        return Fit(self.source, self.scale_to, left, self.top, self.size)


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


def fit(width: int, height: int, bucket: Size, position: tuple[float, float] = CENTER) -> Fit:
    """Scale an image to cover its bucket and cut at `position` (0 is left or top, 1 is right or bottom)."""
    scale = max(bucket[0] / width, bucket[1] / height)
    scaled = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    left, top = (round((scaled[axis] - bucket[axis]) * position[axis]) for axis in (0, 1))
    return Fit((width, height), scaled, left, top, bucket)


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
