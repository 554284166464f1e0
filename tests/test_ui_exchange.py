"""What is uploaded on the page: subfolders are kept, nothing is overwritten, no other file is taken."""

import io
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from sdtrainer.section import UserError, override
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset import Dataset
from sdtrainer.ui.dataset.upload import Upload
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.form import Form
from sdtrainer.ui.listen import Given
from sdtrainer.ui.sections import Sections
from sdtrainer.workspace import Workspace

SHARD = Path(__file__).parent / "datasets" / "train-00000-of-00001.parquet"


@pytest.fixture
def desk(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "received"))
    desk = Desk(workspace, Access(workspace))
    yield desk
    desk.close()


@pytest.fixture
def upload(desk: Desk) -> Upload:
    sections = Sections("parts")
    upload = Upload(desk, sections, "Import")
    with gr.Blocks():
        sections.build({"Import": lambda: None})
        upload.build()
    return upload


def received(name: str, content: Path | bytes | None = None) -> str:
    """Put a file where the browser's uploads lie; a picture, if its content is not said."""
    place = Path(get_upload_folder()) / name / "file.png"
    place.parent.mkdir(parents=True)
    if isinstance(content, Path):
        shutil.copyfile(content, place)
    elif content is not None:
        place.write_bytes(content)
    else:
        Image.new("RGB", (16, 16), (sum(name.encode()) % 256, 9, 9)).save(place)
    return str(place)


def said(upload: Upload, *files: object, name: str = "", **more: Any) -> Given:
    return Given({upload.name: name}, "owner", "page", {"act": "uploaded", "files": list(files)} | more)


def trained_on(upload: Upload) -> dict[str, int]:
    """Return the repeats of each picture that is trained on now, by its path."""
    return {sample.path: sample.repeats for sample in upload.desk.look().census.samples}


def wait(desk: Desk) -> None:
    deadline = time.monotonic() + 60
    while desk.errands.doing:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_uploaded_folder_keeps_its_subfolders_and_is_trained_on(upload: Upload) -> None:
    uploads = upload.desk.workspace.uploads
    pairs = [["dog/3_rex/a.png", received("1")], ["dog/b.png", received("2")], ["dog/x.exe", received("3")]]
    told = upload.take(said(upload, *pairs, others=1))
    assert "1 other file left out" in told and str(uploads / "dog") in told
    assert upload.desk.project.values["data"]["folder"] == str(uploads / "dog")
    assert trained_on(upload) == {"3_rex/a.png": 3, "b.png": 1}
    upload.take(said(upload, ["dog/a.png", received("4")]))
    assert upload.desk.project.values["data"]["folder"] == str(uploads / "dog-2"), "nothing is overwritten"
    upload.take(said(upload, ["dog/a.png", received("5")], name="my / set"))
    assert upload.desk.project.values["data"]["folder"] == str(uploads / "my  set")
    assert not list((upload.desk.workspace.cache / "uploaded").iterdir())


def test_single_pictures_join_those_that_are_there_and_replace_none(upload: Upload) -> None:
    upload.take(said(upload, ["a.png", received("1")], ["a.txt", received("2", b"red")]))
    before = (upload.desk.workspace.uploads / "my-pictures" / "a.png").read_bytes()
    more = {"A.png": None, "A.txt": b"blue", "A-2.png": None, "b.png": None}
    pairs = [[name, received(f"more {n}", content)] for n, (name, content) in enumerate(more.items())]
    upload.take(said(upload, *pairs))
    samples = upload.desk.look().census.samples
    told = {s.path: s.caption for s in samples}
    assert told == {"a.png": "red", "A-2.png": "", "A-3.png": "blue", "b.png": ""}
    assert (upload.desk.workspace.uploads / "my-pictures" / "a.png").read_bytes() == before
    upload.take(said(upload, ["c.png", received("6")], name="other"))
    assert trained_on(upload) == {"c.png": 1}


