"""Extraction: what a merge put in comes out again, from any two models of one kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tools import answer, do, far, load, trained

from sdtrainer import recognition
from sdtrainer.formats.safetensors_file import read_header
from sdtrainer.section import UserError
from sdtrainer.workspace import Workspace


@pytest.mark.parametrize(
    ("model", "layout", "stored"),
    [("base", "kohya", "file"), ("sdxl", "comfyui", "folder"), ("sd3", "diffusers", "file")],
)  # fmt: skip
def test_base_with_what_was_extracted_is_the_tuned_model(
    model: str,
    layout: str,
    stored: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    workspace: Workspace,
) -> None:
    """Base and base + LoRA of rank 3 give its change back at rank 3, from folder and file, in each layout."""
    base = request.getfixturevalue(model)
    lora, live = trained(base, tmp_path, "lora")
    tuned = do("merge", workspace, base=str(base), adapters=[str(lora)], layout=stored)["path"]
    found = do("extract", workspace, base=str(base), tuned=tuned, rank=3, precision="fp32", layout=layout)
    assert found["kept"] > 1 - 1e-5 and found["left_out"] < 1e-9
    assert {row["rank"] for row in found["layers"]} == {3} and len(found["layers"]) > 9
    again = do("merge", workspace, base=str(base), adapters=[found["path"]], layout="folder")
    assert far(answer(load(Path(again["path"]))), answer(live)) < 1e-4
    assert recognition.look(Path(found["path"])).kind == "adapter"


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("tuned") / "tuned", seed=7)


def test_less_rank_keeps_less_and_says_how_much(base: Path, tuned: Path, workspace: Workspace) -> None:
    """Of unrelated models, whose difference has full rank, layers keep what their singular values say."""
    given = {"base": str(base), "tuned": str(tuned), "precision": "fp32"}
    few, more = (do("extract", workspace, **given, rank=rank) for rank in (2, 8))
    assert 0 < few["kept"] < more["kept"] < 1 and 0 < few["left_out"] < 1
    row = next(r for r in more["layers"] if r["path"].endswith("attn2.to_k"))
    weights = [load(path).denoiser.get_submodule(row["path"]).weight.detach() for path in (base, tuned)]
    squares = torch.linalg.svdvals(weights[1] - weights[0]).square()
    assert row["kept"] == pytest.approx(float(squares[:8].sum() / squares.sum()), rel=1e-4)
    enough = do("extract", workspace, **given, rank=64, energy=0.8)
    ranks = {row["rank"] for row in enough["layers"]}
    assert len(ranks) > 3 and all(row["kept"] >= 0.8 - 1e-6 for row in enough["layers"])


def test_the_chosen_layers_are_extracted_and_the_header_says_what_it_is(
    base: Path, tuned: Path, workspace: Workspace
) -> None:
    given = {"base": str(base), "tuned": str(tuned), "rank": 4}
    found = do("extract", workspace, **given, convolutions=False, parts="denoiser")
    names = load_file(found["path"])
    assert all(name.startswith("lora_unet_") for name in names)
    assert not any("conv1" in name for name in names) and any("proj_in" in name for name in names)
    header = read_header(Path(found["path"]))
    assert header.metadata["ss_network_dim"] == "4" and header.metadata["ss_base_model_version"] == "sd_v1"
    assert {info.dtype for name, info in header.tensors.items() if "lora_up" in name} == {"F16"}
    other = do("extract", workspace, **given, conv_rank=2, parts="all")
    ranks = {row["path"].rpartition(".")[2]: row["rank"] for row in other["layers"]}
    assert (ranks["conv1"], ranks["to_q"], ranks["fc1"]) == (2, 4, 4)


def test_pairs_that_do_not_match_are_refused(
    base: Path, sdxl: Path, tmp_path: Path, workspace: Workspace
) -> None:
    wide = tiny.make_base(tmp_path / "wide", width=40)
    for values, words in (
        ({"tuned": str(sdxl)}, "sdxl is Stable Diffusion XL, and base is Stable Diffusion 1"),
        ({"tuned": str(wide)}, "is not as in base"),
        ({"tuned": str(base)}, "same weights"),
        ({"tuned": ""}, "nothing is chosen"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            do("extract", workspace, base=str(base), **values)
        assert refused.value.path == "tuned"
    assert not workspace.tools.exists()
