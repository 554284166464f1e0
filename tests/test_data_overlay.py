"""What is kept about pictures: apart from the images, undone and redone exactly, whole after a crash; written
beside the images only on request.
"""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdtrainer import files
from sdtrainer.data import journal
from sdtrainer.data.overlay import Overlay, overlay_for
from sdtrainer.data.scan import scan
from sdtrainer.data.section import DataSection
from sdtrainer.section import UserError

AUTO = DataSection()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for name in ("a.png", "twin.png", "twin.jpg", "sub/b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / "set" / name)
    (tmp_path / "set" / "a.txt").write_bytes("alt \u00fc\n".encode("utf-16"))
    return tmp_path / "set"


@pytest.fixture
def overlay(tmp_path):
    return Overlay(tmp_path / "edits.jsonl", tmp_path)


def again(overlay):
    """The same overlay after a restart."""
    from sdtrainer.data import overlay as module

    module._journals.pop(overlay.path)
    return Overlay(overlay.path, overlay.folder)


def test_edits_are_found_again(overlay):
    assert overlay.apply("Captions", {"a.png": " a dog ", "b.png": "", "c.png": "\u732b"}) == 3
    overlay = again(overlay)
    assert dict(overlay.captions) == {"a.png": "a dog", "b.png": "", "c.png": "\u732b"}
    assert overlay.apply("Captions", {"a.png": None, "never.png": None, "b.png": ""}) == 1
    assert again(overlay).caption("a.png") is None


TABLES = ("captions", "crops")
NAMES = st.sampled_from(["a.png", "b.png", "sub/c d.png"])
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(TABLES),
            st.dictionaries(NAMES, st.one_of(st.none(), st.text(max_size=6)), min_size=1),
            st.booleans(),
        ),
        st.sampled_from(["undo", "redo", "restart"]),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(steps=STEPS)
def test_undo_and_redo_restore_exactly_whatever_was_done_between(tmp_path_factory, steps):
    """Held against a plain list of states."""
    home = tmp_path_factory.mktemp("story")
    overlay = Overlay(home / "edits.jsonl", home)
    states, place = [state(overlay)], 0
    for number, step in enumerate(steps):
        match step:
            case "restart":
                overlay = again(overlay)
            case "undo":
                assert (overlay.undo() is not None) == (place > 0)
                place = max(0, place - 1)
            case "redo":
                assert (overlay.redo() is not None) == (place < len(states) - 1)
                place = min(len(states) - 1, place + 1)
            case table, values, _:
                if overlay.apply(f"Change {number}", values, table):
                    states = [*states[: place + 1], state(overlay)]
                    place += 1
        assert state(overlay) == states[place]
        assert (overlay.undoable is None) == (place == 0)
        assert (overlay.redoable is None) == (place == len(states) - 1)


def state(overlay):
    return {name: dict(overlay.entries(name)) for name in TABLES}


def test_what_is_typed_is_one_change_and_ends_where_another_begins(overlay):
    for text in ("a", "a d", "a dog"):
        overlay.apply("Caption of a.png", {"a.png": text}, joins=True)
    overlay.apply("Caption of b.png", {"b.png": "a cat"}, joins=True)
    overlay.apply("Caption of b.png", {"b.png": "a black cat"}, joins=True)
    overlay = again(overlay)
    assert [what for _, what in overlay.history] == ["Caption of b.png", "Caption of a.png"]
    assert overlay.undo().names == ("b.png",) and dict(overlay.captions) == {"a.png": "a dog"}
    overlay.undo()
    assert not overlay.captions and overlay.undoable is None and overlay.redoable == "Caption of a.png"
    overlay.redo()
    assert overlay.captions["a.png"] == "a dog"


def test_typing_back_to_the_beginning_leaves_nothing_to_undo(overlay):
    overlay.apply("Caption of a.png", {"a.png": "x"}, joins=True)
    overlay.apply("Caption of a.png", {"a.png": None}, joins=True)
    assert overlay.undoable is None and not overlay.captions


def test_a_long_history_loses_its_oldest_part_alone(overlay, monkeypatch):
    monkeypatch.setattr(journal, "MAX_CHANGES", 10)
    for number in range(50):
        overlay.apply(f"Change {number}", {f"{number}.png": "x"})
    overlay.undo()
    overlay = again(overlay)
    assert len(overlay.captions) == 49 and 5 <= len(overlay.history) <= 10
    assert overlay.redoable == "Change 49" and overlay.undoable == "Change 48"
    while overlay.undo():
        pass
    assert dict(overlay.captions) == {f"{number}.png": "x" for number in range(len(overlay.captions))}
    assert len(overlay.captions) >= 39


