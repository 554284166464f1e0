"""Parquet in and out: data sets of Hugging Face become folders, and every damaged file is a sentence.

`datasets/train-00000-of-00001.parquet` was written by `datasets` 5.2.0 (Dataset.to_parquet, 3 pictures).
"""

import io
import json
import random
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_exchange import done, packed, picture, state, told

from sdtrainer.data import parquet
from sdtrainer.data.images import EXTENSIONS
from sdtrainer.data.scan import Packed, scan
from sdtrainer.data.section import DataSection
from sdtrainer.exchange import archives, shards
from sdtrainer.exchange.columns import shard
from sdtrainer.section import UserError

BY_DATASETS = Path(__file__).parent / "datasets" / "train-00000-of-00001.parquet"


def content(colour="red", kind="PNG"):
    data = io.BytesIO()
    Image.new("RGB", (16, 12), colour).save(data, kind)
    return data.getvalue()


def written(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def captions(folder):
    return {sample.path: sample.caption for sample in scan(folder, DataSection()).samples}


def test_a_file_of_the_datasets_library_becomes_a_folder(workspace):
    before = BY_DATASETS.read_bytes()
    back = done("import", workspace, source=str(BY_DATASETS), name="cards")
    cards = {"red.png": "a red card", "green.png": "a green card", "blue.jpg": "a blue card"}
    assert captions(workspace.uploads / "cards") == cards
    assert back["notes"] == ["Captions are from the column 'prompt'."]
    assert BY_DATASETS.read_bytes() == before and not (workspace.cache / "unpacked").exists()


@pytest.mark.parametrize(
    "cells",
    [
        [{"bytes": content(), "path": "a.png"}],
        [{"bytes": content()}],
        [content()],
        pa.array([content()], pa.large_binary()),
        pa.array([content()]).dictionary_encode(),
        [{"path": "beside/a.png"}],
        ["beside/a.png"],
    ],
    ids=["both", "bytes", "plain", "large", "dictionary", "path", "text"],
)
@pytest.mark.parametrize("name", ["image", "Image", "jpg"])
def test_pictures_are_found_in_whatever_form_they_are_kept(workspace, tmp_path, cells, name):
    (tmp_path / "set" / "beside").mkdir(parents=True)
    (tmp_path / "set" / "beside" / "a.png").write_bytes(content())
    source = written(tmp_path / "set" / "x.parquet", **{name: cells, "caption": [["", "first", "second"]]})
    done("import", workspace, source=str(source), name="x")
    assert list(captions(workspace.uploads / "x").values()) == ["first"]


def test_shards_of_a_folder_or_archive_are_joined_and_their_tests_left_out(workspace, tmp_path):
    place = tmp_path / "set" / "data"
    for part in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pictures = [{"bytes": content(kind=kind), "path": "same.bin"} for kind in ("PNG", "JPEG")]
        written(place / f"{part}.parquet", image=pictures, text=[part[:7], part], caption=["x", "y"])
    (tmp_path / "set" / "README.md").write_text("words")
    files = [(f"data/{path.name}", path.read_bytes()) for path in place.iterdir()]
    (tmp_path / "set.zip").write_bytes(packed(files))
    before = state(tmp_path)
    for source in ("set", "set.zip"):
        back = done("import", workspace, source=str(tmp_path / source), name=source)
        found = captions(workspace.uploads / source)
        assert len(found) == back["pictures"] == 4
        assert sum(text.startswith("train-0") for text in found.values()) == 4
        left, column = back["notes"]
        assert "test-00000-of-00001.parquet is left out" in left
        assert "'text'" in column and "may name 'caption' instead" in column
    assert {path: data for path, data in state(tmp_path).items() if path in before} == before


def test_another_column_may_hold_the_captions(workspace, tmp_path):
    source = written(tmp_path / "a.parquet", image=[content()], text=["no"], story=["yes"], n=[1])
    done("import", workspace, source=str(source), name="a", caption_column="story")
    assert list(captions(workspace.uploads / "a").values()) == ["yes"]
    for column in ("n", "image", "none"):
        with pytest.raises(UserError, match=r"Caption column.*it has 'text', 'story'"):
            done("import", workspace, source=str(source), caption_column=column)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.png").write_bytes(content())
    with pytest.raises(UserError, match="only Parquet files have columns"):
        done("import", workspace, source=str(tmp_path / "plain"), caption_column="text")


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_table_beside_the_pictures_says_their_captions(tmp_path, form):
    (tmp_path / "a").mkdir()
    for path in ("a/x.png", "y.png"):
        (tmp_path / path).write_bytes(content())
    rows = {"file_name": ["a/x.png", "./y.png", "gone.png"], "prompt": ["first", "second", "third"]}
    lines = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    if form == "parquet":
        written(tmp_path / "metadata.parquet", **rows)
    else:
        rest = [json.dumps(line) for line in lines]
        table = rest if form == "jsonl" else ["file_name,prompt", *(",".join(d.values()) for d in lines)]
        (tmp_path / f"metadata.{form}").write_text("\n".join(table))
    census = scan(tmp_path, DataSection())
    assert {s.path: s.caption for s in census.samples} == {"a/x.png": "first", "y.png": "second"}
    assert census.layout.endswith(f"captions from metadata.{form}")
    assert [problem.kind for problem in census.problems] == ["orphan caption"]


@pytest.mark.parametrize("name", ["data/train-0.parquet", "metadata.parquet"])
def test_a_training_folder_of_shards_is_to_be_imported_first(tmp_path, name):
    source = written(tmp_path / "set" / name, image=[content()])
    is_table = name == "metadata.parquet"
    for chosen in [tmp_path / "set"] if is_table else [tmp_path / "set", source]:
        with pytest.raises(UserError, match="no images" if is_table else "inside Parquet files") as raised:
            scan(chosen, DataSection())
        assert raised.value.path == "data.folder" and isinstance(raised.value, Packed) != is_table
    (tmp_path / "set" / "a.png").write_bytes(content())
    assert len(scan(tmp_path / "set", DataSection()).samples) == 1


def test_a_folder_in_the_cache_of_the_hub_is_links_and_read_through_them(workspace, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(BY_DATASETS.read_bytes())
    snapshot = tmp_path / "snapshots" / "c0ffee"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "train-00000-of-00001.parquet").symlink_to(tmp_path / "blobs" / "0a1b")
    with pytest.raises(Packed):
        scan(snapshot, DataSection())
    assert done("import", workspace, source=str(snapshot), name="cards")["pictures"] == 3


def test_what_is_no_picture_is_counted_and_left_out(workspace, tmp_path):
    huge = bytearray(picture())
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(bytes(huge[12:29])).to_bytes(4, "big")
    cells = [
        {"bytes": content(), "path": "good.png"},
        {"bytes": bytes(huge), "path": "huge.png"},
        {"bytes": b"words", "path": "words.png"},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": None, "path": "\0"},
        {"bytes": b"", "path": None},
        None,
    ]
    (tmp_path / "secret.png").write_bytes(content())
    source = written(tmp_path / "set" / "a.parquet", image=cells)
    back = done("import", workspace, source=str(source), name="a")
    assert set(captions(workspace.uploads / "a")) == {"good.png"}
    assert [note.partition(";")[0] for note in back["notes"][1:]] == [
        "1 of the rows hold a picture of too many million pixels",
        "1 of the rows hold a picture that cannot be read",
        "3 of the rows name a picture that is not beside the file",
        "2 of the rows hold no picture",
    ]
    assert back["notes"][0].startswith("There are no captions")


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"text": ["a"]}, "none of its columns \\('text'\\)"),
        ({"image": [1], "id": [2.0]}, "holds no pictures"),
        ({"image": [[{"bytes": b"a", "path": "a"}]]}, "holds no pictures"),
        ({"image": [{"bytes": {"deep": b"a"}}]}, "holds no pictures"),
        ({"image": pa.array([], pa.binary())}, "no pictures to import"),
        ({"image": [b"words"]}, "no pictures to import.*cannot be read"),
        ({}, "holds no pictures"),
    ],
)
def test_a_table_without_pictures_is_refused_with_a_sentence(workspace, tmp_path, columns, why):
    source = written(tmp_path / "a.parquet", **columns)
    with pytest.raises(UserError, match=why):
        done("import", workspace, source=str(source))
    assert not workspace.uploads.exists() or not list(workspace.uploads.iterdir())


