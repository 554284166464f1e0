"""The family of a base model as the user states it: it counts where the files leave it open, and is refused
where their shapes say another.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import test_sdxl_files
import torch
from safetensors.torch import load_file, save_file
from test_base_models import MADE, sd2, write_files  # noqa: F401  (a fixture)
from test_sdxl_files import assert_same, export

from sdtrainer import families, recognition
from sdtrainer.families import FAMILIES, BaseSection
from sdtrainer.formats import whole_model
from sdtrainer.formats.diffusers_folder import INDEX
from sdtrainer.hardware import detect
from sdtrainer.recognition.bases import AUTO, BASES, STATED
from sdtrainer.seams import DENOISER, Facts, Noised, Parts
from sdtrainer.section import UserError
from sdtrainer.ui.access import Access
from sdtrainer.ui.method import _chip
from sdtrainer.ui.outlook import Looker
from sdtrainer.workspace import Workspace

pytestmark = pytest.mark.usefixtures("offline")

PRUNED: Mapping[str, Any] = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [[1, 1], [1, 1], [2, 2]],
    "reverse_transformer_layers_per_block": [[1, 2, 3], [2, 1, 1], [1, 1, 1]],
}
"""How SSD-1B and its like differ from SDXL, in small."""


def recognised(path: Path, family: str = AUTO) -> Facts:
    return families.recognise(BaseSection(path=str(path), family=family))


def refusal(path: Path, family: str = AUTO) -> UserError:
    with pytest.raises(UserError) as refused:
        recognised(path, family)
    return refused.value


def load(path: Path, family: str) -> Parts:
    facts = recognised(path, family)
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """A folder and a file of each family."""
    files = write_files(tmp_path_factory.mktemp("files"))
    return {word: [request.getfixturevalue(MADE[word]), files[word]] for word in MADE}


@pytest.fixture
def silent(tmp_path: Path, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Make a copy of a tiny folder whose index names another pipeline, or is gone."""

    def make(name: str, pipeline: str) -> Path:
        folder = shutil.copytree(request.getfixturevalue(MADE[name]), tmp_path / f"{name}-{pipeline}")
        index = json.loads((folder / INDEX).read_text())
        (folder / INDEX).unlink()
        if pipeline:
            (folder / INDEX).write_text(json.dumps(index | {"_class_name": pipeline}))
        return folder

    return make


def test_every_family_can_be_stated() -> None:
    words = get_args(BaseSection.model_fields["family"].annotation)
    assert words == (AUTO, *STATED) and set(STATED) == set(MADE)
    rows = [row for rows in STATED.values() for row in rows]
    assert rows == [name for name, base in BASES.items() if base.family in FAMILIES]


@pytest.mark.parametrize("name", MADE)
def test_what_is_known_is_the_same_when_it_is_stated_and_refused_when_it_is_not_so(
    models: dict[str, list[Path]], name: str
) -> None:
    for path in models[name]:
        alone = recognised(path)
        assert recognised(path, name) == alone and not alone.is_stated
        for other in set(STATED) - {name}:
            if path.is_dir() and {name, other} == {"sd1", "sd2"} and alone.text_width != 1024:
                continue  # a folder of no published width, which may be either
            error = refusal(path, other)
            assert error.path == "base.family" and error.hint == "Set Family to auto."
            assert f"{path.name} has the shapes of {alone.title}, but Family is {other}." in error.what


@pytest.mark.parametrize("pipeline", ["", "MyPipeline"], ids=["without an index", "an unusual pipeline"])
@pytest.mark.parametrize("name", MADE)
def test_a_folder_that_does_not_say_what_it_is_needs_the_statement(
    request: pytest.FixtureRequest, silent: Any, name: str, pipeline: str
) -> None:
    folder = silent(name, pipeline)
    alone = refusal(folder)
    assert "If it is built like one, set Family to " in alone.hint and name in alone.hint
    parts = load(folder, name)
    assert parts.facts.is_stated and "your setting Family" in parts.facts.why
    assert parts.facts.title.startswith(BASES[STATED[name][0]].title.removesuffix(" Medium"))
    known = load(request.getfixturevalue(MADE[name]), AUTO)
    assert_same(whole_model.states_of(parts), whole_model.states_of(known))
    wrong = "sd3" if name != "sd3" else "sd1"
    contradicted = refusal(folder, wrong)
    assert "has the shapes of" in contradicted.what and name in contradicted.hint


