"""Folders uploaded on the page: subfolders are kept, and no other file of the disk is taken."""

from pathlib import Path

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from sdtrainer.section import UserError
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset.exchange import Exchange
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.listen import Given
from sdtrainer.workspace import Workspace


@pytest.fixture
def exchange(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "received"))
    exchange = Exchange(Desk(workspace, Access(workspace)))
    with gr.Blocks():
        exchange.build()
    return exchange


def received(name: str) -> str:
    place = Path(get_upload_folder()) / name / "file.png"
    place.parent.mkdir(parents=True)
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
