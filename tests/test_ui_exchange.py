"""Folders uploaded on the page: subfolders are kept, and no other file of the disk is taken."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from sdtrainer.section import UserError, override
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset import Dataset
from sdtrainer.ui.dataset.exchange import Exchange
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.form import Form
from sdtrainer.ui.listen import Given
from sdtrainer.workspace import Workspace

SHARD = Path(__file__).parent / "datasets" / "train-00000-of-00001.parquet"


@pytest.fixture
def desk(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "received"))
    desk = Desk(workspace, Access(workspace))
    yield desk
    desk.close()


@pytest.fixture
def exchange(desk: Desk) -> Exchange:
    exchange = Exchange(desk)
    with gr.Blocks():
        exchange.build()
    return exchange


def received(name: str, file: Path | None = None) -> str:
    place = Path(get_upload_folder()) / name / (file.name if file else "file.png")
    place.parent.mkdir(parents=True)
    if file:
        shutil.copyfile(file, place)
    else:
        Image.new("RGB", (16, 16)).save(place)
    return str(place)


def said(*files: object) -> Given:
    return Given({}, "owner", "page", {"act": "uploaded", "files": list(files)})


def test_an_uploaded_folder_keeps_its_subfolders_and_is_trained_on(exchange: Exchange) -> None:
    uploads = exchange.desk.workspace.uploads
    pairs = [["dog/3_rex/a.png", received("1")], ["dog/b.png", received("2")], ["dog/x.exe", received("3")]]
    exchange._take(said(*pairs))
    assert exchange.desk.project.values["data"]["folder"] == str(uploads / "dog")
    found = {s.path: s.repeats for s in exchange.desk.look().census.samples}
    assert found == {"3_rex/a.png": 3, "b.png": 1}
    exchange._take(said(["dog/a.png", received("4")]))
    assert exchange.desk.project.values["data"]["folder"] == str(uploads / "dog-2"), "nothing is overwritten"


def test_only_files_of_the_dropped_folder_are_taken(exchange: Exchange, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    names = ["../a.png", "/a.png", "a\\b.png", "", "dog/../../a.png"]
    wrong = [[name, received(f"wrong {number}")] for number, name in enumerate(names)]
    wrong += [["dog/a.png", str(tmp_path / file)] for file in ("secret.png", "no such.png")]
    good = ["dog/a.png", received("good")]
    for pair in wrong:
        with pytest.raises(UserError, match="no file of a folder"):
            exchange._take(said(good, pair))
    for files in (None, [], [["a.txt"]], "text"):
        with pytest.raises(UserError):
            exchange._take(Given({}, "owner", "page", {"files": files}))
    assert (tmp_path / "secret.png").exists() and not exchange.desk.workspace.uploads.exists()


def test_an_uploaded_folder_of_parquet_files_is_imported(exchange: Exchange) -> None:
    exchange._take(said(["cards/data/train.parquet", received("1", SHARD)], ["cards/a.txt", received("2")]))
    desk = exchange.desk
    assert "import" in desk.errands.doing
    assert (exchange.uploaded / "cards" / "data" / "train.parquet").read_bytes() == SHARD.read_bytes()
    desk.errands.stop("import")
    assert not desk.workspace.uploads.exists() or not list(desk.workspace.uploads.glob("[!.]*"))


def test_a_training_folder_of_parquet_files_can_be_imported_at_a_click(desk: Desk, tmp_path: Path) -> None:
    shutil.copytree(SHARD.parent, tmp_path / "cards")
    desk.project.change(override(desk.project.values, {"data.folder": str(tmp_path / "cards")}), "test")
    dataset, given = Dataset(desk, Form()), Given({}, "owner", "page")
    with gr.Blocks():
        dataset.build()
    source, exchange = dataset.source, dataset.exchange
    assert source.show(desk.look(), given)[source.take]["visible"]
    assert source._import(given) == {dataset.sections.chosen: exchange.title}
    deadline = time.monotonic() + 60
    while desk.errands.doing:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert exchange.show(desk.look(), given)[exchange.use]["visible"]
    exchange._use(given)
    outlook = desk.look()
    assert outlook.census and len(outlook.census.samples) == 3
    assert not source.show(outlook, given)[source.take]["visible"]
    with pytest.raises(UserError, match="nothing to import"):
        source._import(given)
