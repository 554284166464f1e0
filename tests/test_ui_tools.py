"""The Tools tab and the place to try, without a browser: lists of files, drawings, what is handed over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sdtrainer import config as configs
from sdtrainer.section import UserError
from sdtrainer.ui import downloads, file_lists
from sdtrainer.ui.access import Access
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.listen import Given
from sdtrainer.ui.tools import Tools, kept, network
from sdtrainer.ui.tools.card import ToolCard, link
from sdtrainer.ui.tools.mixing import Mix
from sdtrainer.ui.trying import Try
from sdtrainer.workspace import RunFolder, Workspace, create_run


@pytest.fixture
def desk(workspace: Workspace) -> Iterator[Desk]:
    desk = Desk(workspace, Access(workspace))
    yield desk
    desk.close()


def built(desk: Desk) -> tuple[Tools, Try]:
    with gr.Blocks():
        trying = Try(desk)
        trying.build()
        tools = Tools(desk, trying)
        tools.build()
    return tools, trying


def run_with(workspace: Workspace, kind: str, *names: str) -> RunFolder:
    run = create_run(
        workspace.runs,
        configs.build({"method": {"kind": kind}, "sample": {"prompts": ["a zib robot"], "seed": 5}}),
    )
    for name in names:
        (run.output / name).write_bytes(b"weights")
    return run


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def given(tools: Any, **values: Any) -> Given:
    """What a handler gets: every field as built, some filled in."""
    held = {field.widget: field.widget.value for field in tools.fields.values()}
    return Given(held | values, "owner", "page")


# -- files -----------------------------------------------------------------------------------------


def test_a_list_offers_what_may_be_meant_and_nothing_else(workspace: Workspace) -> None:
    lora, full = (
        run_with(workspace, "lora", "cat.safetensors", ".cat.part"),
        run_with(workspace, "full", "m.ckpt"),
    )
    made = put(workspace.tools / "merged.safetensors")
    put(workspace.tools / "notes.txt")
    uploaded = file_lists.take_in(workspace, [str(put(workspace.root / "elsewhere" / "other.safetensors"))])
    drawn = put(workspace.drawings / "cat-001.png")
    found = file_lists.known(workspace)
    offered = {
        role: {value for _, value in file_lists.choices(found, role)}
        for role in ("adapter", "model", "any", "picture")
    }
    both = {str(made), *map(str, uploaded)}
    adapter, model = str(lora.output / "cat.safetensors"), str(full.output / "m.ckpt")
    assert offered == {
        "adapter": both | {adapter},
        "model": both | {model, "starter"},
        "any": both | {adapter, model},
        "picture": {str(drawn)},
    }


def test_what_is_no_model_is_not_taken_in(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="None of these is a file of a model"):
        file_lists.take_in(workspace, [str(put(workspace.root / "notes.txt"))])


def test_results_are_handed_out_and_nothing_else(workspace: Workspace) -> None:
    run = run_with(workspace, "lora", "cat.safetensors")
    good = [
        put(workspace.tools / "a.safetensors"),
        put(workspace.drawings / "b.png"),
        run.output / "cat.safetensors",
    ]
    (workspace.tools / "link.txt").symlink_to(put(workspace.root / "secret.txt"))
    bad = [workspace.root / "secret.txt", run.config_file, workspace.tools / "link.txt", workspace.tools,
           workspace.tools / ".." / "secret.txt", workspace.tools / "nothing"]  # fmt: skip
    assert [downloads._is_made(path, workspace) for path in good] == [True] * 3
    assert [downloads._is_made(path, workspace) for path in bad] == [False] * 6


def test_a_result_outside_the_workspace_has_no_link(desk: Desk, tmp_path: Path) -> None:
    inside, outside = put(desk.workspace.tools / "my cat.safetensors"), put(tmp_path / "there.safetensors")
    assert 'href="made/tools/my%20cat.safetensors"' in link(desk, inside)
    assert "href" not in link(desk, outside) and str(outside) in link(desk, outside)


# -- drawing layers --------------------------------------------------------------------------------


def layer(name: str, gain: float | None, state: str = "fine", place: str = "up 1") -> dict[str, Any]:
    return {"name": name, "part": "denoiser", "place": place, "kind": "attention", "rank": 4, "alpha": 4.0,
            "norm": gain, "relative": gain, "gain": gain, "state": state}  # fmt: skip


def test_every_layer_is_drawn_the_stronger_the_more_colour_and_broken_ones_stand_out() -> None:
    layers = [layer("weak", 0.01), layer("strong", 1.0), layer("<odd>", None, "not numbers", "down 0")]
    drawn = network.drawn(layers)
    opacity = {
        name: float(drawn.split(f"<title>{name}:")[0].rpartition('fill-opacity="')[2].split('"')[0])
        for name in ("weak", "strong")
    }
    assert opacity["strong"] == 1.0 and network.FAINTEST < opacity["weak"] < 0.3
    assert drawn.count("<title>") == 3 and drawn.count('class="broken"') == 2  # the layer, and the key
    assert drawn.index(">down 0<") < drawn.index(">up 1<") and "&lt;odd&gt;" in drawn
    assert network.table(layers).index("odd") < network.table(layers).index("strong")


def test_bars_are_as_high_as_what_is_kept_and_the_least_is_named() -> None:
    rows = [
        {"part": part, "path": path, "rank": 4, "kept": kept_}
        for part, path, kept_ in (
            ("unet", "down", 1.0),
            ("unet", "<up>", 0.25),
            ("text_encoder", "one", 0.95),
        )
    ]
    drawn = kept.bars(rows)
    assert [float(tall) for tall in re.findall(r'class="(?:enough|little)".*? height="([\d.]+)"', drawn)] == [
        120,
        30,
        114,
    ]
    assert drawn.count('class="little"') == 1 and drawn.count("<figure>") == 2
    assert "Least is kept of &lt;up&gt; (25.0%)" in drawn


def test_a_preview_of_a_mix_draws_each_adapter_at_its_weight(desk: Desk) -> None:
    tools, _ = built(desk)
    mix = next(card for card in tools.cards if isinstance(card, Mix))
    adapters, weights = (mix.fields[name].widget for name in ("adapters", "weights"))
    held = given(mix).values | {adapters: ["a.safetensors", "b.safetensors"], weights: "0.7, -0.3"}  # type: ignore[operator]
    assert mix.what(Given(held, "owner", "page")) == ["a.safetensors:0.7", "b.safetensors:-0.3"]
    with pytest.raises(UserError, match="there are 1 for 2 adapters"):
        mix.what(Given(held | {weights: "0.7"}, "owner", "page"))


def test_the_base_of_a_runs_file_is_that_of_the_run(desk: Desk) -> None:
    with gr.Blocks():
        card = ToolCard(desk, "merge", "Merge", "Merge", "", {"base": "model", "adapters": "adapter"})
        card.build()
    run = run_with(desk.workspace, "lora", "cat.safetensors")
    base, adapters = (card.fields[name].widget for name in ("base", "adapters"))
    held = given(card).values | {adapters: [str(run.output / "cat.safetensors")]}  # type: ignore[operator]
    assert card.values(Given(held, "owner", "page"))["base"] == "starter"
    assert card.values(Given(held | {base: "mine"}, "owner", "page"))["base"] == "mine"
    assert card.values(Given(held | {adapters: ["/elsewhere/b/a.pt"]}, "owner", "page"))["base"] == ""


def test_a_run_that_cannot_be_read_still_offers_its_files(workspace: Workspace) -> None:
    run = run_with(workspace, "lora", "cat.safetensors")
    run.config_file.write_text("[base]\nunheard_of = 1\n", encoding="utf-8")
    assert [one.role for one in file_lists.known(workspace)] == ["any"]


# -- looking, editing, trying ----------------------------------------------------------------------


def looked(desk: Desk, tools: Tools, path: Path) -> dict[str, Any]:
    """As if a file had been looked at."""
    shown = {
        "path": str(path),
        "labels": {"title": "Old", "author": "me", "description": "", "trigger": "", "tags": ""},
        "like": {"source": "x", "values": {"method.kind": "loha", "train.steps": "77"}, "left": []},
    }  # fmt: skip
    desk.errands.found["inspect"] = {"files": [shown]}
    return shown


def test_an_edit_sends_what_a_person_changed_and_empties_what_was_emptied(desk: Desk, tmp_path: Path) -> None:
    tools, _ = built(desk)
    edit = tools.cards[0].edit  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="No file was looked at yet"):
        edit.values(given(edit))
    looked(desk, tools, tmp_path / "cat.safetensors")
    filled = edit.fill(given(edit))
    title, author, trigger = (edit.fields[name].widget for name in ("title", "author", "trigger"))
    assert (filled[title], filled[author]) == ("Old", "me") and edit.fill(given(edit)) == {}
    sent = edit.values(Given(given(edit).values | filled | {author: " ", trigger: "zib"}, "owner", "page"))  # type: ignore[operator]
    assert (sent["title"], sent["author"], sent["trigger"], sent["description"]) == ("", "-", "zib", "")
    assert sent["file"] == str(tmp_path / "cat.safetensors")


def test_train_like_this_lays_the_settings_over_the_project(desk: Desk, tmp_path: Path) -> None:
    tools, _ = built(desk)
    looked(desk, tools, tmp_path / "cat.safetensors")
    folder = desk.project.values["data"]["folder"]
    tools.cards[0]._take_over(given(tools.cards[0]))  # type: ignore[attr-defined]
    config = configs.build(desk.project.values)
    assert (config.method.kind, config.train.steps, config.data.folder) == ("loha", "77", folder)


def test_adapters_to_try_are_those_of_the_rows_that_hold_one(desk: Desk) -> None:
    _, trying = built(desk)
    rows = {widget: None for field, strength in trying.rows for widget in (field.widget, strength)}
    (first, first_strength), (second, second_strength), *_ = trying.rows
    filled = {
        first.widget: "a.safetensors",
        first_strength: 0.8,
        second.widget: "b.pt",
        second_strength: None,
    }
    values = trying.values(Given(given(trying).values | rows | filled, "owner", "page"))  # type: ignore[operator]
    assert values["what"] == ["a.safetensors:0.8", "b.pt:1"] and values["strength"] == [0.0, 1.0]
    trying.chore.check(values)


def test_a_run_is_tried_with_its_own_base_prompts_and_seed(desk: Desk) -> None:
    _, trying = built(desk)
    with pytest.raises(UserError, match="has no exported file yet"):
        trying.fill(run_with(desk.workspace, "lora"))
    run = run_with(desk.workspace, "lora", "cat.safetensors")
    shown = trying.fill(run)
    first, strength = trying.rows[0]
    assert (shown[first.widget], shown[strength]) == (str(run.output / "cat.safetensors"), 1.0)
    held = {name: shown[trying.fields[name].widget] for name in ("base", "prompt", "seed")}
    assert held == {"base": "starter", "prompt": "a zib robot", "seed": 5}


@pytest.mark.parametrize("text", ["0, 0.5,1", "0 0.5 1", "[0, 0.5, 1]"])
def test_strengths_are_read_as_a_person_writes_them(desk: Desk, text: str) -> None:
    _, trying = built(desk)
    assert trying.fields["strength"].read(text) == [0.0, 0.5, 1.0]
    assert trying.fields["strength"].show([0.0, 0.5, 1.0]) == "0, 0.5, 1"
    with pytest.raises(UserError, match=r"Strengths .* 'half'"):
        trying.chore.check({"strength": trying.fields["strength"].read("half")})