def test_bombs_and_sets_larger_than_the_disk_are_refused(workspace, tmp_path, monkeypatch):
    table = pa.table({"image": [bytes(2**23)]})
    pq.write_table(table, tmp_path / "bomb.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match="times its size"):
        done("import", workspace, source=str(tmp_path / "bomb.parquet"))
    # A dictionary says a picture once, for any number of rows.
    many = pa.array([content("red", "BMP")]).dictionary_encode().take(pa.array([0] * 2000))
    small = written(tmp_path / "many.parquet", image=many)
    with pytest.raises(UserError, match="2,000 pictures"):
        monkeypatch.setattr(shards, "MOST_FILES", 1999)
        done("import", workspace, source=str(small))
    monkeypatch.setattr(shards, "MOST_FILES", archives.MOST_FILES)
    monkeypatch.setattr(shards, "MOST_BYTES", 100_000)
    with pytest.raises(UserError, match="unpacks to more than it says"):
        done("import", workspace, source=str(small))
    with pytest.raises(UserError, match=r"1\.9 KB, and less is free"):
        shards.checked([shard(small, "")], 10)
    assert not list(workspace.cache.rglob("*.bmp"))


PARTS = ["a", "A", "..", "", ".", "con", "b.png", "x" * 300, "\u732b" * 90, 'q?<>:"|*', "C:", "\0"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6), st.sampled_from(["/", "\\"]))
def test_names_are_safe_whatever_a_row_calls_its_picture(parts, between):
    name = shards.safe(between.join(parts))
    assert all(part and part == part.strip(" .") for part in name.split("/") if name)
    assert not set(name) & set('<>:"|?*\\\0') and not name.lower().endswith(tuple(EXTENSIONS))
    assert all(len(part.encode()) < 200 and part.upper() not in shards.DEVICES for part in name.split("/"))


