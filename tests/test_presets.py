"""Presets: each is a valid run that says where its values come from, and fits the card that it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import sd3
import sd15
import sdxl

from sdtrainer import planner
from sdtrainer import presets as shipped
from sdtrainer.config import Config, build, changed, flatten
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.memory import estimate
from sdtrainer.presets import FOLDER, Preset, apply, preset, presets
from sdtrainer.section import UserError, override
from sdtrainer.workspace import Workspace

PRESETS = presets()
PROMISES = {"basis", "vram_gib", "minutes", "card"}


def config_of(chosen: Preset) -> Config:
    return build(apply(Config().values(), chosen))


def test_there_are_presets_for_every_goal_and_card() -> None:
    assert len(PRESETS) >= 7
    assert {p.name for p in PRESETS} == {file.stem for file in FOLDER.glob("*.toml")}
    assert {config_of(p).run.goal for p in PRESETS} == {"subject", "style", "concept"}
    assert {p.promises["vram_gib"] for p in PRESETS} == {0, 8, 16, 24}


@pytest.mark.parametrize("chosen", PRESETS, ids=lambda p: p.name)
def test_a_preset_says_what_it_is_for_and_where_it_comes_from(chosen: Preset) -> None:
    assert chosen.title and not chosen.title.endswith(".")
    assert chosen.about.endswith(".") and len(chosen.source) > 20
    assert chosen.promises.keys() <= PROMISES and {"vram_gib", "minutes"} <= chosen.promises.keys()
    assert chosen.promises["minutes"] > 0
    if chosen.promises["vram_gib"]:
        assert chosen.promises["card"] and chosen.promises["basis"] in ("estimate", "measured")


@pytest.mark.parametrize("chosen", PRESETS, ids=lambda p: p.name)
def test_a_preset_is_valid_and_differs_from_the_defaults(chosen: Preset) -> None:
    config = config_of(chosen)
    differing = changed(config, Config())
    assert len(differing) >= 4
    assert chosen.values["method"]["kind"] == config.method.kind
    assert config.base.path in ("starter", sd15.HUB_ID, sdxl.HUB_ID, sd3.HUB_ID)
    assert config.data.folder == ("starter" if config.base.path == "starter" else "")


def test_no_two_presets_are_the_same() -> None:
    kept = [{k: v for k, v in flatten(p.values).items() if not k.startswith("run.")} for p in PRESETS]
    assert all(kept.count(values) == 1 for values in kept)
    assert len({p.title for p in PRESETS}) == len(PRESETS)


def test_the_small_file_is_as_small_as_it_says(
    published_models: dict[str, str], images: Path, workspace: Workspace
) -> None:
    chosen = preset("sd15-small-file-8gb")
    here = {"base.path": published_models[sd15.HUB_ID], "data.folder": str(images)}
    config = build(override(apply(Config().values(), chosen), here))
    size = estimate(planner.draft(config, workspace, CPU_ONLY).plan).exported_bytes
    assert "about 2 MB" in chosen.about and 1.5e6 < size < 2.5e6


def test_a_preset_keeps_what_it_does_not_speak_of() -> None:
    mine = build(
        {"data": {"folder": "mine", "trigger": "zib"}, "train": {"seed": 7}, "method": {"dropout": 0.2}}
    )
    config = build(apply(mine.values(), preset("sd15-quick-test")))
    assert (config.data.folder, config.data.trigger, config.train.seed) == ("mine", "zib", 7)
    assert (config.method.rank, config.method.dropout) == (4, 0.2)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no preset 'magic'.*starter"):
        preset("magic")


def test_a_broken_preset_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('title = "x"\n[train]\nsteps = 0\n', encoding="utf-8")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"mine\.toml, line 3: Length \(train\.steps\) is "):
        presets()
