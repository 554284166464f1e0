"""Scanning real files in every layout, broken ones among them; the files are never touched."""

import json
import os
import struct
import time
import zlib

import pytest
from PIL import Image

from sdtrainer.data.census import split
from sdtrainer.data.images import verify
from sdtrainer.data.overlay import Overlay
from sdtrainer.data.scan import scan
from sdtrainer.data.section import DataSection
from sdtrainer.section import UserError

AUTO = DataSection()


def picture(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path, **options)
    return path


def captions(census):
    return {sample.path: sample.caption for sample in census.samples}


def kinds(census):
    return {(problem.file, problem.kind, problem.level) for problem in census.problems}


def test_flat_folder_with_text_files(tmp_path):
    for name in ("a10.png", "a2.jpg", "A1.webp"):
        picture(tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}\n")
    census = scan(tmp_path, AUTO)
    assert [sample.path for sample in census.samples] == ["A1.webp", "a2.jpg", "a10.png"]
    assert captions(census)["a10.png"] == "caption of a10.png"
    assert census.layout == "3 images in 1 folder, captions from .txt files"
    assert census.problems == ()


def test_kohya_folders_give_repeats_and_class_words(tmp_path):
    picture(tmp_path / "10_ohwx man" / "a.png")
    picture(tmp_path / "3_dog" / "deep" / "b.png").with_suffix(".caption").write_text("a dog")
    picture(tmp_path / "plain" / "c.png").with_suffix(".txt").write_text("a tree")
    census = scan(tmp_path, AUTO)
    found = {s.path: (s.repeats, s.class_word, s.caption) for s in census.samples}
    assert found == {
        "3_dog/deep/b.png": (3, "dog", "a dog"),
        "10_ohwx man/a.png": (10, "ohwx man", ""),
        "plain/c.png": (1, "", "a tree"),
    }
    assert census.layout.startswith("3 images in 2 kohya folders and 1 more, captions from")
    assert ("10_ohwx man/a.png", "caption missing", "warning") in kinds(census)


def test_kohya_folders_that_never_had_captions_are_no_problem(tmp_path):
    picture(tmp_path / "10_cat" / "a.png")
    census = scan(tmp_path, AUTO)
    assert census.problems == ()
    assert census.layout == "1 image in 1 kohya folder, captions from folder names"


def test_year_in_a_folder_name_is_no_number_of_repeats(tmp_path):
    picture(tmp_path / "2024_holiday" / "a.png")
    census = scan(tmp_path, AUTO)
    assert census.samples[0].repeats == 1
    assert ("2024_holiday", "folder", "warning") in kinds(census)


@pytest.mark.parametrize("field", ["text", "caption"])
def test_metadata_jsonl_reaches_into_folders(tmp_path, field):
    picture(tmp_path / "train" / "b.png")
    picture(tmp_path / "a.png")
    rows = [{"file_name": "train/b.png", field: "in b\u2028here"}, {"file_name": "a.png", field: "in a"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join([*lines, "{broken", '{"file_name": "gone.png", "text": "x"}'])
    )
    census = scan(tmp_path, AUTO)
    assert captions(census) == {"a.png": "in a", "train/b.png": "in b here"}
    assert ("metadata.jsonl", "caption unreadable", "warning") in kinds(census)
    assert ("metadata.jsonl", "orphan caption", "warning") in kinds(census)


def test_metadata_csv_in_a_subfolder(tmp_path):
    picture(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "metadata.csv").write_text(
        'file_name,text\na.png,"a dog, running"\n', encoding="utf-8-sig"
    )
    census = scan(tmp_path, AUTO)
    assert captions(census) == {"set/a.png": "a dog, running"}
    assert census.layout == "1 image in 1 folder, captions from metadata.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_files_of_any_encoding(tmp_path, encoding):
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes(
        "caf\u00e9 \u00fcber\r\nline two".encode(encoding)
    )
    assert captions(scan(tmp_path, AUTO)) == {"a.png": "caf\u00e9 \u00fcber line two"}


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("00012-0-a dog on grass.png", "a dog on grass"),
        ("03_red_car.png", "red car"),
        ("a dog (2).png", "a dog"),
        ("red_car_17.png", "red car"),
    ],
)
def test_file_names_become_captions_as_in_a1111(tmp_path, name, caption):
    picture(tmp_path / name)
    assert captions(scan(tmp_path, AUTO)) == {name: caption}
    assert captions(scan(tmp_path, DataSection(caption_from="file name"))) == {name: caption}


