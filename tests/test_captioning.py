"""Captioning a folder: what is kept, what is left alone, and what survives being broken off."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_captioners

from sdtrainer import captioners, chores
from sdtrainer.__main__ import main
from sdtrainer.captioners import Captioner, Captioning, Download, Picture, work
from sdtrainer.captioners.record import Record
from sdtrainer.captioners.section import Settings
from sdtrainer.data.overlay import overlay_for
from sdtrainer.events import Event, PhaseBegan, Progress, Said
from sdtrainer.section import UserError
from sdtrainer.workspace import Workspace


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_captioners.make_blip(tmp_path_factory.mktemp("captioners") / "blip")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures; the first has a caption, the last is no picture."""
    folder = tiny.make_images(tmp_path / "photos", 5)
    for text in sorted(folder.glob("*.txt"))[1:]:
        text.unlink()
    for number, name in enumerate(("red car", "blue house", "old dog", "tall tree"), 1):
        (folder / f"{number:02d}.png").rename(folder / f"{name}.png")
    return folder


def caption(workspace: Workspace, folder: Path, **values: Any) -> tuple[dict[str, Any], list[Event]]:
    settings, said = Settings(folder=str(folder), **values), []
    doing = work.work(settings, workspace)
    while True:
        try:
            said.append(next(doing))
        except StopIteration as end:
            return end.value, said


def captions(workspace: Workspace, folder: Path) -> dict[str, str]:
    return dict(overlay_for(workspace.root, folder).captions)


