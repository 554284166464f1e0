"""The doctor finds each fault that was put into a good set, its fixes answer it, and undoing them brings it
back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from skimage import data as photos

from sdtrainer import config as configs
from sdtrainer import planner
from sdtrainer.__main__ import main
from sdtrainer.chores import CHORES
from sdtrainer.data.cache import Cache
from sdtrainer.data.items import plan_items
from sdtrainer.data.loading import _decoded
from sdtrainer.data.overlay import overlay_for
from sdtrainer.data.stores import LatentStore
from sdtrainer.doctor import report, work
from sdtrainer.doctor.look import look_at, phash
from sdtrainer.doctor.twins import groups
from sdtrainer.doctor.words import style
from sdtrainer.section import UserError
from sdtrainer.workspace import Workspace

SIDE = 256
SOURCES = ("astronaut", "coffee", "chelsea", "grass", "gravel", "rocket")


def crops() -> Iterator[Image.Image]:
    """Two parts of each of six photographs, none overlapping."""
    for name in SOURCES:
        photo = Image.fromarray(getattr(photos, name)()).convert("RGB")
        half = photo.width // 2
        for left in (0, photo.width - half):
            yield ImageOps.fit(photo.crop((left, 0, left + half, photo.height)), (SIDE, SIDE))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for number, photo in enumerate(crops()):
        photo.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a zib, the picture of number {number}")
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "set")
    return tmp_path / "set"


def check(folder: Path, workspace: Workspace, **settings: Any) -> report.Report:
    values = {"folder": str(folder), "trigger": "zib", "resolution": SIDE, "batch_size": 1} | settings
    doing = CHORES["check"].do(CHORES["check"].check(values), workspace)
    while True:
        try:
            next(doing)
        except StopIteration as end:
            return json.loads(json.dumps(end.value))


def found(made: report.Report) -> dict[str, list[dict[str, Any]]]:
    return {group["name"]: group["findings"] for group in made["groups"]}


def redraw(change: Callable[[Image.Image], Image.Image], **how: Any) -> Callable[[Path], None]:
    """Return what changes picture 03 of a folder."""

    def spoil(folder: Path) -> None:
        change(Image.open(folder / "03.png")).save(folder / "03.png", **how)

    return spoil


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def rewrite_all(text: Callable[[int], str]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for number, file in enumerate(sorted(folder.glob("*.txt"))):
            file.write_text(text(number), encoding="utf-8")

    return spoil


def hole(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    clear.paste((0, 0, 0, 0), (20, 20, 120, 120))
    return clear


def written_below(image: Image.Image) -> Image.Image:
    wide = ImageOps.expand(image, (0, 0, 0, 44), "white")
    ImageDraw.Draw(wide).text((10, SIDE + 12), "words below a picture", fill="black", font_size=20)
    return wide


def turned(image: Image.Image) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


def copied(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        Image.open(folder / "03.png").save(folder / name, quality=60)
        shutil.copy(folder / "03.txt", (folder / name).with_suffix(".txt"))

    return spoil


def held_out(folder: Path) -> None:
    (folder.parent / "held").mkdir()
    Image.open(folder / "03.png").save(folder.parent / "held" / "again.jpg")


def two_folders(folder: Path) -> None:
    (folder / "9_few").mkdir()
    for name in ("00", "01", "02", "03"):
        for extension in (".png", ".txt"):
            (folder / f"{name}{extension}").rename(folder / "9_few" / f"{name}{extension}")


def on_one_ground(folder: Path) -> None:
    for file in folder.glob("*.png"):
        ground = Image.new("RGB", (SIDE, SIDE), "#d0d0d0")
        ImageDraw.Draw(ground).bitmap((60, 40), Image.open(file).convert("L").resize((120, 150)), "#803010")
        ground.save(file)


def cut_all(folder: Path) -> None:
    for file in folder.glob("*.png"):
        Image.open(file).crop((0, 0, SIDE, SIDE * 3 // 4)).resize((400, 300)).save(file)


def profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def cut(folder: Path) -> None:
    content = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(content[: len(content) // 2])


FAULTS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "undecodable": (write("03.png", b"no picture at all"), {}),
    "truncated": (cut, {}),
    "empty-file": (write("03.png", b""), {}),
    "too-large": (lambda f: write("03.png", gigantic((f / "03.png").read_bytes()))(f), {}),
    "link": (lambda f: (f / "03 link.png").symlink_to("/nowhere/03.png"), {}),
    "folder": (lambda f: ((f / "0_none").mkdir(), shutil.copy(f / "03.png", f / "0_none" / "03.png")), {}),
    "mask": (lambda f: Image.new("L", (9, 99)).save(f / "03-masklabel.png"), {}),
    "wrong-extension": (redraw(lambda i: i, format="JPEG", quality=95), {}),
    "animated": (redraw(lambda i: i, save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]), {}),
    "duplicate-name": (lambda f: shutil.move(f / "04.png", f / "03.webp"), {}),
    "orphan-caption": (write("nobody.txt", "a zib that is not there"), {}),
    "caption-unreadable": (write("03.txt", "long " * 20000), {}),
    "transparent": (redraw(hole), {}),
    "small": (redraw(lambda i: i.resize((100, 100))), {}),
    "extreme": (redraw(lambda i: i.resize((1100, 256))), {}),
    "buckets": (redraw(lambda i: i.resize((400, 256))), {"batch_size": 2}),
    "profile": (redraw(lambda i: i, icc_profile=profile()), {}),
    "mode": (redraw(lambda i: i.convert("L")), {}),
    "turned": (lambda f: Image.open(f / "03.png").save(f / "03.png", **turned(None)), {}),
    "leaks": (held_out, {"validation_folder": "../held"}),
    "copies": (copied("03 again.jpg"), {}),
    "blurred": (redraw(lambda i: i.filter(ImageFilter.GaussianBlur(5))), {}),
    "light": (redraw(lambda i: i.point(lambda v: v // 16)), {}),
    "frames": (redraw(lambda i: ImageOps.expand(i, 25, "orange")), {}),
    "bands": (redraw(written_below), {}),
    "missing": (lambda f: (f / "03.txt").unlink(), {}),
    "near-empty": (write("03.txt", "x."), {}),
    "too-long": (write("03.txt", "a zib, " + "one more word of it " * 30), {}),
    "trigger": (write("03.txt", "a picture of number 3"), {}),
    "identical": (rewrite_all(lambda number: "a zib"), {}),
    "broken": (write("03.txt", "a zib in a cafÃ© in MÃ¼nchen"), {}),
    "mixed": (
        rewrite_all(lambda n: f"zib, tag {n}, red" if n % 2 else f"a zib that was seen as number {n}"),
        {},
    ),
    "count": (lambda f: [p.unlink() for p in sorted(f.iterdir())[8:]], {}),
    "ground": (on_one_ground, {}),
    "shape": (cut_all, {}),
    "weight": (two_folders, {}),
}
WHOLE = {"identical", "count", "ground", "shape", "weight", "mixed"}
"""What concerns the whole set, and names no picture or many."""


def gigantic(content: bytes) -> bytes:
    """Return the PNG with a header that speaks of 60,000 x 60,000 pixels."""
    import struct
    import zlib

    header = content[12:16] + struct.pack(">II", 60000, 60000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {check.name for check in report.CHECKS} - set(FAULTS) == {"missing-file"}


def test_a_good_set_has_nothing_to_mend(good: Path, workspace: Workspace) -> None:
    made = check(good, workspace)
    assert found(made) == {} and report.light(made) == "green"
    assert report.counted(made) == "12 pictures. Nothing to mend."


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_fix_answers_it(folder: Path, workspace: Workspace, name: str) -> None:
    spoil, settings = FAULTS[name]
    spoil(folder)
    if "validation_folder" in settings:
        settings = {"validation_folder": str(folder.parent / "held")}
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    made = check(folder, workspace, **settings)
    findings = found(made)[name]
    assert len(findings) == 1 or name in ("ground", "shape")
    if name not in WHOLE:
        about = {"orphan-caption": "nobody.txt", "folder": "0_none/03.png"}.get(name)
        assert any("03" in file or file == about for file in findings[0]["files"])
    overlay = overlay_for(workspace.root, folder)
    for number, fix in enumerate(findings[0]["fixes"]):
        overlay.apply(fix["label"], fix["values"], fix["table"])
        assert name not in found(report.open_findings(made, overlay)), f"fix {number}: shown again at once"
        assert name not in found(check(folder, workspace, **settings)), f"fix {number}: found again"
        overlay.undo()
        assert name in found(check(folder, workspace, **settings)), "undone"
    overlay.apply("Ignored", {(findings[0]["files"] or [""])[0]: [name]}, "ignored")
    assert name not in found(check(folder, workspace, **settings))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_left_out_is_not_trained_on(folder: Path, workspace: Workspace) -> None:
    overlay_for(workspace.root, folder).apply("Left out", {"03.png": True}, "left_out")
    census = planner.look(configs.build({"data": {"folder": str(folder)}}), workspace).census
    assert len(census.samples) == 11 and "03.png" not in {sample.path for sample in census.samples}
    assert [problem.kind for problem in census.problems] == ["left out"]


def test_a_chosen_background_is_trained_on(folder: Path, workspace: Workspace) -> None:
    redraw(hole)(folder)
    config, store = configs.build({"data": {"folder": str(folder)}}), LatentStore(Cache(folder / "c"), "", "")
    corners, keys = [], set()
    for colour in (None, "black", "#ff0000"):
        overlay_for(workspace.root, folder).apply("Background", {"03.png": colour}, "backgrounds")
        sample = planner.look(config, workspace).census.samples[3]
        (item,) = plan_items([sample], config.data, [SIDE])
        corners.append(_decoded(item, False)[:, 60, 60].tolist())
        keys.add(store.key(item, False))
    assert corners == [[1, 1, 1], [-1, -1, -1], [1, -1, -1]] and len(keys) == 3


def test_a_second_look_decodes_nothing(
    folder: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = check(folder, workspace)
    monkeypatch.setattr("sdtrainer.doctor.looks.open_small", None)
    assert check(folder, workspace) == first
    assert report.newest(workspace.root, folder)["state"] == first["state"]


def test_without_looking_inside_it_says_so(folder: Path, workspace: Workspace) -> None:
    redraw(lambda image: image.filter(ImageFilter.GaussianBlur(5)))(folder)
    made = check(folder, workspace, look_inside=False)
    assert found(made) == {} and "not looked for yet" in report.verdict(made)


def test_near_copies_are_found_whatever_was_done_to_them() -> None:
    originals = list(crops())
    copies = {}
    for number, image in enumerate(originals):
        copies[number, "as it is"] = image
        copies[number, "smaller"] = image.resize((150, 150))
        copies[number, "brighter"] = image.point(lambda value: min(255, value + 6))
    made = groups({name: look_at(image) for name, image in copies.items()})
    assert sorted(made) == [[(n, how) for how in ("as it is", "smaller", "brighter")] for n in range(12)]


def test_the_search_for_copies_misses_none_that_comparing_all_would_find() -> None:
    rng = np.random.default_rng(0)
    image = np.asarray(next(crops()).convert("L"), np.float32)
    base = look_at(next(crops()))
    looks = {
        number: base._replace(phash=phash(image + rng.normal(0, level, image.shape).astype(np.float32)))
        for number, level in enumerate(np.linspace(0, 300, 150))
    }
    near = {
        frozenset((a, b))
        for a in looks
        for b in looks
        if a < b and (int(looks[a].phash, 16) ^ int(looks[b].phash, 16)).bit_count() <= 6
    }
    together = {frozenset((a, b)) for group in groups(looks) for a in group for b in group if a < b}
    assert near and near <= together < {frozenset((a, b)) for a in looks for b in looks}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1girl, red hair, smile, outdoors", "tags"),
        ("a woman with red hair smiles at the camera", "sentence"),
        ("a woman with red hair, who smiles at the camera, outdoors", "sentence"),
        ("zib", ""),
        ("", ""),
    ],
)
def test_tags_and_sentences_are_told_apart(text: str, kind: str) -> None:
    assert style(text) == kind


def test_the_short_caption_ends_with_a_whole_word(folder: Path, workspace: Workspace) -> None:
    text = "a zib, " + ", ".join(f"extraordinarily remarkable detail {n}" for n in range(40))
    (folder / "03.txt").write_text(text)
    (finding,) = found(check(folder, workspace))["too-long"]
    short = finding["fixes"][0]["values"]["03.png"]
    assert text.startswith(short) and text[len(short)] in " ," and 60 < len(short) < len(text)


def test_the_command_line_tells_and_answers_in_json(
    folder: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(workspace.root))
    write("03.png", b"")(folder)
    words = ["check", str(folder), "--goal", "style", "--resolution", "256", "--trigger", "zib"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("YELLOW: 11 pictures. Worth a look: empty files (1)") and "03.png" in told
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {group["name"] for group in made["groups"]} == {"empty-file", "count"}
    with pytest.raises(UserError, match="does not exist"):
        check(folder / "nothing", workspace)


def test_a_report_that_cannot_be_read_is_none(folder: Path, workspace: Workspace) -> None:
    assert report.newest(workspace.root, folder) is None
    check(folder, workspace)
    report.file_of(workspace.root, folder).write_text("{torn")
    assert report.newest(workspace.root, folder) is None
    assert work.told(check(folder, workspace))


def test_a_finding_about_the_whole_set_is_not_counted_as_one_picture() -> None:
    def said(*files: tuple[str, ...]) -> str:
        findings = [{"files": names} for names in files]
        group = {"title": "No caption", "level": "warn", "findings": findings}
        return report.verdict({"groups": [group], "looked_inside": True})

    assert said(()) == "Worth a look: no caption."
    assert said(("a.png",), ("b.png",)) == "Worth a look: no caption (2)."
    assert said(("a.png", "b.png", "c.png")) == "Worth a look: no caption (3)."


@pytest.mark.parametrize(
    ("files", "sentence", "name"),
    [
        ((), "All captions are alike.", ""),
        (("a.png",), "It is very dark.", "a.png"),
        (("a.png",), "a.png is no image.", ""),
        (("a.png", "b.png"), "2 captions are alike.", ""),
    ],
)
def test_a_sentence_gets_a_name_where_it_needs_one(files: tuple[str, ...], sentence: str, name: str) -> None:
    assert report.subject({"files": files, "sentence": sentence}) == name