def test_only_files_of_what_was_dropped_are_taken(upload: Upload, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    names = ["../a.png", "/a.png", "a\\b.png", "", "dog/../../a.png"]
    wrong = [[name, received(f"wrong {number}")] for number, name in enumerate(names)]
    wrong += [["dog/a.png", str(tmp_path / file)] for file in ("secret.png", "no such.png")]
    good = ["dog/a.png", received("good")]
    for pair in wrong:
        with pytest.raises(UserError, match="no file of a folder"):
            upload.take(said(upload, good, pair))
    for files in (None, [], [["a.txt"]], "text"):
        with pytest.raises(UserError):
            upload.take(Given({upload.name: ""}, "owner", "page", {"files": files}))
    assert (tmp_path / "secret.png").exists() and not upload.desk.workspace.uploads.exists()


def test_what_is_wrong_is_said_where_it_was_dropped(upload: Upload) -> None:
    mixed = [["set.zip", received("1", b"PK")], ["a.png", received("2")]]
    for given, words in (
        (said(upload, others=3), "no pictures in it"),
        (said(upload, *mixed), "Drop it alone"),
    ):
        shown = upload._take(given)
        assert words in shown[upload.drop] and shown.keys() == {upload.drop}
        assert upload._take(said(upload, others=3))[upload.drop] != shown[upload.drop], "news each time"
    assert not list((upload.desk.workspace.cache / "uploaded").iterdir())


def test_an_uploaded_archive_is_imported_and_trained_on(upload: Upload) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(received("1"), "4_cat/a.png")
    shown = upload._take(said(upload, ["set.zip", received("2", packed.getvalue())]))
    assert shown[upload.sections.chosen] == upload.importing
    wait(upload.desk)
    assert upload.desk.project.values["data"]["folder"] == str(upload.desk.workspace.uploads / "set")
    assert trained_on(upload) == {"4_cat/a.png": 4}
    assert not list((upload.desk.workspace.cache / "uploaded").iterdir())


@pytest.mark.parametrize(
    "files",
    [
        {"cards/data/train.parquet": SHARD, "cards/a.txt": b"x"},
        {"cards/concepts.json": b'[{"path": "/elsewhere/a"}]', "cards/a/x.png": None},
        {"cards/set.toml": b"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'", "cards/a/x.png": None},
    ],
    ids=["parquet", "concepts", "toml"],
)
def test_an_uploaded_folder_with_packed_pictures_or_a_config_is_imported(
    upload: Upload, files: dict[str, Any]
) -> None:
    begun: dict[str, Any] = {}
    upload.desk.begin = lambda verb, values, then: begun.update(values)  # type: ignore[method-assign]
    pairs = [[path, received(str(n), content)] for n, (path, content) in enumerate(files.items())]
    upload.take(said(upload, *pairs))
    there = {path.relative_to(begun["source"]).as_posix() for path in Path(begun["source"]).rglob("*.*")}
    assert there == {path.removeprefix("cards/") for path in files}
    assert not upload.desk.workspace.uploads.exists()


def test_a_training_folder_of_parquet_files_can_be_imported_at_a_click(desk: Desk, tmp_path: Path) -> None:
    dataset = Dataset(desk, Form())
    with gr.Blocks():
        dataset.build()
    shutil.copytree(SHARD.parent, tmp_path / "cards")
    desk.project.change(override(desk.project.values, {"data.folder": str(tmp_path / "cards")}), "test")
    given = Given({}, "owner", "page")
    source, exchange = dataset.source, dataset.exchange
    assert source.show(desk.look(), given)[source.take]["visible"]
    assert source._import(given) == {dataset.sections.chosen: exchange.title}
    wait(desk)
    outlook = desk.look()
    assert outlook.census and len(outlook.census.samples) == 3, "and trained on"
    assert not source.show(outlook, given)[source.take]["visible"]
    assert not exchange.show(outlook, given)[exchange.use]["visible"]
    with pytest.raises(UserError, match="nothing to import"):
        source._import(given)