@pytest.mark.parametrize(
    "name", ["IMG_20240101_123456.png", "DSC0012.png", "a8f3c2e1 b4d.png", "photo.png", "1.png"]
)
def test_camera_names_are_no_captions(tmp_path, name):
    picture(tmp_path / name)
    census = scan(tmp_path, AUTO)
    assert captions(census) == {name: ""}
    assert ("", "caption missing", "warning") in kinds(census)


def test_each_source_can_be_chosen(tmp_path):
    picture(tmp_path / "5_cat" / "red chair.png").with_suffix(".txt").write_text("from text")
    (tmp_path / "5_cat" / "metadata.jsonl").write_text('{"file_name": "red chair.png", "text": "from table"}')
    expected = {
        "auto": "from text",
        "sidecar": "from text",
        "metadata": "from table",
        "file name": "red chair",
        "folder name": "cat",
        "none": "",
    }
    for source, caption in expected.items():
        assert captions(scan(tmp_path, DataSection(caption_from=source))) == {"5_cat/red chair.png": caption}


def test_edited_captions_come_first_but_not_against_the_users_choice(tmp_path):
    picture(tmp_path / "set" / "a.png").with_suffix(".txt").write_text("old")
    overlay = Overlay(tmp_path / "edits.jsonl", tmp_path)
    overlay.apply("Caption", {"a.png": "new"})
    assert captions(scan(tmp_path / "set", AUTO, overlay)) == {"a.png": "new"}
    assert captions(scan(tmp_path / "set", DataSection(caption_from="none"), overlay)) == {"a.png": ""}
    assert scan(tmp_path / "set", AUTO, overlay).layout.endswith("captions from the app")


def test_turned_photos_are_measured_as_seen(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for extension in ("jpg", "png", "webp"):
            picture(tmp_path / f"{orientation}.{extension}", (40, 30), exif=exif)
    census = scan(tmp_path, AUTO)
    assert len(census.samples) == 24
    for sample in census.samples:
        turned = int(sample.path[0]) >= 5
        assert (sample.width, sample.height) == ((30, 40) if turned else (40, 30)), sample.path


def test_bad_files_are_named_and_never_fatal(tmp_path):
    picture(tmp_path / "good.png").with_suffix(".txt").write_text("fine")
    picture(tmp_path / "renamed.jpg", format="PNG")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "noise.jpg").write_bytes(os.urandom(2000))
    (tmp_path / "stub.png").write_bytes((tmp_path / "good.png").read_bytes()[:20])
    (tmp_path / "phone.heic").write_bytes(b"xx")
    (tmp_path / "lonely.txt").write_text("no image")
    (tmp_path / "README.txt").write_text("notes are left alone")
    (tmp_path / "empty.txt").write_text("a caption whose image is broken is no orphan")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "good.png").write_bytes(b"x")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    picture(tmp_path / "twin.png")
    picture(tmp_path / "twin.jpg").with_suffix(".txt").write_text("shared")
    census = scan(tmp_path, AUTO)
    assert set(captions(census)) == {"good.png", "renamed.jpg", "moving.gif", "twin.png", "twin.jpg"}
    assert kinds(census) == {
        ("empty.png", "empty file", "skipped"),
        ("noise.jpg", "undecodable", "skipped"),
        ("stub.png", "truncated", "skipped"),
        ("phone.heic", "undecodable", "skipped"),
        ("renamed.jpg", "wrong extension", "warning"),
        ("moving.gif", "animated", "warning"),
        ("lonely.txt", "orphan caption", "warning"),
        ("twin.jpg", "duplicate name", "warning"),
        ("renamed.jpg", "caption missing", "warning"),
        ("moving.gif", "caption missing", "warning"),
    }
    assert captions(census)["twin.png"] == captions(census)["twin.jpg"] == "shared"


