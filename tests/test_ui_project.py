"""What a person typed is kept, and a preset changes what is its own and nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdtrainer import config as configs
from sdtrainer import presets
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.methods import METHODS, method_of
from sdtrainer.section import UserError, override
from sdtrainer.ui.access import Access
from sdtrainer.ui.outlook import Looker
from sdtrainer.ui.project import OWN, STARTER_PRESET, Project, from_preset
from sdtrainer.ui.thumbnails import GRID, thumbnail
from sdtrainer.workspace import PROJECT, Workspace


def test_a_first_start_opens_with_the_starter(workspace: Workspace) -> None:
    project = Project(workspace)
    assert project.values["base"]["path"] == "starter" and project.preset == STARTER_PRESET
    assert project.changes(configs.build(project.values)) == {}


def test_what_was_typed_survives_a_restart_even_if_it_is_wrong(workspace: Workspace) -> None:
    project = Project(workspace)
    project.change(
        override(project.values, {"train.batch_size": None, "train.steps": "many", "method.rank": 8}), "page"
    )
    again = Project(workspace)
    assert again.values["train"]["steps"] == "many" and again.values["method"]["rank"] == 8
    assert "batch_size" not in again.values["train"]


def test_a_preset_leaves_a_persons_own_base_model_alone(workspace: Workspace) -> None:
    known = presets.presets()
    paths = {p.values["base"]["path"] for p in known}
    assert "starter" in paths and len(paths) >= 4
    for preset in known:
        named = preset.values["base"]["path"]
        for path in ("/models/mine.safetensors", "some-one/some-model", *paths):
            values = from_preset({"base": {"path": path}}, preset, known)
            keeps = path not in paths and preset.name != STARTER_PRESET
            assert values["base"]["path"] == (path if keeps else named), (preset.name, path)


def test_with_own_pictures_the_starters_name_prompts_and_validation_go(workspace: Workspace) -> None:
    project = Project(workspace)
    project.lay({"data.folder": "/pictures/my cat (2)"}, "lora", "page")
    values = project.values
    assert values["run"]["name"] == "my cat -2"
    assert values["sample"]["prompts"] == [] and values["data"]["validation_folder"] == ""
    project.lay({"data.folder": "/pictures/dog"}, "lora", "page")
    assert project.values["run"]["name"] == "my cat -2"


def test_with_own_pictures_what_a_person_wrote_stays(workspace: Workspace) -> None:
    project = Project(workspace)
    own = {"run.name": "mine", "sample.prompts": ["a cat"], "data.validation_folder": "/pictures/held out"}
    project.lay(own, "lora", "page")
    project.lay({"data.folder": "/pictures/cat"}, "lora", "page")
    kept = configs.flatten(project.values)
    assert {path: kept[path] for path in own} == own


@pytest.mark.parametrize(
    "folder", ["/", "...", "/p/~~", "/p/" + "x" * 300, "C:\\cats", "/p/猫 と 犬.d", "_a"]
)
def test_any_folder_gives_a_run_a_name_that_can_be_one(workspace: Workspace, folder: str) -> None:
    project = Project(workspace)
    project.lay({"data.folder": folder}, "lora", "page")
    assert configs.build(project.values).run.name not in ("", "zib-robot")


def test_an_unreadable_draft_is_set_aside(workspace: Workspace) -> None:
    workspace.root.mkdir(parents=True)
    (workspace.root / "draft.toml").write_text("this is = = no toml")
    assert Project(workspace).preset == STARTER_PRESET
    assert (workspace.root / "draft-unreadable.toml").exists()


def test_only_real_changes_count(workspace: Workspace) -> None:
    project = Project(workspace)
    project.change(dict(project.values), "page")
    assert project.version == 0
    project.change(override(project.values, {"method.rank": 3}), "page")
    assert project.version == 1
    assert project.changes(configs.build(project.values)) == {"method.rank": (16, 3)}


@pytest.mark.parametrize("preset", presets.presets(), ids=lambda p: p.name)
def test_a_preset_keeps_what_is_the_persons_own(preset: presets.Preset) -> None:
    own = {"run.note": "mine", "data.trigger": "zib", "export.author": "me"}
    assert set(own) <= set(OWN)
    values = from_preset(override({"train": {"batch_size": 99}}, own), preset)
    flat = configs.flatten(configs.build(values).values())
    assert {path: flat[path] for path in own} == own
    assert flat["train.batch_size"] != 99


def test_the_outlook_finds_out_as_much_as_it_can(workspace: Workspace, images: Path) -> None:
    looker = Looker(workspace, Access(workspace))
    wrong_model = looker.look({"base": {"path": "/nowhere"}, "data": {"folder": str(images)}}, CPU_ONLY)
    assert wrong_model.error and wrong_model.error.path == "base.path"
    assert wrong_model.census and len(wrong_model.census.samples) == 5
    wrong_value = looker.look({"method": {"kind": "lora", "rank": 0}}, CPU_ONLY)
    assert wrong_value.error and wrong_value.error.path == "method.rank"


def test_the_outlook_is_the_plan_that_would_run(workspace: Workspace, images: Path, base: Path) -> None:
    values = {"base": {"path": str(base)}, "data": {"folder": str(images)}, "train": {"steps": "2 epochs"}}
    outlook = Looker(workspace, Access(workspace)).look(values, CPU_ONLY)
    assert outlook.error is None and outlook.plan and outlook.plan.total_steps == 10


def test_a_thumbnail_is_small_upright_and_made_anew_when_the_picture_changes(
    workspace: Workspace, tmp_path: Path
) -> None:
    from PIL import Image

    picture = tmp_path / "a.png"
    Image.new("RGBA", (900, 300), (255, 0, 0, 0)).save(picture)
    first = thumbnail(workspace, picture)
    assert Image.open(first).size == (GRID, round(GRID / 3))
    assert thumbnail(workspace, picture) == first
    Image.new("L", (50, 100)).save(picture)
    second = thumbnail(workspace, picture)
    assert second != first and Image.open(second).size == (50, 100)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("CMYK", (60, 20)).save(tmp_path / "b.jpg", exif=turned)
    assert Image.open(thumbnail(workspace, tmp_path / "b.jpg")).size == (20, 60)


def test_the_page_is_built_without_the_heavy_libraries(tmp_path: Path) -> None:
    """The page must be there before torch is: importing that takes longer than everything else."""
    script = """
