"""Many small image files, each another and each valid, made faster than any encoder could."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

PER_FOLDER = 1000
SIZES = ((64, 64), (96, 64), (64, 96), (80, 60), (60, 80), (128, 72), (48, 112), (100, 100))
_COLOURS = ("teal", "maroon", "olive", "navy", "tan")
_CAPTIONS = ("a photo of a {} thing, number {}", "{}, thing, number {}")


def write(folder: Path, count: int) -> Iterator[int]:
    """Write `count` captioned JPEG and PNG images in folders of a thousand; yield how many there are.

    A copy differs by a note in its header, which changes no pixel and keeps the file valid.
    """
    originals = list(_originals())
    for number in range(count):
        if number % PER_FOLDER == 0:
            home = folder / f"{number // PER_FOLDER:04d}"
            home.mkdir(parents=True, exist_ok=True)
            yield number
        extension, content = originals[number % len(originals)]
        (home / f"{number:06d}{extension}").write_bytes(_noted(extension, content, number))
        caption = _CAPTIONS[number % 2].format(_COLOURS[number % 5], number)
        (home / f"{number:06d}.txt").write_text(caption, encoding="utf-8")
    yield count


def _originals() -> Iterator[tuple[str, bytes]]:
    for number, size in enumerate(SIZES):
        image = Image.linear_gradient("L").resize(size).convert("RGB")
        image.paste(_COLOURS[number % 5], (0, 0, size[0] // 2, size[1] // 2))
        for extension, name in ((".jpg", "JPEG"), (".png", "PNG")):
            file = io.BytesIO()
            image.save(file, name)
            yield extension, file.getvalue()


def _noted(extension: str, content: bytes, number: int) -> bytes:
    """Source: ITU T.81 B.2.4.5 (COM) behind SOI; PNG 11.3.3.3 (tEXt) behind IHDR, which is 25 bytes."""
    note = b"number %d" % number
    if extension == ".jpg":
        return content[:2] + b"\xff\xfe" + struct.pack(">H", len(note) + 2) + note + content[2:]
    chunk = b"tEXtComment\0" + note
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content[:33] + framed + content[33:]
