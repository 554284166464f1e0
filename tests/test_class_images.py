"""Class images: drawn once, the same whatever interrupts, and own ones in their place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import Trainer
from PIL import Image
from safetensors import safe_open
from test_prior import PRIOR, QUIET, kill_after, planned
from test_train import of

from sdtrainer import classes, planner
from sdtrainer import config as configs
from sdtrainer.chores import CHORES
from sdtrainer.data import prior
from sdtrainer.data.prior import PriorSection
from sdtrainer.events import Event, Finished, PhaseBegan, Progress, Suspended
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.section import UserError
from sdtrainer.training.control import Control
from sdtrainer.ui.access import Access
from sdtrainer.verbs.train import new_run

# -- drawing ----------------------------------------------------------------------------------------


def pictures(trainer: Trainer) -> dict[str, bytes]:
    """Every class image in the workspace, by folder and name."""
    files = sorted(trainer.workspace.class_images.rglob("*.png"))
    return {f"{file.parent.name}/{file.name}": Image.open(file).tobytes() for file in files}


def drawing(happened: list[Event]) -> bool:
    return any(isinstance(event, PhaseBegan) and event.phase == "prior" for event in happened)


def test_class_images_are_functions_of_their_number(trainer: Trainer) -> None:
    trainer.run(trainer.new(**PRIOR, train__steps="1"))
    six = pictures(trainer)
    assert len(six) == len(set(six.values())) == 6
    assert all(Image.open(f).size == (64, 64) for f in trainer.workspace.class_images.rglob("*.png"))
    again = trainer.run(trainer.new(**PRIOR, train__steps="1", train__seed=7))
    assert not drawing(again) and pictures(trainer) == six  # used by another run
    trainer.run(trainer.new(**PRIOR | {"prior__images": 9}, train__steps="1"))
    nine = pictures(trainer)
    assert len(nine) == 9 and {name: nine[name] for name in six} == six  # more extend the set
    trainer.run(trainer.new(**PRIOR | {"prior__class_prompt": "a box"}, train__steps="1"))
    assert len({name.split("/")[0] for name in pictures(trainer)}) == 2  # another prompt, another set


def test_only_what_is_missing_is_drawn_after_a_kill_and_it_is_the_same(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdtrainer.sample import Sampler

    folder = trainer.new(**PRIOR, train__steps="1")
    trainer.run(folder, on_event=kill_after(1))
    four = pictures(trainer)
    assert len(four) == 4
    drawn: list[int] = []
    draw_all = Sampler.draw_all
    monkeypatch.setattr(
        Sampler, "draw_all", lambda self, wanted: (drawn.append(len(wanted)), draw_all(self, wanted))[1]
    )
    assert isinstance(trainer.run(folder)[-1], Finished)
    six = pictures(trainer)
    assert drawn == [2] and {name: six[name] for name in four} == four
    next(trainer.workspace.class_images.rglob("00001.png")).unlink()
    trainer.run(trainer.new(**PRIOR, train__steps="1"))
    assert pictures(trainer) == six
    shutil.rmtree(trainer.workspace.class_images)
    trainer.run(trainer.new(**PRIOR, train__steps="1", train__seed=7))
    assert pictures(trainer) == six


def draw_now(trainer: Trainer, until: int | None = None) -> dict[str, Any] | None:
    """Draw them without training; `until` so many lie there, as if it was killed then."""
    words = classes.as_words(trainer.config(**PRIOR, train__steps="1"))
    doing = classes.work(classes.Settings(settings=words), trainer.workspace)  # unpaced: every event comes
    while True:
        try:
            next(doing)
        except StopIteration as end:
            return end.value
        if until is not None and len(pictures(trainer)) >= until:
            doing.close()
            return None


def test_drawn_now_with_a_break_they_are_as_training_draws_them_and_it_draws_none(
    trainer: Trainer,
) -> None:
    trainer.run(trainer.new(**PRIOR, train__steps="1"), on_event=kill_after(2))
    six = pictures(trainer)
    shutil.rmtree(trainer.workspace.class_images)
    draw_now(trainer, until=4)
    assert len(six) == 6 and len(pictures(trainer)) == 4
    found = draw_now(trainer)
    assert found and (found["images"], found["drawn"]) == (6, 2)
    assert [Path(found["folder"])] == list(trainer.workspace.class_images.iterdir())
    assert pictures(trainer) == six
    assert not drawing(trainer.run(trainer.new(**PRIOR, train__steps="1"))) and pictures(trainer) == six


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ([], "prior.class_prompt"),
        (["prior.folder=/dogs"], "prior.folder"),
        (["prior.images=0"], "prior.images"),
    ],
)
def test_where_there_is_nothing_to_draw_it_is_said_before_anything_is_loaded(
    trainer: Trainer, settings: list[str], path: str
) -> None:
    chore = CHORES["classes"]
    with pytest.raises(UserError) as raised:
        next(chore.do(chore.check({"settings": settings}), trainer.workspace))
    assert raised.value.path == path


def test_another_base_model_at_the_same_path_has_its_own_class_images(
    trainer: Trainer, base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(base, tmp_path / "base")
    changes = PRIOR | {"base__path": str(copy)}
    config = trainer.config(**changes)

    def folder() -> Path:
        return planner.draft(config, trainer.workspace, CPU_ONLY).class_images.folder  # type: ignore[union-attr]

    before = folder()
    assert folder() == before and before.name.startswith("a-disc-")
    tiny.make_base(copy, seed=1)
    assert folder() != before


def test_a_word_to_end_is_heard_while_drawing(trainer: Trainer) -> None:
    folder = trainer.new(**PRIOR, train__steps="2")

    def orders(event: Event, control: Control) -> None:
        if isinstance(event, Progress) and event.unit == "class images" and event.done == 4:
            control.put("stop")

    happened = trainer.run(folder, on_event=orders)
    assert isinstance(happened[-1], Suspended) and len(pictures(trainer)) == 4
    assert [e.total for e in of(Progress, happened)][-1] == 6
    assert isinstance(trainer.run(folder)[-1], Finished) and len(pictures(trainer)) == 6


def test_the_next_number_stands_in_for_a_picture_thrown_away(trainer: Trainer) -> None:
    trainer.run(trainer.new(**PRIOR, train__steps="1"))
    six = pictures(trainer)
    bad = next(trainer.workspace.class_images.rglob("00001.png"))
    prior.throw_away(bad.parent, [1])
    bad.unlink()
    trainer.run(trainer.new(**PRIOR, train__steps="1"))
    others = pictures(trainer)
    gone, new = f"{bad.parent.name}/00001.png", f"{bad.parent.name}/00006.png"
    assert others == {name: six[name] for name in six if name != gone} | {new: others[new]}
    assert others[new] not in six.values()


def test_of_too_many_class_images_others_take_the_place_of_those_thrown_away(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number:05d}.png").touch()
    four = PriorSection(class_prompt="a disc", images=4)
    prior.throw_away(tmp_path, [1])
    prior.throw_away(tmp_path, [2, 9])
    samples = prior.drawn(four, 64, tmp_path).samples
    assert [prior.number_of(sample) for sample in samples] == [0, 3, 4, 5]
    assert prior.missing(samples) == ()
    (tmp_path / prior.THROWN_AWAY).write_text("{1")
    with pytest.raises(UserError, match="Delete it"):
        prior.drawn(four, 64, tmp_path)


# -- own class images -------------------------------------------------------------------------------


def bare_images(folder: Path, count: int) -> Path:
    tiny.make_images(folder, count)
    for text in folder.glob("*.txt"):
        text.unlink()
    return folder


def test_own_class_images_say_what_stands_beside_them_else_the_class_prompt(
    trainer: Trainer, tmp_path: Path
) -> None:
    folder = bare_images(tmp_path / "classes", 3)
    (folder / "01.txt").write_text("a red disc", encoding="utf-8")
    with pytest.raises(UserError, match=r"Class prompt: it is empty, and 00\.png has no caption") as raised:
        planned(trainer, prior__folder=str(folder))
    assert raised.value.path == "prior.class_prompt"
    config = trainer.config(prior__folder=str(folder), prior__class_prompt="a disc", data__trigger="zib")
    found = planner.look(config, trainer.workspace).class_images
    items = prior.class_items(found, config.prior, config.data, [64])
    assert [item.caption for item in items] == ["a disc", "a red disc", "a disc"]


def test_a_kohya_folder_of_class_images_works_from_the_command_line(trainer: Trainer, tmp_path: Path) -> None:
    bare_images(tmp_path / "regularisation" / "1_disc", 4)
    configs.save(trainer.config(**QUIET, train__steps="3"), tmp_path / "run.toml")
    words = [f"prior.folder={tmp_path / 'regularisation'}"]
    folder = new_run(tmp_path / "run.toml", words, trainer.workspace.runs)
    assert isinstance(trainer.run(folder)[-1], Finished)
    kept = planner.load(folder)
    assert kept is not None and kept.class_images is not None and kept.plan.num_class_images == 4
    assert {sample.class_word for sample in kept.class_images.samples} == {"disc"}
    with safe_open(folder.output / "test.safetensors", "pt") as file:
        assert file.metadata()["ss_num_reg_images"] == "4"
    assert not trainer.workspace.class_images.exists()  # none were drawn


@pytest.mark.parametrize("folder", ["/no/such/folder", "empty"])
def test_a_folder_without_class_images_is_named(trainer: Trainer, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as raised:
        planned(trainer, **PRIOR, prior__folder=folder if folder[0] == "/" else str(tmp_path / folder))
    assert raised.value.path == "prior.folder"


def test_own_class_images_lie_in_the_workspace_while_the_page_is_shared(
    trainer: Trainer, tmp_path: Path
) -> None:
    access = Access(trainer.workspace, is_shared=True)
    inside = {"base__path": "starter", "data__folder": "starter", "data__validation_folder": ""}
    access.check(trainer.config(**inside, prior__folder=str(trainer.workspace.uploads / "dogs")))
    with pytest.raises(UserError, match="Folder of class images") as raised:
        access.check(trainer.config(**inside, prior__folder=str(tmp_path / "dogs")))
    assert raised.value.path == "prior.folder"
