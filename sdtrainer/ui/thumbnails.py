"""Small WebP copies of pictures, kept in workspace/cache/thumbnails: the only folder that the page serves.

Keyed by the file's path, size, time and the wanted side, so a changed picture gets a new copy.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ..data.census import Sample
from ..data.images import FORMATS, BadImage, open_mask
from ..workspace import Workspace

GRID, LARGE = 256, 1024
_QUALITY = {GRID: 82, LARGE: 95}


def folder(workspace: Workspace) -> Path:
    return workspace.cache / "thumbnails"


def thumbnail(workspace: Workspace, picture: Path, side: int = GRID) -> Path:
    """Return a copy of `picture` whose longer side is at most `side` pixels; a crossed-out one of a picture
    that cannot be decoded.
    """
    stat = picture.stat()
    key = hashlib.sha256(
        f"{picture.resolve()} {stat.st_size} {stat.st_mtime_ns} {side}".encode()
    ).hexdigest()[:24]
    copy = folder(workspace) / key[:2] / f"{key}.webp"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        _make(picture, copy, side)
    return copy


def mask_copy(workspace: Workspace, sample: Sample) -> Path:
    """Return a grey copy of a sample's mask, as long as the picture's large copy; of one that cannot be read,
    a white one.
    """
    assert sample.mask
    stat = sample.mask.stat() if sample.mask.exists() else None
    told = f"mask {sample.mask} {stat and (stat.st_size, stat.st_mtime_ns)} {sample.mask == sample.file}"
    key = hashlib.sha256(told.encode()).hexdigest()[:24]
    copy = folder(workspace) / key[:2] / f"{key}.webp"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            grey = open_mask(sample.mask, sample.mask == sample.file)
        except BadImage:
            grey = Image.new("L", (8, 8), 255)
        grey.thumbnail((LARGE, LARGE))
        _save(grey, copy, LARGE)
    return copy


def _make(picture: Path, copy: Path, side: int) -> None:
    try:
        small = _small(picture, side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        small = _crossed_out(side)
    _save(small, copy, side)


def _save(small: Image.Image, copy: Path, side: int) -> None:
    part = copy.with_suffix(f".{threading.get_ident()}.part")  # two pages may want the same one
    small.save(part, "WEBP", quality=_QUALITY[side], method=2)
    part.replace(copy)


def _small(picture: Path, side: int) -> Image.Image:
    with Image.open(picture, formats=FORMATS) as image:
        image.draft("RGB", (side, side))
        upright = ImageOps.exif_transpose(image)
        mode = "RGBA" if "transparency" in image.info or "A" in image.getbands() else "RGB"
        upright = upright.convert(mode)
    upright.thumbnail((side, side))
    return upright


def _crossed_out(side: int) -> Image.Image:
    tile = Image.new("RGB", (side, side), "#9a9a9a")
    pen = ImageDraw.Draw(tile)
    for start in (0, side):
        pen.line((start, 0, side - start, side), fill="#c0392b", width=max(2, side // 32))
    return tile
