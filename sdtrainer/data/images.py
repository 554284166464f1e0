"""From an image file to pixels: any format and mode that Pillow reads becomes upright RGB. Files are only
read.

Owns every call into Pillow's decoders. `read_header` decodes nothing; `open_rgb` decodes all.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

from ..section import UserError
from .buckets import Fit
from .census import Kind, Problem, Sample

if TYPE_CHECKING:
    import torch

EXTENSIONS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
}
UNREAD_EXTENSIONS = (".heic", ".heif", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")
FORMATS = tuple(sorted(set(EXTENSIONS.values())))
"""The only decoders tried: others (EPS, for one) start foreign programs."""

PIXELS_VERSION = 1
"""Raise this when `pixels` gives other values for the same file: it is part of the key of cached latents."""

warnings.simplefilter(
    "ignore", Image.DecompressionBombWarning
)  # 100-megapixel cameras exist; twice Pillow's limit fails

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image upright, by EXIF orientation."""

SWAPPING = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
ORIENTATION_TAG = 0x0112
MOVING_FORMATS = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")
"""Formats whose further frames are worth a warning; those of an MPO are previews of one photo."""


ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
"""How a whole file of a format ends: ITU T.81 B.1.1.3 (EOI), PNG 11.2.5 (IEND)."""
TAIL_BYTES = 4096


class BadImage(UserError):
    """An image that cannot be used; `kind` says why."""

    def __init__(self, kind: Kind, what: str, hint: str) -> None:
        super().__init__(what, hint, "data.folder")
        self.kind: Kind = kind


class Header(NamedTuple):
    """What a file says about itself. `width`, `height` are as seen, after EXIF orientation.

    `mode` is Pillow's; `profile` names the colour profile, empty for none or sRGB.
    """

    width: int
    height: int
    format: str
    is_animated: bool
    mode: str = "RGB"
    has_alpha: bool = False
    is_turned: bool = False
    profile: str = ""


def read_header(path: Path) -> Header:
    """Return the header without decoding, unless the file does not end as its format does: then the pixels
    must be there.

    Raises: BadImage.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            turn, mode = _turn(image), image.mode
            width, height = image.size[::-1] if turn in SWAPPING else image.size
            is_animated = image.format in MOVING_FORMATS and bool(getattr(image, "is_animated", False))
            has_alpha = image.has_transparency_data
            profile = _profile(image.info.get("icc_profile") or b"")
            if not _ends_well(path, image.format or ""):
                image.load()
            return Header(
                width, height, image.format or "", is_animated, mode, has_alpha, turn is not None, profile
            )
    except Exception as error:  # Pillow's decoders raise nearly anything on corrupt files
        raise bad_image(path, error) from error


def extension_of(content: bytes, name: str) -> str:
    """Return the extension that suits an image, from its first bytes. Raises BadImage naming it."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            real = "JPEG" if image.format == "MPO" else image.format
    except Exception as error:
        raise bad_image(Path(name), error) from error
    return next(extension for extension, known in EXTENSIONS.items() if known == real)


def open_small(path: Path, side: int) -> Image.Image:
    """Return the first frame, upright, as RGBA or RGB, at most `side` pixels long. All of it is decoded, the
    quick way where the format has one.

    Raises BadImage naming the file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            turn, has_alpha = _turn(image), image.has_transparency_data
            image.draft("RGB", (side, side))
            image.load()
            small = image.convert("RGBA") if has_alpha else _to_rgb(image, "white")
            small.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
            return small.transpose(turn) if turn is not None else small
    except Exception as error:
        raise bad_image(path, error) from error


def open_rgb(path: Path, background: str) -> Image.Image:
    """Return the first frame, upright, as RGB, transparency over `background`.

    Raises BadImage naming the file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            turn = _turn(image)
            image.load()
            rgb = _to_rgb(image, background)
            return rgb.transpose(turn) if turn is not None else rgb
    except Exception as error:
        raise bad_image(path, error) from error


