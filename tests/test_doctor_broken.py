"""Hundreds of files as no program should write them: each is named, none is touched, nothing crashes."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from test_doctor import check

from sdtrainer import config as configs
from sdtrainer import planner
from sdtrainer.chores import CHORES
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset.crops import Crops
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.outlook import Outlook
from sdtrainer.ui.sections import Sections
from sdtrainer.workspace import Workspace

EXTENSIONS = {
    "png": "PNG",
    "jpg": "JPEG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "avif": "AVIF",
}
QUARTERS = (1, 2, 3)
SKIPPED = ("undecodable", "truncated", "empty-file", "too-large", "link")
SIDE = 96


def encoded(name: str, seed: int = 0, **how: Any) -> bytes:
    """Return a picture of its own, by chance, in a format."""
    rng, file = random.Random(seed), io.BytesIO()
    image = Image.frombytes("RGB", (24, 24), rng.randbytes(24 * 24 * 3)).resize((SIDE, SIDE))
    image.save(file, name, **how)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def broken_files() -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of files that must be named in the report."""
    for number, (extension, name) in enumerate(EXTENSIONS.items()):
        whole = encoded(name, number)
        for quarter in QUARTERS:
            yield f"cut/{extension} {quarter} quarters.{extension}", whole[: len(whole) * quarter // 4]
        for length in (0, 1, 7, 16):
            yield f"short/{length} bytes.{extension}", whole[:length]
        yield (
            f"magic/{extension} zeros.{extension}",
            bytes(4) + whole[4:] if extension != "tiff" else bytes(64),
        )
        yield f"magic/{extension} noise.{extension}", random.Random(number).randbytes(500)
        yield f"magic/{extension} is a text.{extension}", b"<html>not found</html>"
        for other in EXTENSIONS:
            if other != extension:
                yield f"named/{extension} as {other}.{other}", whole
    png = encoded("PNG", 99)
    for side in (20_000, 60_000, 2**31 - 1):
        header = struct.pack(">II", side, side) + png[24:29]
        yield f"huge/{side}.png", png[:8] + chunk(b"IHDR", header) + png[33:]
    yield "huge/none.png", png[:8] + chunk(b"IHDR", struct.pack(">II", 0, 0) + png[24:29]) + png[33:]
    yield "huge/lies.png", png[:8] + chunk(b"IHDR", struct.pack(">II", 4000, 4000) + png[24:29]) + png[33:]
    for number in range(40):
        yield f"gaps/{number}.png", _with_gap(encoded("PNG", 200 + number), number)


def _with_gap(content: bytes, seed: int) -> bytes:
    """Return a PNG in whose compressed pixels some bytes are others."""
    rng, spoilt = random.Random(seed), bytearray(content)
    for place in rng.sample(range(60, len(content) - 30), 40):
        spoilt[place] ^= 0x55
    return bytes(spoilt)


def odd_files() -> Iterator[tuple[str, bytes]]:
    """Yield files that are odd and can be used all the same."""
    names = [
        "spaces  and   dots...png",
        "ünïcödé.png",
        "日本語.png",
        "emoji 🐈.png",
        "quo'te\".png",
        "a,b;c.png",
    ]
    names += [
        "new\nline.png",
        "-dash.png",
        "%20%s{0}.png",
        "x" * 200 + ".png",
        "<b>bold</b>.png",
        "tab\t.png",
    ]
    names += ["CAPITALS.PNG", "two.dots.png", "CON.png", "$HOME.png", "*.png", "café.png"]
    yield from ((f"names/{name}", encoded("PNG", 300 + number)) for number, name in enumerate(names))
    for number, mode in enumerate(("1", "L", "LA", "P", "I;16", "RGBA", "CMYK", "F")):
        extension = "png" if mode in ("1", "L", "LA", "P", "I;16", "RGBA") else "tiff"
        file = io.BytesIO()
        source = Image.open(io.BytesIO(encoded("PNG", 400 + number)))
        source = source.convert("L").convert("I").point(lambda v: v * 256) if mode == "I;16" else source
        source.convert(mode).save(file, EXTENSIONS[extension])
        yield f"modes/{mode.replace(';', '-')}.{extension}", file.getvalue()
    for number in range(30):
        exif = b"Exif\0\0" + random.Random(number).randbytes(20 + 10 * number)
        yield f"exif/{number}.jpg", encoded("JPEG", 500 + number, exif=exif)
    for number in range(10):
        noise = random.Random(number).randbytes(200)
        yield f"profile/{number}.jpg", encoded("JPEG", 600 + number, icc_profile=noise)
    for number, size in enumerate(((1, 1), (1, 900), (900, 1), (2, 2), (7, 300))):
        file = io.BytesIO()
        Image.new("RGB", size, (number * 40, 9, 9)).save(file, "PNG")
        yield f"sizes/{number}.png", file.getvalue()


def captions() -> Iterator[bytes]:
    text = "a café in München"
    yield from (
        text.encode(e) for e in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-32", "cp037")
    )
    yield from (
        b"",
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\n\n\n",
        b"x" * 70000,
        b"\xed\xa0\x80",
        b"a\0b\0",
    )
    yield from (random.Random(seed).randbytes(60) for seed in range(40))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("broken")
    broken = dict(broken_files())
    files = broken | dict(odd_files())
    for number, caption in enumerate(captions()):
        files[f"captions/{number}.png"] = encoded("PNG", 700 + number)
        files[f"captions/{number}.txt"] = caption
    files |= {
        "metadata.jsonl": b'{"file_name": 3}\n{torn\n\xff\n[]',
        "deep/metadata.csv": b'\xff\xfe"file_name',
    }
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "cut" / "loop").symlink_to(folder)
    (folder / "names" / "out.png").symlink_to("/etc/passwd")
    with open(os.fsencode(folder) + b"/names/\xff\xfe.png", "wb") as file:
        file.write(encoded("PNG", 999))
    (folder / "folder.png").mkdir()
    return folder, [*broken, "cut/loop", "names/out.png", "names/??.png"]


