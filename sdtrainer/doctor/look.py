"""What the pixels of one picture say, measured on a small copy. Numbers only; what they mean is decided in
`pictures`.

Shapes: grey (H, W), colours (H, W, 3), both float32 from 0 to 255.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 512
"""The longer side of the small copy in pixels: about what the model sees."""
TILES = 4
_HASHED, _KEPT = 32, 8
_ALIKE = 14.0
"""Of 255: how far colours of one plain strip are from each other, with what JPEG adds."""
_EDGE, _BEYOND, _EMPTY = 0.9, 0.3, 0.97
"""How much ground there is in a strip's last row, beyond it at most, and in a strip with nothing on it."""
_THIN, _THICK = 0.02, 0.4

Sides = tuple[float, ...]


class Look(NamedTuple):
    """`phash` is a perceptual hash of 64 bits, as hexadecimal text.

    `sharpness` is in squared levels of grey, `brightness` and `contrast` are parts of 1, `transparent` a part
    of the area. `average` and `ring` are the colours of all that is opaque and of the outermost tenth;
    `ring_spread` is how much the latter varies, a part of 1. `frame` is how deep an empty strip goes in from
    the left, top, right and bottom, and `band` the same for a strip with something written on it: parts of
    width and height.
    """

    phash: str
    sharpness: float
    brightness: float
    contrast: float
    transparent: float
    average: str
    ring: tuple[float, ...]
    ring_spread: float
    frame: Sides
    band: Sides


def look_at(small: Image.Image) -> Look:
    """Return what a small upright copy shows; transparent parts count as white."""
    alpha = np.asarray(small.getchannel("A"), np.float32) / 255 if small.mode == "RGBA" else None
    colours = np.asarray(small.convert("RGB"), np.float32)
    average = _average(colours, alpha)
    if alpha is not None:
        colours = colours * alpha[..., None] + 255 * (1 - alpha[..., None])
    grey = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    ring = _ring(colours)
    frame, band = strips(colours)
    return Look(
        phash=phash(grey),
        sharpness=round(sharpness(grey), 1),
        brightness=round(float(grey.mean()) / 255, 3),
        contrast=round(float(grey.std()) / 255, 3),
        transparent=round(float((alpha < 0.5).mean()), 3) if alpha is not None else 0.0,
        average=average,
        ring=tuple(round(float(c) / 255, 3) for c in ring.mean(0)),
        ring_spread=round(float(ring.std(0).mean()) / 255, 3),
        frame=frame,
        band=band,
    )


def sharpness(grey: np.ndarray) -> float:
    """Return the variance of the Laplacian in the sharpest tenth of the tiles: a soft background is no fault.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy", LAPV. Deviation: by
    tiles.
    """
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    tiles = [tile for rows in np.array_split(laplacian, TILES) for tile in np.array_split(rows, TILES, 1)]
    return float(np.percentile([tile.var() for tile in tiles if tile.size], 90))


def phash(grey: np.ndarray) -> str:
    """Return which of the lowest 8 x 8 frequencies are above their median: near copies differ in few bits.

    Source: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", 3.2.1 (DCT
    based hash).
    """
    image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    pixels = np.asarray(image.resize((_HASHED, _HASHED), Image.Resampling.BOX), np.float32)
    low = (_cosines() @ pixels @ _cosines().T).ravel()
    low[np.abs(low) < 1e-3] = 0  # of a plain picture only rounding errors would be left
    bits = low > np.median(low[1:])
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def strips(colours: np.ndarray) -> tuple[Sides, Sides]:
    """Return (frame, band): how deep plain strips go in from each side, empty ones and written ones.

    A strip ends at a straight line where its ground gives way to other colours along most of it: so a plain
    background behind an object is none.
    """
    turned = (colours.transpose(1, 0, 2), colours, colours.transpose(1, 0, 2)[::-1], colours[::-1])
    found = [_strip(side) for side in turned]
    frame = tuple(depth if is_empty else 0.0 for depth, is_empty in found)
    band = tuple(0.0 if is_empty else depth for depth, is_empty in found)
    return frame, band


def _strip(rows: np.ndarray) -> tuple[float, bool]:
    """Return (depth as a part of the height, whether nothing is on it) of the strip along the first row."""
    height = rows.shape[0]
    ground = np.median(rows[0], axis=0)
    is_ground = np.abs(rows[: int(height * _THICK) + 2] - ground).max(-1) <= _ALIKE
    part = is_ground.mean(1)
    depth = int(np.argmax(part < _BEYOND)) if (part < _BEYOND).any() else 0
    if depth < max(2, height * _THIN) or part[depth - 2 : depth].max() < _EDGE:
        return 0.0, True
    empty = is_ground[: depth - 1].mean() >= _EMPTY
    return round(depth / height, 4), bool(empty)


def _average(colours: np.ndarray, alpha: np.ndarray | None) -> str:
    flat = colours.reshape(-1, 3)
    weights = None if alpha is None or not alpha.any() else alpha.ravel()
    return "#{:02x}{:02x}{:02x}".format(*(round(float(c)) for c in np.average(flat, 0, weights)))


def _ring(colours: np.ndarray) -> np.ndarray:
    """The colours of the outermost tenth, (N, 3)."""
    height, width = colours.shape[:2]
    y, x = max(1, height // 10), max(1, width // 10)
    inside = np.zeros((height, width), bool)
    inside[y:-y, x:-x] = True
    return colours[~inside]


@functools.cache
def _cosines() -> np.ndarray:
    """The first 8 rows of the DCT-II of 32 points."""
    steps = (np.arange(_HASHED) + 0.5) * np.pi / _HASHED
    return np.cos(np.arange(_KEPT)[:, None] * steps).astype(np.float32)