def test_a_history_of_many_bytes_is_bounded(overlay, monkeypatch):
    monkeypatch.setattr(journal, "MAX_BYTES", 20_000)
    for number in range(30):
        overlay.apply(f"Change {number}", {f"{n}.png": f"{number} " * 100 for n in range(10)})
        assert overlay.path.stat().st_size < 60_000
    assert again(overlay).undo().what == "Change 29"


def test_two_writers_do_not_lose_each_others_edits(overlay):
    script = (
        "import sys; from pathlib import Path; from sdtrainer.data.overlay import Overlay\n"
        "overlay = Overlay(Path(sys.argv[1]), Path())\n"
        "for n in range(40): overlay.apply(f'{sys.argv[2]} {n}', {f'{sys.argv[2]}{n}.png': 'x'})"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", script, str(overlay.path), name]) for name in ("one", "two")
    ]
    for number in range(40):
        overlay.apply(f"page {number}", {f"page{number}.png": "x"})
    assert [other.wait() for other in others] == [0, 0]
    overlay = Overlay(overlay.path, overlay.folder)
    assert len(overlay.captions) == 120 and again(overlay).captions == overlay.captions


def test_a_line_that_a_crash_cut_off_did_not_happen(overlay):
    overlay.apply("First", {"a.png": "one"})
    whole = overlay.path.read_bytes()
    overlay.apply("Second", {"a.png": "two"})
    both = overlay.path.read_bytes()
    for length in range(len(whole), len(both)):
        overlay.path.write_bytes(both[:length])
        assert again(overlay).captions == {"a.png": "one"}
    overlay = again(overlay)
    overlay.apply("Third", {"b.png": "three"})
    assert dict(again(overlay).captions) == {"a.png": "one", "b.png": "three"}


def test_one_overlay_per_folder_however_it_is_written(tmp_path, folder):
    overlay_for(tmp_path, folder).apply("Caption", {"a.png": "x"})
    assert overlay_for(tmp_path, folder / "sub" / "..").caption("a.png") == "x"
    assert overlay_for(tmp_path, folder / "sub").caption("a.png") is None
    assert [path.suffix for path in (tmp_path / "captions").iterdir() if path.stem[0] != "."] == [".jsonl"]


def test_crops_and_focus_points_are_undone_like_captions(overlay):
    overlay.lay("crops", {"a.png": [0.1, 0.0, 0.9, 1.0], "b.png": [0, 0, 1, 1]})
    overlay.lay("crops", {"b.png": None})
    assert again(overlay).entries("crops") == {"a.png": [0.1, 0.0, 0.9, 1.0]}
    assert overlay.undo().what == "Crop of b.png" and overlay.entry("crops", "b.png") == [0, 0, 1, 1]
    assert overlay.undo().what == "Crop of 2 pictures" and overlay.entries("crops") == {}


@pytest.mark.parametrize("schema", [1, 2])
def test_what_earlier_versions_kept_is_taken_over(tmp_path, folder, schema):
    new = overlay_for(tmp_path, folder)
    old = new.path.with_suffix(".json")
    old.parent.mkdir()
    (folder / "twin.jpg.txt").write_text("by the app")
    replaced = {"twin.jpg.txt": {"before": "by hand", "after": "by the app"}}
    tables = {"crops": {"a.png": [0, 0, 1, 0.5]}, "focus": {}, "masks": {}} if schema == 2 else {}
    kept = {"schema": schema, "captions": {"a.png": "old"}, "replaced": replaced}
    old.write_text(json.dumps(kept | tables))
    overlay = again(new)
    assert overlay.entry("crops", "a.png") == tables.get("crops", {}).get("a.png")
    assert overlay.caption("a.png") == "old" and not overlay.path.exists()
    overlay.apply("Caption", {"sub/b.png": "new"})
    assert overlay.path.exists() and not old.exists()
    overlay = again(overlay)
    overlay.undo()
    overlay.undo()
    assert dict(overlay.captions) == {"a.png": "old"} and overlay.undoable is None
    assert (folder / "twin.jpg.txt").read_text() == "by hand"


