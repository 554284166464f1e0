"""Captions edited in the app: kept apart from the images, written beside them only on request, and undone."""

import json

import pytest
from PIL import Image

from sdtrainer import files
from sdtrainer.data.overlay import Overlay, overlay_for
from sdtrainer.data.scan import scan
from sdtrainer.data.section import DataSection
from sdtrainer.section import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for name in ("a.png", "twin.png", "twin.jpg", "sub/b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / "set" / name)
    (tmp_path / "set" / "a.txt").write_bytes("alt \u00fc\n".encode("utf-16"))
    return tmp_path / "set"


def test_edits_are_found_again(tmp_path):
    overlay = Overlay(tmp_path / "edits.json")
    overlay.set("a.png", " a dog ")
    overlay.update({"b.png": "", "c.png": "\u732b"})
    again = Overlay(tmp_path / "edits.json")
    assert (again.caption("a.png"), again.caption("b.png"), again.caption("c.png")) == ("a dog", "", "\u732b")
    again.drop("a.png", "never.png")
    assert Overlay(tmp_path / "edits.json").caption("a.png") is None


def test_two_writers_do_not_lose_each_others_edits(tmp_path):
    page, captioner = Overlay(tmp_path / "edits.json"), Overlay(tmp_path / "edits.json")
    page.set("a.png", "by hand")
    captioner.set("b.png", "by machine")
    assert Overlay(tmp_path / "edits.json").captions == {"a.png": "by hand", "b.png": "by machine"}


def test_one_overlay_per_folder_however_it_is_written(tmp_path, folder):
    overlay_for(tmp_path, folder).set("a.png", "x")
    assert overlay_for(tmp_path, folder / "sub" / "..").caption("a.png") == "x"
    assert overlay_for(tmp_path, folder / "sub").caption("a.png") is None
    assert [path.suffix for path in (tmp_path / "captions").iterdir()] == [".json"]


def test_damaged_overlay_is_an_error_and_is_kept(tmp_path):
    (tmp_path / "edits.json").write_text('{"captions": {')
    with pytest.raises(UserError, match="rename"):
        Overlay(tmp_path / "edits.json")
    assert (tmp_path / "edits.json").read_text() == '{"captions": {'


def test_writing_beside_the_images_and_back(tmp_path, folder):
    overlay = overlay_for(tmp_path, folder)
    edits = {"a.png": "new \u00fc", "twin.png": "left", "twin.jpg": "right", "sub/b.png": "deep"}
    overlay.update(edits)
    written = overlay.write_into_folder(scan(folder, DataSection(), overlay))
    assert {path.name for path in written} == {"a.txt", "twin.png.txt", "twin.jpg.txt", "b.txt"}
    assert (folder / "a.txt").read_bytes() == "new \u00fc".encode()
    assert overlay.captions == {}
    assert {s.path: s.caption for s in scan(folder, DataSection(), overlay).samples} == edits

    (folder / "sub" / "b.txt").write_text("changed since by hand")
    Overlay(overlay.path).undo(folder)
    assert (folder / "a.txt").read_text("utf-8") == "alt \u00fc\n"
    assert not (folder / "twin.png.txt").exists()
    assert (folder / "sub" / "b.txt").read_text() == "changed since by hand"


def test_writing_twice_is_undone_to_the_first_text(tmp_path, folder):
    overlay = overlay_for(tmp_path, folder)
    for text in ("second", "third"):
        overlay.set("a.png", text)
        overlay.write_into_folder(scan(folder, DataSection(), overlay))
    overlay.undo(folder)
    assert (folder / "a.txt").read_text("utf-8") == "alt \u00fc\n"


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    target = tmp_path / "file.json"
    files.write_bytes(target, b"old")

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_overlay_file_is_plain_json(tmp_path):
    Overlay(tmp_path / "edits.json").set("a.png", "\u00fc")
    assert json.loads((tmp_path / "edits.json").read_text("utf-8"))["captions"] == {"a.png": "\u00fc"}


def test_a_file_of_captions_alone_is_read_and_gets_the_other_tables(tmp_path):
    (tmp_path / "edits.json").write_text('{"schema": 1, "captions": {"a.png": "a dog"}, "replaced": {}}')
    overlay = Overlay(tmp_path / "edits.json")
    assert (overlay.caption("a.png"), overlay.entry("crops", "a.png")) == ("a dog", None)
    overlay.lay("crops", {"a.png": [0.1, 0.0, 0.9, 1.0], "b.png": [0, 0, 1, 1]})
    overlay.lay("crops", {"b.png": None})
    again = Overlay(tmp_path / "edits.json")
    assert again.entries("crops") == {"a.png": [0.1, 0.0, 0.9, 1.0]}
    assert again.caption("a.png") == "a dog"