def tree(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_pictures_without_a_caption_get_one_and_the_folder_is_left_alone(
    workspace: Workspace, photos: Path, blip: Path
) -> None:
    whole = (photos / "old dog.png").read_bytes()
    (photos / "old dog.png").write_bytes(whole[: len(whole) - 60])
    before = tree(photos)
    asked = {"captioner": "blip", "model": str(blip), "instruction": "a photo", "max_tokens": 8}
    answer, said = caption(workspace, photos, template="zib, {caption}", **asked)
    written = captions(workspace, photos)
    assert set(written) == {"blue house.png", "red car.png", "tall tree.png"}
    assert all(text.startswith("zib, a photo") for text in written.values())
    assert (answer["written"], answer["kept"]) == (3, 1)
    assert "ends too early" in answer["skipped"]["old dog.png"]
    assert tree(photos) == before
    ticks = [e for e in said if isinstance(e, Progress)]
    assert ticks[-1].done == ticks[-1].total == 3
    again, said = caption(workspace, photos, **asked)
    assert (again["written"], again["kept"]) == (0, 4)
    assert len([e for e in said if isinstance(e, PhaseBegan)]) == 1, "nothing is loaded for nothing"


def test_a_picture_that_breaks_while_it_is_read_is_skipped_and_named(
    workspace: Workspace, photos: Path
) -> None:
    settings = Settings(folder=str(photos), captioner="file-name")
    by = Counted()
    tally = work.Tally()
    census = work._scanned(settings, workspace)
    (photos / "old dog.png").unlink()
    pictures = list(work._opened(census.samples, by, tally))
    assert len(pictures) == 4 and list(tally.skipped) == ["old dog.png"]
    assert "no longer there" in tally.skipped["old dog.png"]


def test_killed_while_it_captions_all_it_goes_on_where_it_was(workspace: Workspace, photos: Path) -> None:
    asked: dict[str, Any] = {"captioner": "template", "template": "a photo of {name}, {caption}"}
    whole, _ = caption(Workspace(workspace.root / "other"), photos, overwrite=True, **asked)
    expected = captions(Workspace(workspace.root / "other"), photos)
    assert whole["written"] == 5 and len(expected) == 5

    settings = Settings(folder=str(photos), overwrite=True, **asked)
    by_twos = pytest.MonkeyPatch()
    by_twos.setattr(work, "_AT_ONCE", 2)
    doing = work.work(settings, workspace)
    for event in doing:
        if isinstance(event, Progress) and event.done:
            break
    doing.close()
    assert len(captions(workspace, photos)) == 2
    answer, _ = caption(workspace, photos, overwrite=True, **asked)
    by_twos.undo()
    assert (answer["written"], answer["done"]) == (3, 2)
    assert captions(workspace, photos) == expected
    assert Record(workspace.root, photos).undo() == 5
    assert captions(workspace, photos) == {}


def test_what_a_broken_off_captioning_has_written_is_told_as_its_own(
    workspace: Workspace, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_AT_ONCE", 1)
    doing = work.work(Settings(folder=str(photos), captioner="file-name"), workspace)
    next(event for event in doing if isinstance(event, Progress) and event.done == 3)
    doing.close()
    answer, _ = caption(workspace, photos, captioner="file-name")
    assert (answer["written"], answer["done"], answer["kept"]) == (1, 3, 1)
    assert "3 captions had been written before it was broken off." in work.told(answer)
    assert Record(workspace.root, photos).undo() == 4


def test_undo_takes_back_all_and_nothing_that_was_done_since(workspace: Workspace, photos: Path) -> None:
    overlay = overlay_for(workspace.root, photos)
    overlay.apply("Typed", {"red car.png": "my car"})
    caption(workspace, photos, captioner="file-name", overwrite=True)
    assert captions(workspace, photos)["red car.png"] == "red car"
    assert Record(workspace.root, photos).undo() == 4
    assert captions(workspace, photos) == {"red car.png": "my car"}
    caption(workspace, photos, captioner="file-name", overwrite=True)
    overlay_for(workspace.root, photos).apply("Typed", {"red car.png": "newer"})
    record = Record(workspace.root, photos)
    assert not record.can_undo and record.undo() == 0
    assert captions(workspace, photos)["red car.png"] == "newer"


def test_new_tags_join_those_that_are_there(workspace: Workspace, photos: Path, tmp_path: Path) -> None:
    tagger = tiny_captioners.make_tagger(tmp_path / "tagger")
    overlay_for(workspace.root, photos).apply("Typed", {"red car.png": "my car, Red background"})
    asked = {"captioner": "wd-tagger", "model": str(tagger), "threshold": 0.01, "character_threshold": 0.02}
    for _ in range(2):  # the second time nothing is new
        caption(workspace, photos, overwrite=True, mode="after", pictures=["red car.png"], **asked)
    assert captions(workspace, photos) == {
        "red car.png": "my car, Red background, zib (disc), o_o, blue background"
    }


def test_a_try_keeps_nothing(workspace: Workspace, photos: Path) -> None:
    answer, _ = caption(workspace, photos, captioner="file-name", pictures=["red car.png"], dry_run=True)
    assert answer["captions"] == {"red car.png": "red car"}
    assert captions(workspace, photos) == {} and not Record(workspace.root, photos).can_undo


def test_captions_are_written_beside_the_pictures_only_if_wanted(workspace: Workspace, photos: Path) -> None:
    answer, _ = caption(workspace, photos, captioner="file-name", write_files=True)
    assert (photos / "old dog.txt").read_text("utf-8") == "old dog"
    assert [Path(file).name for file in answer["files"]] == [
        "blue house.txt", "old dog.txt", "red car.txt", "tall tree.txt"
    ]  # fmt: skip
    assert list(work.told(answer))[-1] == answer["files"][-1]


def test_what_was_done_is_told_in_whole_sentences(workspace: Workspace, photos: Path) -> None:
    (photos / "IMG_2034.png").write_bytes((photos / "old dog.png").read_bytes())
    lines = list(work.told(caption(workspace, photos, captioner="file-name")[0]))
    assert lines[0] == "File names: 4 captions written."
    assert "1 picture has a caption and was left alone; --overwrite captions it, too." in lines
    assert "  old dog.png: old dog" in lines and "--write-files" in lines[-1]
    assert "Skipped IMG_2034.png: Its name tells nothing to caption it with." in lines
    (photos / "IMG_2034.png").write_bytes(b"no picture")
    lines = list(work.told(caption(workspace, photos, captioner="file-name")[0]))
    skipped = [line for line in lines if line.startswith("Skipped")]
    assert len(skipped) == 1 and skipped[0].count("IMG_2034.png") == 1
    assert "5 pictures have a caption and were left alone; --overwrite captions them, too." in lines


class Counted(Captioner):
    """A captioner whose card holds `room` pictures at once."""

    name, title, about = "blip", "Counted", "It counts."
    reads = ("batch_size", "precision", "model")
    download = Download("some/model", 1, "none")
    room, sizes = 2, []

    def load(self, *args: object) -> Captioning:
        def write(pictures: Sequence[Picture]) -> list[str]:
            import torch

            self.sizes.append(len(pictures))
            if len(pictures) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return ["a picture" for _ in pictures]

        return write


@pytest.mark.parametrize("room", [2, 0])
def test_out_of_memory_means_fewer_at_once(
    room: int, workspace: Workspace, photos: Path, blip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by = Counted()
    by.room, by.sizes = room, []
    monkeypatch.setattr(work, "captioner", lambda name: by)
    asked = {"captioner": "blip", "model": str(blip), "batch_size": 4, "overwrite": True}
    if not room:
        with pytest.raises(UserError, match="ran out while Counted looked at a single picture"):
            caption(workspace, photos, **asked)
        assert by.sizes == [4, 2, 1]
        return
    answer, said = caption(workspace, photos, **asked)
    assert by.sizes == [4, 2, 2, 1] and answer["written"] == 5
    assert [e.text for e in said if isinstance(e, Said)] == [
        "The card's memory ran out; from here on 2 at once."
    ]


def test_the_model_is_gone_when_it_is_done(
    workspace: Workspace, photos: Path, blip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []
    load = captioners.captioner("blip")._model  # type: ignore[attr-defined]

    def watched(*args: Any) -> Any:
        model = load(*args)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(captioners.captioner("blip"), "_model", watched, raising=False)
    caption(workspace, photos, captioner="blip", model=str(blip), max_tokens=5)
    gc.collect()
    assert [ref() for ref in models] == [None]


@pytest.mark.parametrize(
    ("values", "sentence", "path"),
    [
        ({"captioner": "blip", "threshold": 0.5}, "BLIP has no use for it", "threshold"),
        ({"captioner": "florence2", "instruction": "a"}, "Florence-2 has no use for it", "instruction"),
        ({"captioner": "blip", "mode": "after"}, "Turn on overwrite", "mode"),
        ({"captioner": "blip", "template": "a photo"}, "nothing of what is seen", "template"),
        ({"captioner": "blip", "template": "{dog}"}, "{dog} stands for nothing", "template"),
        ({"captioner": "blip", "template": "{trigger}, {caption}"}, "there is none", "trigger"),
        ({"captioner": "file-name", "pictures": ["x.png"]}, "no usable picture 'x.png'", "pictures"),
        ({"captioner": "blip", "model": "/nowhere"}, "has no config.json and no tokenizer_config", "model"),
        ({"captioner": "blip", "folder": ""}, "No image folder", "data.folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    values: dict[str, Any], sentence: str, path: str, workspace: Workspace, photos: Path
) -> None:
    folder = Path(values.pop("folder", str(photos)))
    with pytest.raises(UserError, match=sentence) as raised:
        caption(workspace, folder if str(folder) != "." else Path(), **values)
    assert raised.value.path == path


def test_a_folder_with_files_missing_is_refused_by_their_names(
    workspace: Workspace, photos: Path, blip: Path, tmp_path: Path
) -> None:
    def refused(name: str) -> str:
        with pytest.raises(UserError) as raised:
            caption(workspace, photos, captioner="blip", model=str(tmp_path / name))
        assert raised.value.path == "model"
        return raised.value.what

    old = shutil.copytree(blip, tmp_path / "old")
    (old / "model.safetensors").rename(old / "pytorch_model.bin")
    assert "has no *.safetensors." in refused("old")
    shards = shutil.copytree(blip, tmp_path / "shards")
    (shards / "model.safetensors").rename(shards / "model-00001-of-00002.safetensors")
    index = {"weight_map": {f"{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused("shards").endswith("has no model-00002-of-00002.safetensors.")
    (shards / "model.safetensors.index.json").write_text("[]")
    assert "lists no files" in refused("shards")
    cut = shutil.copytree(blip, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model.safetensors"):
        caption(workspace, photos, captioner="blip", model=str(cut))


def test_how_far_it_is_is_said_before_the_first_picture_is_done(workspace: Workspace, photos: Path) -> None:
    chore = chores.CHORES["caption"]
    settings = chore.check({"folder": str(photos), "captioner": "file-name", "overwrite": True})
    ticks = [event for event in chore.do(settings, workspace) if isinstance(event, Progress)]
    assert (ticks[0].done, ticks[0].total, ticks[0].seconds_left) == (0, 5, None)


def test_without_the_hub_the_size_is_told(
    workspace: Workspace, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"about 379 MB\) is not on this machine"):
        caption(workspace, photos, captioner="wd-tagger")


def test_the_command_line_captions(
    workspace: Workspace, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(workspace.root))
    assert main(["caption", str(photos), "--captioner", "file-name", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 4
    assert main(["caption", str(photos), "--captioner", "file-name", "--overwrite"]) == 0
    assert "File names: 4 captions written." in capsys.readouterr().out
    assert main(["caption", str(photos), "--captioner", "nobody"]) == 2
