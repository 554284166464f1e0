"""Sets of pictures in and out: what a format can say comes back, archives are not trusted, nothing is
overwritten.
"""

import errno
import hashlib
import io
import json
import stat
import tomllib
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdtrainer import child, chores, files
from sdtrainer.chores import CHORES
from sdtrainer.data.overlay import overlay_for
from sdtrainer.data.scan import scan
from sdtrainer.data.section import DataSection
from sdtrainer.exchange import archives, pieces
from sdtrainer.exchange.giving import FORMATS
from sdtrainer.exchange.pieces import Piece, named_apart
from sdtrainer.section import UserError


def done(verb, workspace, **values):
    chore = CHORES[verb]
    doing = chore.do(chore.check(values), workspace)
    try:
        while True:
            next(doing)
    except StopIteration as end:
        assert list(chore.told(end.value))[-1]
        return end.value


def told(folder, overlay=None):
    """What is known of each picture, by its content."""
    return {
        hashlib.sha256(sample.file.read_bytes()).hexdigest(): sample
        for sample in scan(folder, DataSection(), overlay).samples
    }


def state(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(workspace, tmp_path):
    """Pictures with captions, repeats, a crop, a focus point and a mask, two of one name."""
    folder = tmp_path / "my set"
    words = {
        "10_zib cat/a.png": "a zib cat, red",
        "10_zib cat/b.png": "",
        "a.png": "caf\u00e9 \u732b",
        "c.jpg": "",
    }
    for number, (path, caption) in enumerate(words.items()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80 + number, 60), (40 * number, 9, 9)).save(folder / path)
        if caption:
            (folder / path).with_suffix(".txt").write_text(caption, encoding="utf-8")
    Image.new("L", (80, 60), 128).save(folder / "10_zib cat" / "a-masklabel.png")
    overlay = overlay_for(workspace.root, folder)
    overlay.lay("crops", {"10_zib cat/a.png": [0.25, 0, 0.75, 1]})
    overlay.lay("focus", {"a.png": [0.1, 0.9]})
    overlay.apply("written", {"c.jpg": "from the app"})
    return folder


@pytest.mark.parametrize("to", FORMATS)
def test_what_a_format_can_say_comes_back(workspace, source, tmp_path, to):
    before = state(source)
    given_away = done("export", workspace, folder=str(source), out=str(tmp_path / "out" / "set"), to=to)
    back = done("import", workspace, source=given_away["out"], name="back")
    assert state(source) == before
    overlays = [overlay_for(workspace.root, folder) for folder in (source, workspace.uploads / "back")]
    was, is_ = told(source, overlays[0]), told(workspace.uploads / "back", overlays[1])
    assert was.keys() == is_.keys() and len(was) == back["pictures"] == 4
    lacks = FORMATS[to].lacks
    for key, sample in was.items():
        again = is_[key]
        assert (again.caption or again.class_word) == (sample.caption or sample.class_word)
        assert again.repeats == sample.repeats
        assert again.crop == (None if "crop" in lacks else sample.crop)
        assert again.focus == (None if "focus" in lacks else sample.focus)
        assert bool(again.mask) == (bool(sample.mask) and "mask" not in lacks)
    assert len(given_away["notes"]) == len(lacks)


@pytest.mark.parametrize("to", FORMATS)
def test_nothing_that_is_there_is_overwritten(workspace, source, tmp_path, to):
    out = tmp_path / ("there.zip" if to == "zip" else "there")
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already"):
        done("export", workspace, folder=str(source), out=str(out), to=to)
    with pytest.raises(UserError, match="among the pictures"):
        done("export", workspace, folder=str(source), out=str(source / "new"), to=to)
    assert out.read_bytes() == b"mine" and not (source / "new").exists()
    first, second = (done("export", workspace, folder=str(source), out="", to=to)["out"] for _ in range(2))
    assert first != second and "exports" in first


def test_a_moved_config_finds_its_folders_beside_it(workspace, source, tmp_path):
    for to in ("kohya-toml", "onetrainer"):
        out = tmp_path / to
        done("export", workspace, folder=str(source), out=str(out), to=to)
        moved = out.rename(tmp_path / f"{to} moved")
        back = done("import", workspace, source=str(moved), name=to)
        assert back["pictures"] == 4
        assert sum(bool(s.mask) for s in told(workspace.uploads / to).values()) == 1