import sys, app
from sdtrainer.workspace import Workspace
from pathlib import Path
home = Workspace(Path(sys.argv[1]))
app.prepare(home)
with app.no_stub_files():
    from sdtrainer.ui import serve
running = serve.serve(home, "127.0.0.1", None)
running.desk.look()
print(sorted({"torch", "peft", "diffusers", "transformers", "accelerate", "bitsandbytes"} & set(sys.modules)))
running.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_a_picture_that_is_cut_short_is_shown_crossed_out(tmp_path: Path, ending: str) -> None:
    from PIL import Image

    picture = tmp_path / f"a{ending}"
    Image.effect_noise((300, 200), 80).convert("RGB").save(picture)
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    shown = Image.open(thumbnail(Workspace(tmp_path / "home"), picture))
    assert shown.size == (GRID, GRID)
    red, green, _ = shown.convert("RGB").getpixel((GRID // 2, GRID // 2))
    assert red > green + 50


@pytest.mark.parametrize("kind", METHODS)
def test_undoing_the_method_brings_back_all_that_the_preset_set_for_it(
    workspace: Workspace, kind: str
) -> None:
    project = Project(workspace)
    preset = configs.build(project.values)
    method = method_of(kind).Section()
    project.change(dict(project.values) | {"method": method.model_dump(mode="json")}, "page")
    changed = project.changes(configs.build(project.values))
    if kind != preset.method.kind:  # a method left as it is counts as one change
        assert changed == {"method.kind": (preset.method.kind, kind)}
    project.undo(changed, configs.build(project.values), "page")
    assert configs.build(project.values) == preset and project.changes(preset) == {}


def test_a_hub_that_does_not_answer_does_not_hold_up_the_page(
    workspace: Workspace, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, asked = threading.Event(), []

    def slow(section: object) -> object:
        asked.append(section)
        answered.wait(30)
        raise UserError("Base model: no answer.", "Go online.", "base.path")

    monkeypatch.setattr("sdtrainer.ui.outlook.families.recognise", slow)
    monkeypatch.setattr("sdtrainer.ui.outlook.WAIT_SECONDS", 0.05)
    looker = Looker(workspace, Access(workspace))
    values = {"base": {"path": "some/model"}, "data": {"folder": str(images)}}
    for _ in range(3):
        seen = looker.look(values, CPU_ONLY)
        assert seen.error and "looked up online" in seen.error.what and seen.census
    time.sleep(0.05)
    answered.set()
    wait_for(lambda: looker.num_answers == 1)
    seen = looker.look(values, CPU_ONLY)
    assert seen.error and "no answer" in seen.error.what and len(asked) == 1


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