@pytest.fixture(scope="module")
def sound():
    file = io.BytesIO()
    cells = [{"bytes": content(), "path": f"{number}.png"} for number in range(20)]
    pq.write_table(pa.table({"image": cells, "text": ["words"] * 20}), file, row_group_size=7)
    return file.getvalue()


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_a_damaged_file_is_a_sentence_or_a_table(tmp_path_factory, sound, seed):
    chance, damaged = random.Random(seed), bytearray(sound)
    for _ in range(chance.choice((1, 2, 5))):
        damaged[chance.randrange(len(damaged) - chance.choice((0, 1500)))] = chance.randrange(256)
    file = tmp_path_factory.getbasetemp() / "damaged.parquet"
    file.write_bytes(damaged)
    try:
        list(parquet.rows(file, list(parquet.columns(file)), 8))
    except parquet.BadTable as error:
        assert error.what.startswith("damaged.parquet cannot be read: it")


@pytest.mark.parametrize("quarter", range(5))
@pytest.mark.parametrize("name", ["train.parquet", "metadata.parquet"])
def test_a_file_that_ends_early_or_is_another_is_a_sentence(workspace, tmp_path, sound, quarter, name):
    cut = sound[: len(sound) * quarter // 4] if quarter < 4 else b"PARE" + sound[4:-4] + b"PARE"
    why = "cut off" if 0 < quarter < 4 else "encrypted" if quarter else "no Parquet file"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(cut)
    with pytest.raises(UserError, match=why):
        done("import", workspace, source=str(tmp_path / "set" / name))
    if name == "metadata.parquet":
        (tmp_path / "set" / "a.png").write_bytes(content())
        problem = scan(tmp_path / "set", DataSection()).problems[0]
        assert problem.kind == "caption unreadable" and why in problem.sentence


def test_much_is_written_into_several_files_of_several_groups(workspace, tmp_path, monkeypatch):
    from sdtrainer.exchange import embedded

    monkeypatch.setattr(embedded, "SHARD_BYTES", 5 * len(content("red", "BMP")))
    monkeypatch.setattr(embedded, "GROUP_BYTES", 2 * len(content("red", "BMP")))
    (tmp_path / "set").mkdir()
    for number in range(12):
        (tmp_path / "set" / f"{number}.bmp").write_bytes(content((number, 0, 0), "BMP"))
    out = Path(done("export", workspace, folder=str(tmp_path / "set"), out="", to="parquet")["out"])
    files = sorted(path.name for path in (out / "data").iterdir())
    assert files == [f"train-{number:05}-of-00003.parquet" for number in range(3)]
    assert [pq.ParquetFile(out / "data" / name).num_row_groups for name in files] == [3, 3, 1]
    done("import", workspace, source=str(out), name="back")
    assert told(workspace.uploads / "back").keys() == told(tmp_path / "set").keys()
    for_datasets = json.loads(pq.read_schema(out / "data" / files[0]).metadata[b"huggingface"])
    assert for_datasets["info"]["features"] == {
        "image": {"_type": "Image"},
        "text": {"_type": "Value", "dtype": "string"},
    }


def test_an_uploaded_folder_of_shards_is_gone_once_it_is_imported(workspace):
    place = workspace.cache / "uploaded" / "cards"
    (place / "data").mkdir(parents=True)
    (place / "data" / "train.parquet").write_bytes(BY_DATASETS.read_bytes())
    assert done("import", workspace, source=str(place))["folder"] == str(workspace.uploads / "cards")
    assert not place.exists() and place.parent.exists()


def test_one_archive_may_hold_a_table_and_its_pictures(workspace, tmp_path):
    table = written(tmp_path / "metadata.parquet", file_name=["a.png"], text=["told"])
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.png", content())
        archive.write(table, "metadata.parquet")
    done("import", workspace, source=str(tmp_path / "set.zip"), name="set")
    assert captions(workspace.uploads / "set") == {"a.png": "told"}