def test_every_picture_of_a_written_dataset_config_has_words_for_its_trainer(workspace, source, tmp_path):
    """kohya's trainer refuses one with neither a text nor class tokens (its docs/config_README-en.md)."""
    out = tmp_path / "out"
    (source / "plain.png").write_bytes(picture())
    done("export", workspace, folder=str(source), out=str(out), to="kohya-toml")
    subsets = [
        subset
        for dataset in tomllib.loads((out / "dataset.toml").read_text())["datasets"]
        for subset in dataset["subsets"]
    ]
    bare = [
        (subset, picture)
        for subset in subsets
        for picture in Path(subset["image_dir"]).glob("*.[pj][np]g")
        if not picture.with_suffix(subset["caption_extension"]).is_file()
    ]
    assert {subset.get("class_tokens") for subset, _ in bare} == {"", "zib cat"}
    assert sum(len(list(Path(subset["image_dir"]).glob("*.[pj][np]g"))) for subset in subsets) == 5


def test_a_dataset_config_is_read_as_its_trainer_reads_it(workspace, tmp_path):
    for folder in ("10_cat", "reg", "plain"):
        (tmp_path / folder / "below").mkdir(parents=True)
        for path in ("x.png", "below/y.png"):
            Image.new(
                "RGB", (32, 32), folder[:1] and {"1": "red", "r": "blue", "p": "green"}[folder[0]]
            ).save(tmp_path / folder / path)
    (tmp_path / "plain" / "x.caption").write_text("from caption")
    (tmp_path / "plain" / "x.txt").write_text("from txt")
    (tmp_path / "set.toml").write_text(
        "[general]\nnum_repeats = 3\n[[datasets]]\ncaption_prefix = 'p'\n"
        "[[datasets.subsets]]\nimage_dir = 'plain'\ncaption_extension = '.caption'\n"
        "[[datasets.subsets]]\nimage_dir = '10_cat'\nnum_repeats = 1\n"
        "[[datasets.subsets]]\nimage_dir = 'reg'\nis_reg = true\n"
    )
    back = done("import", workspace, source=str(tmp_path / "set.toml"))
    samples = told(workspace.uploads / "set").values()
    assert {(s.caption, s.repeats, s.class_word) for s in samples} == {("from caption", 3, ""), ("", 1, "")}
    assert any("class images" in note for note in back["notes"])
    assert any("caption_prefix" in note for note in back["notes"])


def test_concepts_that_are_off_or_for_validation_stay_behind(workspace, tmp_path):
    concepts = []
    for name, more in {
        "on": {"balancing": 2.6}, "off": {"enabled": False}, "held": {"validation_concept": True},
        "named": {"text": {"prompt_source": "filename"}},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), (len(name), 0, 0)).save(tmp_path / name / "red_chair.png")
        concepts.append({"name": name, "path": str(tmp_path / name)} | more)
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    back = done("import", workspace, source=str(tmp_path / "concepts.json"), name="c")
    found = {(s.caption, s.repeats) for s in told(workspace.uploads / "c").values()}
    assert found == {("", 3), ("red chair", 1)} and len(back["notes"]) == 3