def pixels(path: Path, fit: Fit, flip: bool, background: str) -> torch.Tensor:
    """Return the image as it enters the VAE: scaled, cropped, then mirrored if `flip`.

    Shapes: (3, H, W), float32 in [-1, 1].
    Raises: BadImage, also if the file is no longer the size it was scanned at.
    """
    import torch

    seen = seen_by_model(open_rgb(path, background), fit, path.name)
    if flip:
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(seen)).permute(2, 0, 1).contiguous().float() / 127.5 - 1


def open_mask(path: Path, is_alpha: bool) -> Image.Image:
    """Return a mask, upright, in 8-bit grey: the file's brightness, transparent parts black, or its alpha.

    Raises BadImage naming the file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            turn = _turn(image)
            image.load()
            alpha = image.convert("RGBA").getchannel("A") if is_alpha else None
            grey = alpha or _to_rgb(image, "black").convert("L")
            return grey.transpose(turn) if turn is not None else grey
    except Exception as error:
        raise bad_image(path, error) from error


def seen_by_model(
    image: Image.Image, fit: Fit, name: str, scaling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Return what the model sees of a whole upright image. Raises BadImage if it is not of the size that was
    scanned.
    """
    if image.size != fit.whole:
        what = f"{name} was {_by(fit.whole)} when the folder was read and is {_by(image.size)} now."
        raise BadImage("undecodable", what, "Start again, so that the folder is read anew.")
    source = image.crop(fit.crop.box) if fit.crop else image
    scaled = source.resize(fit.scale_to, scaling, reducing_gap=3.0)
    return scaled.crop((fit.left, fit.top, fit.left + fit.size[0], fit.top + fit.size[1]))


def verify(sample: Sample) -> Problem | None:
    """Decode the whole image and return what is wrong: a header does not show that the rest is missing."""
    try:
        open_rgb(sample.file, "white")
    except BadImage as error:
        return problem_of(sample, error)
    return None


def problem_of(sample: Sample, error: BadImage) -> Problem:
    return Problem(sample.path, error.kind, str(error), "skipped")


def bad_image(path: Path, error: Exception) -> BadImage:
    """Say in a user's words why a file could not be read."""
    name = path.name
    if isinstance(error, FileNotFoundError):
        return BadImage("missing", f"{name} is no longer there.", "Put it back, or start again without it.")
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        return BadImage("too large", f"{name} has more than {limit} million pixels.", "Save a smaller copy.")
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return BadImage("truncated", f"{name} ends too early: a part of it is missing.", "Copy it anew.")
    if isinstance(error, UnidentifiedImageError):
        return BadImage("undecodable", f"{name} is no image that can be read.", "Save it as PNG or JPEG.")
    return BadImage("undecodable", f"{name} cannot be decoded ({error}).", "Save it anew as PNG or JPEG.")


def _ends_well(path: Path, format_: str) -> bool:
    """Whether the end mark of the format is among the last bytes; some programs write notes behind it."""
    mark = ENDS.get(format_)
    if mark is None:
        return True
    with path.open("rb") as file:
        file.seek(-min(TAIL_BYTES, path.stat().st_size), os.SEEK_END)
        return mark in file.read()


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what puts an image upright by its EXIF orientation, or None. Call it before decoding.

    Pillow decodes a whole PNG to look for EXIF behind the pixels; only EXIF in front counts here.
    """
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return None
    try:
        return TURNS.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # as a viewer does: damaged notes about a photo do not spoil the photo
        return None


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*ImageColor.getrgb(background)[:3], 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit and float grey to 8 bits.

    Pillow's own conversion clips at 255, which turns such images white.
    """
    values = np.asarray(image).astype(np.float32)
    brightest = values.max(initial=0)
    full = 65535.0 if image.mode.startswith("I;16") or brightest > 255 else 255.0
    if image.mode == "F" and brightest <= 1:
        full = 1.0
    return Image.fromarray((values / full * 255).clip(0, 255).round().astype(np.uint8))


@functools.lru_cache(64)
def _profile(content: bytes) -> str:
    """Return the name of a colour profile, or nothing where colours mean what they do without one."""
    from PIL import ImageCms

    if not content:
        return ""
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(content))).strip()
    except Exception:  # damaged profiles are common, and viewers ignore them
        return ""
    return "" if "srgb" in name.lower() else name[:80] or "unnamed"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
