"""Small WebP copies of pictures, kept in workspace/cache/thumbnails: the only folder that the page serves.

Keyed by the file's path, size, time and the wanted side, so a changed picture gets a new copy. Where many are
shown they are made when the browser asks for them, so that no page waits for its pictures.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from ..data.census import Sample
from ..data.images import FORMATS, BadImage, open_mask
from ..workspace import Workspace

GRID, LARGE = 256, 1024
_QUALITY = {GRID: 82, LARGE: 95}
AT_ONCE = 2
"""Copies being made; more would keep the page itself waiting."""
KEPT = 20_000


def folder(workspace: Workspace) -> Path:
    return workspace.cache / "thumbnails"


def thumbnail(workspace: Workspace, picture: Path, side: int = GRID) -> Path:
    """Return a copy of `picture` whose longer side is at most `side` pixels; a crossed-out one of a picture
    that cannot be decoded.
    """
    copy = _copy(workspace, _key(picture, side))
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


class Thumbnails:
    """Gives each picture shown an address, and makes its copy when that is asked for.

    Only pictures that were shown have one; it does not tell where they lie.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._asked: OrderedDict[str, tuple[Path, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Semaphore(AT_ONCE)

    def address(self, picture: Path, side: int = GRID) -> str:
        """Return where a copy will be found, relative to the page."""
        try:
            key = _key(picture, side)
        except OSError:
            return "thumbnail/gone"
        with self._lock:
            self._asked[key] = picture, side
            self._asked.move_to_end(key)
            while len(self._asked) > KEPT:
                self._asked.popitem(last=False)
        return f"thumbnail/{key}"

    def answer(self, request: Request) -> Response:
        """Handle thumbnail/{key}."""
        picture, side = self._asked.get(request.path_params["key"], (None, GRID))
        if picture is None:
            return PlainTextResponse("Not found", 404)
        with self._making:
            try:
                copy = thumbnail(self._workspace, picture, side)
            except OSError:
                return PlainTextResponse("Not found", 404)
        return FileResponse(copy, headers={"cache-control": "private, max-age=31536000, immutable"})


def _key(picture: Path, side: int) -> str:
    stat = picture.stat()
    told = f"{picture.resolve()} {stat.st_size} {stat.st_mtime_ns} {side}"
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def _copy(workspace: Workspace, key: str) -> Path:
    return folder(workspace) / key[:2] / f"{key}.webp"


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