def packed(members):
    """Return a ZIP archive of (name or ZipInfo, content)."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return data.getvalue()


def picture(colour="red"):
    png = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(png, "PNG")
    return png.getvalue()


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("../out.png", picture())], "outside"),
        ([("a/../../out.png", picture())], "outside"),
        ([("/out.png", picture())], "outside"),
        ([("C:/out.png", picture())], "outside"),
        ([(link("a.png"), "/etc/passwd")], "link"),
        ([("a.png", bytes(2**23))], "times its size"),
        ([("note.xyz", b"x")], "holds no pictures"),
        ([("inner.zip", b"PK")], "holds another archive"),
    ],
)
def test_an_archive_that_nothing_good_comes_from_is_refused(workspace, tmp_path, members, why):
    (tmp_path / "bad.zip").write_bytes(
        packed([("good.png", picture()), *members] if "holds" not in why else members)
    )
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=why):
        done("import", workspace, source=str(tmp_path / "bad.zip"))
    left = [p for p in set(tmp_path.rglob("*")) - before if p.is_file()]
    assert not left


def test_an_archive_larger_than_the_disk_is_refused():
    with (
        zipfile.ZipFile(io.BytesIO(packed([("a.png", picture())]))) as archive,
        pytest.raises(UserError, match="free"),
    ):
        archives.checked(archive, "a.zip", free_bytes=10)


def test_a_gigapixel_picture_is_left_out_with_a_sentence(workspace, tmp_path):
    huge = bytearray(picture())
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(bytes(huge[12:29])).to_bytes(4, "big")
    (tmp_path / "set.zip").write_bytes(packed([("set/huge.png", bytes(huge)), ("set/good.png", picture())]))
    back = done("import", workspace, source=str(tmp_path / "set.zip"))
    assert back["pictures"] == 1 and "million pixels" in back["notes"][0]
    assert (workspace.uploads / "set" / "good.png").is_file(), "without the one folder around all"


@pytest.mark.parametrize(
    ("begins", "why"),
    [
        (b"Rar!\x1a\x07\x01\0", "RAR archive"),
        (b"7z\xbc\xaf\x27\x1c", "7z archive"),
        (b"<!DOCTYPE html>", "web page"),
        (b"", "cut off"),
        (b"PK\x03\x04", "cut off"),
    ],
)
def test_what_is_only_named_zip_is_told_by_its_kind(workspace, tmp_path, begins, why):
    (tmp_path / "set.zip").write_bytes(begins + bytes(100))
    with pytest.raises(UserError, match=rf"^set\.zip is not imported: .*{why}"):
        done("import", workspace, source=str(tmp_path / "set.zip"))


def test_a_locked_archive_says_how_to_import_it(workspace, tmp_path):
    content = bytearray(packed([("a.png", picture())]))
    for place, flag in ((content.index(b"PK\x03\x04"), 6), (content.index(b"PK\x01\x02"), 8)):
        content[place + flag] |= 1
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"password\. Unpack it yourself"):
        done("import", workspace, source=str(tmp_path / "set.zip"))


def test_an_archive_with_backslashes_keeps_its_folders(workspace, tmp_path):
    (tmp_path / "set.zip").write_bytes(packed([("3_cat\\a.png", picture()), ("3_cat\\a.txt", "zib")]))
    done("import", workspace, source=str(tmp_path / "set.zip"))
    assert [(s.path, s.repeats, s.caption) for s in told(workspace.uploads / "set").values()] == [
        ("3_cat/a.png", 3, "zib")
    ]


def test_pictures_that_cannot_be_read_are_named_and_no_hidden_folder_is(workspace, tmp_path):
    archive = tmp_path / "phone.zip"
    archive.write_bytes(packed([("b/a.png", picture()), ("b/img.heic", b"x")]))
    assert any(
        "b/img.heic" in n or "img.heic" in n for n in done("import", workspace, source=str(archive))["notes"]
    )
    archive.write_bytes(packed([("img.heic", b"x")]))
    with pytest.raises(UserError, match=r"in phone\.zip .*HEIC") as refused:
        done("import", workspace, source=str(archive))
    assert str(workspace.root) not in str(refused.value)


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(
    workspace, source, tmp_path, monkeypatch, to
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    for name in ("flush", "write"):
        monkeypatch.setattr(files, name, full)
    with pytest.raises(UserError, match=r"disk is full\. Make room"):
        done("export", workspace, folder=str(source), out=str(out), to=to)
    with pytest.raises(UserError, match=r"disk is full\. Make room"):
        done("import", workspace, source=str(source))
    assert not [path for path in tmp_path.iterdir() if path not in (source, workspace.root)]
    assert not list(workspace.uploads.iterdir())


def test_pictures_that_the_disk_has_no_room_for_are_refused_before_they_are_copied(
    workspace, source, monkeypatch
):
    monkeypatch.setattr(pieces.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"take .* and 10 bytes are free .* Make room"):
        done("import", workspace, source=str(source))
    assert not list(workspace.uploads.iterdir())


def test_a_stopped_import_and_export_leave_nothing_half_written(workspace, tmp_path):
    """In a process of their own, as the page has them done."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(400):
        (many / f"{number}.png").write_bytes(picture())
    archive = workspace.cache / "uploaded" / "many.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as packing:
        for file in many.iterdir():
            packing.write(file, file.name)
    for verb, values, at in (
        ("export", {"folder": str(many), "out": str(tmp_path / "out" / "set.zip")}, "Writing"),
        ("import", {"source": str(archive)}, "Copying"),
    ):
        hand = child.Hand()

        def hears(event, hand=hand, at=at):
            if at in getattr(event, "what", ""):
                hand.stop()

        with pytest.raises(child.Stopped):
            chores.do_elsewhere(verb, values, workspace, hears, hand)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != many]
    assert not left
    assert not list(workspace.uploads.glob("*")) and not list((tmp_path / "out").glob("*"))


