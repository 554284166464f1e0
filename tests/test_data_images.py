"""Every kind of image file becomes the same upright RGB pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photos

from sdtrainer.data.buckets import assign, fit, table_for
from sdtrainer.data.images import BadImage, open_rgb, pixels, read_header
from sdtrainer.data.section import DataSection


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(photos.astronaut()).crop((100, 0, 340, 160))


def saved(path, image, **options):
    image.save(path, **options)
    return path


def distance(a, b):
    return np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean()


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp", "jpg", "avif", "gif"])
def test_every_format_opens_as_the_same_picture(tmp_path, photo, extension):
    options = {"quality": 95} if extension in ("webp", "jpg", "avif") else {}
    opened = open_rgb(saved(tmp_path / f"a.{extension}", photo, **options), "white")
    assert opened.mode == "RGB"
    assert distance(opened, photo) < (12 if extension == "gif" else 4)


@pytest.mark.parametrize(
    ("mode", "extension"),
    [
        ("L", "jpg"),
        ("P", "png"),
        ("1", "png"),
        ("LA", "png"),
        ("RGBA", "webp"),
        ("CMYK", "jpg"),
        ("CMYK", "tiff"),
    ],
)
def test_every_mode_becomes_rgb_of_the_same_brightness(tmp_path, photo, mode, extension):
    opened = open_rgb(saved(tmp_path / f"a.{extension}", photo.convert(mode)), "white")
    assert opened.mode == "RGB"
    assert abs(np.asarray(opened.convert("L"), int).mean() - np.asarray(photo.convert("L")).mean()) < 3


@pytest.mark.parametrize(
    ("extension", "full"), [("png", 65535), ("png", 2000), ("tiff", 65535), ("tiff", 1.0)]
)
def test_deep_grey_keeps_its_shades(tmp_path, extension, full):
    """Pillow's own conversion clips at 255: such images came out white."""
    ramp = np.linspace(0, full, 256)[None].repeat(4, 0).astype(np.float32 if full == 1.0 else np.uint16)
    opened = open_rgb(saved(tmp_path / f"a.{extension}", Image.fromarray(ramp)), "white")
    expected = np.round(ramp[0] / (65535 if full > 1 else 1) * 255)
    assert np.array_equal(np.asarray(opened)[0, :, 0], expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_background(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        saved(tmp_path / "a.png", image, transparency=0)
    else:
        saved(tmp_path / "a.png", image.convert(mode))
    assert open_rgb(tmp_path / "a.png", "#ff8000").getpixel((3, 3)) == (255, 128, 0)


def test_half_transparency_is_mixed(tmp_path):
    saved(tmp_path / "a.png", Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
    assert open_rgb(tmp_path / "a.png", "white").getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_put_upright(tmp_path, orientation, extension):
    stored = Image.new("RGB", (32, 16), "black")
    stored.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{extension}", stored, exif=exif)
    opened, header = open_rgb(path, "white"), read_header(path)
    assert opened.size == (header.width, header.height)
    right, bottom = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[
        orientation
    ]
    light = opened.convert("L").getpixel(
        (opened.width * (1 + 2 * right) // 4, opened.height * (1 + 2 * bottom) // 4)
    )
    assert light > 200


def test_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for extension in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:], lossless=True)
        assert read_header(tmp_path / f"a.{extension}").is_animated
        assert open_rgb(tmp_path / f"a.{extension}", "white").getpixel((4, 4))[0] > 250


def test_phone_photo_with_a_preview_is_no_animation(tmp_path, photo):
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photo.resize((40, 40))])
    header = read_header(tmp_path / "a.jpg")
    assert (header.format, header.is_animated) == ("MPO", False)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "tiff"])
def test_truncated_file_is_named(tmp_path, photo, extension):
    whole = saved(tmp_path / f"whole.{extension}", photo).read_bytes()
    (tmp_path / f"cut.{extension}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match=f"cut.{extension}"):
        open_rgb(tmp_path / f"cut.{extension}", "white")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_never_raise_anything_else(tmp_path, photo, seed):
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    photo.save(file, ["PNG", "JPEG", "WEBP", "GIF", "TIFF"][seed % 5])
    content = bytearray(file.getvalue())
    for position in rng.integers(0, min(len(content), 400), 12):
        content[position] = rng.integers(256)
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_header, lambda path: open_rgb(path, "white")):
        try:
            read(tmp_path / "a.png")
        except BadImage as error:
            assert "a.png" in error.what


@pytest.mark.parametrize("size", [(1200, 800), (90, 160), (517, 511)])
def test_pixels_fill_their_bucket_with_the_photo(tmp_path, size):
    image = Image.fromarray(photos.astronaut()).resize(size)
    path = saved(tmp_path / "a.png", image)
    cut = fit(*size, assign(*size, table_for(256, DataSection()), True))
    tensor = pixels(path, cut, False, "white")
    assert tensor.shape == (3, cut.size[1], cut.size[0])
    assert tensor.dtype == torch.float32
    assert tensor.min() >= -1 and tensor.max() <= 1
    box = [cut.left, cut.top, cut.left + cut.size[0], cut.top + cut.size[1]]
    expected = image.resize(
        cut.scale_to, Image.Resampling.BOX if size[0] > 600 else Image.Resampling.BICUBIC
    ).crop(box)
    assert distance((tensor.permute(1, 2, 0) + 1) * 127.5, expected) < 6


def test_mirrored_pixels_are_the_mirror_image(tmp_path, photo):
    path, cut = saved(tmp_path / "a.png", photo), fit(*photo.size, (128, 128), (0.2, 0.7))
    straight, mirrored = (pixels(path, cut, flip, "white") for flip in (False, True))
    assert torch.equal(straight.flip(-1), mirrored)


def test_image_that_changed_its_size_is_noticed(tmp_path, photo):
    path, cut = saved(tmp_path / "a.png", photo), fit(100, 100, (64, 64))
    with pytest.raises(BadImage, match="100 x 100"):
        pixels(path, cut, False, "white")


def test_missing_image_is_noticed(tmp_path):
    with pytest.raises(BadImage, match="no longer there") as caught:
        open_rgb(tmp_path / "a.png", "white")
    assert caught.value.kind == "missing"