def test_gigapixel_image_is_refused_by_its_header(tmp_path):
    picture(tmp_path / "good.png")
    content = bytearray((tmp_path / "good.png").read_bytes())
    content[16:24] = struct.pack(">II", 40000, 40000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "giant.png").write_bytes(content)
    census = scan(tmp_path, AUTO)
    assert ("giant.png", "too large", "skipped") in kinds(census)


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    picture(tmp_path / "set" / "a.png")
    picture(tmp_path / "private" / "b.png")
    (tmp_path / "private" / "secret.txt").write_text("secret")
    (tmp_path / "set" / "out.png").symlink_to(tmp_path / "private" / "b.png")
    (tmp_path / "set" / "a.txt").symlink_to(tmp_path / "private" / "secret.txt")
    (tmp_path / "set" / "folder").symlink_to(tmp_path / "private")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "nowhere.png").symlink_to(tmp_path / "none")
    (tmp_path / "set" / "same.png").symlink_to(tmp_path / "set" / "a.png")
    census = scan(tmp_path / "set", AUTO)
    assert captions(census) == {"a.png": "", "same.png": ""}
    links = {file for file, kind, level in kinds(census) if (kind, level) == ("link", "skipped")}
    assert links == {"out.png", "a.txt", "folder", "loop", "nowhere.png"}


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_an_image_that_is_cut_short_is_named_by_the_scan(tmp_path, extension):
    whole = picture(tmp_path / f"whole.{extension}", (200, 200)).read_bytes()
    (tmp_path / f"cut.{extension}").write_bytes(whole[:-300])
    (tmp_path / f"with notes.{extension}").write_bytes(whole + b"notes" * 100)
    census = scan(tmp_path, AUTO)
    assert set(captions(census)) == {f"whole.{extension}", f"with notes.{extension}"}
    assert (f"cut.{extension}", "truncated", "skipped") in kinds(census)


def test_damage_inside_passes_the_scan_and_fails_verification(tmp_path):
    good = picture(tmp_path / "good.png", (200, 200))
    content = good.read_bytes()
    (tmp_path / "bad.png").write_bytes(content[:60] + b"\0" * 40 + content[100:])
    bad, whole = scan(tmp_path, AUTO).samples
    problem = verify(bad)
    assert problem and (problem.file, problem.level) == ("bad.png", "skipped")
    assert verify(whole) is None


@pytest.mark.parametrize("make", ["missing", "file", "empty", "only bad", "unset"])
def test_unusable_folder_is_an_error_at_its_field(tmp_path, make):
    folder = tmp_path / "images"
    if make == "file":
        folder.write_text("")
    elif make in ("empty", "only bad"):
        folder.mkdir()
        if make == "only bad":
            (folder / "bad.png").write_bytes(b"bad")
    elif make == "unset":
        folder = type(tmp_path)("")
    with pytest.raises(UserError) as caught:
        scan(folder, AUTO)
    assert caught.value.path == "data.folder" and caught.value.hint
    assert make == "unset" or str(folder) in caught.value.what
    assert make != "only bad" or "bad.png" in caught.value.what


def test_scanning_changes_nothing(tmp_path):
    for index in range(3):
        picture(tmp_path / "10_x" / f"{index}.png").with_suffix(".txt").write_text("tag")
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    before = [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    scan(tmp_path, AUTO)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    assert [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before


def test_scan_reads_hundreds_of_headers_a_second(tmp_path):
    content = picture(tmp_path / "0.jpg", (1600, 1200)).read_bytes()
    for index in range(1, 500):
        (tmp_path / f"{index}.jpg").write_bytes(content)
    start = time.perf_counter()
    assert len(scan(tmp_path, AUTO).samples) == 500
    assert time.perf_counter() - start < 2.5  # 0.2 s on an idle core


def test_validation_part_is_stable_and_disjoint(tmp_path):
    for index in range(20):
        picture(tmp_path / f"{index}.png")
    census = scan(tmp_path, AUTO)
    training, validation = split(census, 0.2)
    assert len(validation.samples) == 4
    assert sorted(s.path for s in validation.samples) != sorted(s.path for s in census.samples)[:4]
    assert sorted(s.path for s in training.samples + validation.samples) == sorted(
        s.path for s in census.samples
    )
    assert split(census, 0)[1].samples == ()
    picture(tmp_path / "new.png")
    later = split(scan(tmp_path, AUTO), 0.2)[1]
    assert len({s.path for s in later.samples} & {s.path for s in validation.samples}) >= 3