@pytest.mark.parametrize("content", ['{"schema": 3, "tab\n', "", "[]\n", '{"schema": 99}\n'])
def test_damaged_overlay_is_an_error_and_is_kept(tmp_path, content):
    (tmp_path / "edits.jsonl").write_text(content)
    with pytest.raises(UserError, match="rename"):
        Overlay(tmp_path / "edits.jsonl", tmp_path)
    assert (tmp_path / "edits.jsonl").read_text() == content


def test_writing_beside_the_images_and_back(tmp_path, folder):
    overlay = overlay_for(tmp_path, folder)
    before = (folder / "a.txt").read_bytes()
    edits = {"a.png": "new \u00fc", "twin.png": "left", "twin.jpg": "right", "sub/b.png": "deep"}
    overlay.apply("Captions", edits)
    written = overlay.write_into_folder(scan(folder, AUTO, overlay))
    assert {path.name for path in written} == {"a.txt", "twin.png.txt", "twin.jpg.txt", "b.txt"}
    assert (folder / "a.txt").read_bytes() == "new \u00fc".encode()
    assert not overlay.captions
    assert {s.path: s.caption for s in scan(folder, AUTO, overlay).samples} == edits

    overlay = again(overlay)
    overlay.undo()
    assert (folder / "a.txt").read_bytes() == before and not (folder / "twin.png.txt").exists()
    assert dict(overlay.captions) == edits
    overlay.redo()
    assert not overlay.captions
    assert {s.path: s.caption for s in scan(folder, AUTO, overlay).samples} == edits


def test_a_file_changed_since_is_left_alone(tmp_path, folder):
    overlay = overlay_for(tmp_path, folder)
    overlay.apply("Captions", {"a.png": "left", "sub/b.png": "deep"})
    overlay.write_into_folder(scan(folder, AUTO, overlay))
    (folder / "sub" / "b.txt").write_text("changed since by hand")
    step = overlay.undo()
    assert step.left == (folder / "sub" / "b.txt",) and step.names == ("a.png",)
    assert (folder / "sub" / "b.txt").read_text() == "changed since by hand"
    assert dict(overlay.captions) == {"a.png": "left"}
    captions = {s.path: s.caption for s in scan(folder, AUTO, overlay).samples}
    assert captions["sub/b.png"] == "changed since by hand"


def test_written_twice_is_undone_step_by_step(tmp_path, folder):
    overlay = overlay_for(tmp_path, folder)
    before = (folder / "a.txt").read_bytes()
    for text in ("second", "third"):
        overlay.apply(f"Caption {text}", {"a.png": text})
        overlay.write_into_folder(scan(folder, AUTO, overlay))
    overlay.undo()
    assert (folder / "a.txt").read_text() == "second" and overlay.caption("a.png") == "third"
    while overlay.undo():
        pass
    assert (folder / "a.txt").read_bytes() == before and not overlay.captions


@pytest.mark.parametrize("killed_at", range(4))
def test_killed_while_writing_into_the_folder_nothing_is_lost(tmp_path, folder, monkeypatch, killed_at):
    overlay = overlay_for(tmp_path, folder)
    before = (folder / "a.txt").read_bytes()
    edits = {"a.png": "first", "sub/b.png": "second", "twin.jpg": "third"}
    overlay.apply("Captions", edits)
    real, count = files.write_bytes, iter(range(100))

    def dies(path, content):
        if next(count) == killed_at:
            raise OSError("killed")
        real(path, content)

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(files, "write_bytes", dies)
        for done, _ in overlay.writing(scan(folder, AUTO, overlay)):
            assert done < 3 or dies(folder, b"") is None
        raise OSError("never killed")
    overlay = again(overlay)
    captions = {s.path: s.caption for s in scan(folder, AUTO, overlay).samples}
    assert edits.items() <= captions.items()
    while overlay.undo():
        pass
    assert (folder / "a.txt").read_bytes() == before and not (folder / "sub" / "b.txt").exists()


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


def test_the_file_is_plain_json_lines(overlay):
    overlay.apply("Caption", {"a.png": "\u00fc"})
    lines = [json.loads(line) for line in overlay.path.read_text("utf-8").splitlines()]
    assert lines[0] == {"schema": 3, "tables": {}}
    assert lines[1]["what"] == "Caption" and lines[1]["values"] == {"a.png": [None, "\u00fc"]}
