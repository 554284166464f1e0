"""Small WebP copies of pictures, kept in workspace/cache/thumbnails: the only folder that the page serves.

Keyed by the file's path, size, time and the wanted side, so a changed picture gets a new copy.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from PIL import Image, ImageOps

from ..data.images import FORMATS
from ..workspace import Workspace

GRID, LARGE = 256, 1024
_QUALITY = {GRID: 82, LARGE: 95}


def folder(workspace: Workspace) -> Path:
    return workspace.cache / "thumbnails"


def thumbnail(workspace: Workspace, picture: Path, side: int = GRID) -> Path:
    """Return a copy of `picture` whose longer side is at most `side` pixels."""
    stat = picture.stat()
    key = hashlib.sha256(
        f"{picture.resolve()} {stat.st_size} {stat.st_mtime_ns} {side}".encode()
    ).hexdigest()[:24]
    copy = folder(workspace) / key[:2] / f"{key}.webp"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        _make(picture, copy, side)
    return copy


def _make(picture: Path, copy: Path, side: int) -> None:
    with Image.open(picture, formats=FORMATS) as image:
        image.draft("RGB", (side, side))
        upright = ImageOps.exif_transpose(image)
        upright = upright.convert(
            "RGBA" if "transparency" in image.info or "A" in image.getbands() else "RGB"
        )
    upright.thumbnail((side, side))
    part = copy.with_suffix(f".{threading.get_ident()}.part")  # two pages may want the same one
    upright.save(part, "WEBP", quality=_QUALITY[side], method=2)
    part.replace(copy)