def state(folder: Path) -> dict[bytes, Any]:
    found = {}
    for home, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            path = os.path.join(home, name)
            stat = os.lstat(path)
            with open(path, "rb") as file:
                found[path] = (hashlib.sha256(file.read()).hexdigest(), stat.st_mtime_ns, stat.st_mode)
    return found


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_broken_file_is_named_and_none_is_touched(
    tree: tuple[Path, list[str]], workspace: Workspace
) -> None:
    folder, broken = tree
    before = state(folder)
    assert len(before) > 300 and len(broken) > 150
    made = check(folder, workspace)
    named = {
        group["name"]: {file for finding in group["findings"] for file in finding["files"]}
        for group in made["groups"]
    }
    assert [path for path in broken if not any(path in files for files in named.values())] == []
    odd, skipped = [path for path, _ in odd_files()], set().union(*(named.get(name, ()) for name in SKIPPED))
    assert len(odd) > 60 and skipped & set(odd) == set(), "what is only odd can be used"
    assert check(folder, workspace) == made, "a second look says the same"
    assert state(folder) == before


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_captions_and_crops_are_made_for_what_can_be_used_and_no_file_is_touched(
    tree: tuple[Path, list[str]], workspace: Workspace
) -> None:
    folder, before = tree[0], state(tree[0])
    desk = Desk(workspace, Access(workspace))
    crops, chore = Crops(desk, Sections("parts")), CHORES["caption"]
    with gr.Blocks():
        crops.sections.build({crops.title: crops.build})
    settings = chore.check({"folder": str(folder), "captioner": "file-name", "overwrite": True})
    for _ in chore.do(settings, workspace):
        pass
    config = configs.build({"data": {"folder": str(folder)}})
    outlook = Outlook({}, config=config, census=planner.look(config, workspace).census)
    samples = outlook.census.samples
    assert len(samples) > 150 and sum(bool(sample.caption) for sample in samples) > 100
    for sample in samples:
        shown = crops._view(outlook, sample.path)
        assert shown[crops.chosen] == sample.path and "the model sees" in shown[crops.facts]
    assert state(folder) == before