def test_an_sd1_folder_of_no_published_width_may_be_called_sd2(base: Path) -> None:
    assert recognised(base).title == "Stable Diffusion 1"
    assert recognised(base, "sd2").title == "Stable Diffusion 2"


def test_t5_of_a_folder_without_an_index_is_found(tmp_path: Path) -> None:
    import tiny

    folder = tiny.make_sd3(tmp_path / "model", with_t5=True)
    with_index = recognised(folder).parts
    (folder / INDEX).unlink()
    assert recognised(folder, "sd3").parts == with_index and "text_encoder_3" in with_index


def test_an_addition_in_a_model_s_file_does_not_hide_the_model(
    models: dict[str, list[Path]], tmp_path: Path
) -> None:
    """An IP adapter's tensors beside a whole model."""
    file = tmp_path / "both.safetensors"
    save_file(load_file(models["sd1"][1]) | {"ip_adapter.1.to_k_ip.weight": torch.ones(4, 4)}, file)
    assert "an IP adapter, not a base model" in refusal(file).what
    found, expected = load(file, "sd1"), load(models["sd1"][1], AUTO)
    assert_same(whole_model.states_of(found), whole_model.states_of(expected))
    assert "has the shapes of Stable Diffusion 1, but Family is sdxl" in refusal(file, "sdxl").what


def test_sdxl_with_layers_taken_out_is_taught_if_it_is_stated(tmp_path: Path) -> None:
    """From its shapes alone; what it says and saves is what was built."""
    file = tmp_path / "thin.safetensors"
    states = test_sdxl_files.foreign(file, scale=0.05, **PRUNED)
    assert "with layers taken out" in refusal(file).what and "set Family to sdxl" in refusal(file).hint
    assert refusal(file, "sd1").path == "base.family"
    assert recognition.look(file).variant and not recognition.look(file, family="sdxl").variant
    parts = load(file, "sdxl")
    assert_same(whole_model.states_of(parts), states)
    assert {key: parts.facts.config[DENOISER][key] for key in PRUNED} == PRUNED
    family, text = families.family_of(parts.facts), torch.zeros(1, 6)
    ids = family.tokenize(parts, ["a zib disc"], 1)
    latents, one = torch.zeros(1, 4, 8, 8), torch.ones(1)
    with torch.no_grad():
        said = family.encode_text(parts, ids, 0, text)
        assert family.predict(parts, Noised(latents, one, latents, one), said).isfinite().all()
    again = load_file(export(parts, tmp_path, "webui"))
    before = load_file(file)
    assert again.keys() == before.keys() and all(torch.equal(again[key], before[key]) for key in before)


def test_the_page_says_that_the_family_was_stated_and_what_it_looks_like(
    workspace: Workspace, silent: Any
) -> None:
    looker = Looker(workspace, Access(workspace))
    chip = lambda **base: _chip(looker.look({"base": base}, detect()))  # noqa: E731
    folder = str(silent("sdxl", "MyPipeline"))
    assert "Cannot be taught" in chip(path=folder) and "set Family to sdxl" in chip(path=folder)
    said = chip(path=folder, family="sdxl")
    assert "As you set it" in said and "Stable Diffusion XL, 64 px" in said
    assert "by itself it is a model of another kind (MyPipeline)" in said
    wrong = chip(path=folder, family="sd1")
    assert "has the shapes of Stable Diffusion XL, but Family is sd1. Set Family to sdxl." in wrong