@settings(max_examples=60)
@given(where=st.integers(0, 400), to=st.integers(0, 255))
def test_a_damaged_archive_is_a_sentence_or_a_set(tmp_path_factory, where, to):
    content = bytearray(packed([("a.png", picture()), ("a.txt", "words")]))
    content[where % len(content)] = to
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "a.zip").write_bytes(content)
    (folder / "into").mkdir()
    try:
        list(archives.unpack(folder / "a.zip", folder / "into"))
    except UserError as error:
        assert error.what.startswith("a.zip is not imported")
    assert {path for path in folder.iterdir()} == {folder / "a.zip", folder / "into"}


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["a.png", "A.png", "a.jpg", "a-2.png", "b/a.png", "B/a.png"]), max_size=8))
def test_no_two_pictures_share_a_caption_file(paths):
    apart = named_apart([Piece(None, path) for path in paths])
    stems = [piece.path.rpartition(".")[0].casefold() for piece in apart]
    assert len(set(stems)) == len(paths)
    assert [piece.path.rpartition(".")[2] for piece in apart] == [path.rpartition(".")[2] for path in paths]


def test_an_uploaded_archive_is_gone_once_it_is_imported_and_others_stay(workspace, tmp_path):
    for place in (workspace.cache / "uploaded" / "set.zip", tmp_path / "set.zip"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(packed([("a.png", picture())]))
        assert done("import", workspace, source=str(place))["pictures"] == 1
    assert not (workspace.cache / "uploaded" / "set.zip").exists() and (tmp_path / "set.zip").exists()
    assert sorted(p.name for p in workspace.uploads.iterdir()) == ["set", "set-2"]


@pytest.mark.parametrize("layout", ["kohya", "concepts"])
def test_what_came_from_elsewhere_brings_no_files_of_this_machine(workspace, tmp_path, layout):
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret.png").write_bytes(picture())
    (private / "secret.txt").write_text("secret")
    config = {
        "kohya": ("set.toml", f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{private}'\n"),
        "concepts": ("concepts.json", json.dumps([{"name": "a", "path": str(private)}])),
    }[layout]
    archive, uploaded = tmp_path / "set.zip", workspace.uploads / "set"
    archive.write_bytes(packed([config, ("mine.png", picture("blue"))]))
    uploaded.mkdir(parents=True)
    (uploaded / config[0]).write_text(config[1])
    for source in (archive, uploaded, uploaded / config[0]):
        with pytest.raises(UserError, match="outside"):
            done("import", workspace, source=str(source), name="new")
    (tmp_path / config[0]).write_text(config[1])
    assert done("import", workspace, source=str(tmp_path / config[0]))["pictures"] == 1, "one's own may"


def test_the_prompts_of_a_concept_from_elsewhere_lie_in_the_archive(workspace, tmp_path):
    secret, archive = tmp_path / "secret.txt", tmp_path / "set.zip"
    secret.write_text("secret")
    concept = {"path": "a", "text": {"prompt_source": "concept", "prompt_path": str(secret)}}
    archive.write_bytes(packed([("concepts.json", json.dumps([concept])), ("a/x.png", picture())]))
    done("import", workspace, source=str(archive))
    assert {s.caption for s in told(workspace.uploads / "set").values()} == {""}


@pytest.mark.parametrize("wrong", ["caption_extension = 'no/dot'", "num_repeats = 'many'"])
def test_a_wrong_value_of_a_dataset_config_is_a_sentence(workspace, tmp_path, wrong):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(picture())
    (tmp_path / "set.toml").write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n{wrong}\n")
    with pytest.raises(UserError, match=r"set\.toml cannot be read"):
        done("import", workspace, source=str(tmp_path / "set.toml"))
