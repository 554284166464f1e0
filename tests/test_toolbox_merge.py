"""Merging: a model answers without the adapter as it did with it, and wrong pairs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tools import answer, do, far, load, trained

from sdtrainer.chores import CHORES
from sdtrainer.formats.safetensors_file import read_header
from sdtrainer.section import UserError
from sdtrainer.workspace import Workspace


@pytest.fixture(scope="module")
def loras(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return trained(base, folder, "lora")[0], trained(base, folder, "lora", seed=2)[0]


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of its text encoder's width, by which it is told from SD1; its file has the names of OpenCLIP."""
    return tiny.make_base(tmp_path_factory.mktemp("sd2") / "sd2", width=1024)


@pytest.mark.parametrize(
    ("model", "kind", "layout"),
    [
        ("base", "lora", "file"), ("base", "dora", "folder"), ("base", "loha", "file"),
        ("base", "lokr", "file"), ("sdxl", "dora", "file"), ("sd3", "lora", "file"), ("sd2", "lora", "file"),
    ],
)  # fmt: skip
def test_the_merged_model_answers_as_the_one_with_the_adapter(
    model: str,
    kind: str,
    layout: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    workspace: Workspace,
) -> None:
    path = request.getfixturevalue(model)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    adapter, live = trained(path, tmp_path, kind)
    found = do("merge", workspace, base=str(path), adapters=[str(adapter)], layout=layout)
    merged = load(Path(found["path"]))
    assert far(answer(merged), answer(live)) < 1e-5
    assert far(answer(load(path)), answer(live)) > 1e-2, "the adapter has an effect"
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_network_of_the_lycoris_package_is_merged_as_it_acts(
    base: Path, tmp_path: Path, workspace: Workspace
) -> None:
    from lycoris import create_lycoris

    parts = load(base)
    torch.manual_seed(0)
    network = create_lycoris(parts.denoiser, 1.0, linear_dim=2, linear_alpha=1.0, algo="loha")
    network.apply_to()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    file = tmp_path / "theirs.safetensors"
    network.save_weights(str(file), torch.float32, {"ss_base_model_version": "sd_v1"})
    found = do("merge", workspace, base=str(base), adapters=[str(file)], strength=[1.0])
    assert far(answer(load(Path(found["path"]))), answer(parts)) < 1e-4
    assert far(answer(load(base)), answer(parts)) > 1e-3


def test_strengths_are_those_of_each_part_and_add_up(
    base: Path, loras: tuple[Path, Path], tmp_path: Path, workspace: Workspace
) -> None:
    """Half of one and all of another, the text encoder's alone of both."""
    names = [str(lora) for lora in loras]
    both = do("merge", workspace, base=str(base), adapters=names, strength=[0.5, 2.0], layout="file")
    state, bare = load_file(both["path"]), do("merge", workspace, base=str(base), adapters=names,
                                              strength=[0.0], layout="file")  # fmt: skip
    key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    wanted = load_file(bare["path"])[key]
    for lora, strength in zip(loras, (0.5, 2.0), strict=True):
        t = load_file(lora)
        up, down = t[f"{name}.lora_up.weight"].flatten(1), t[f"{name}.lora_down.weight"]
        wanted = wanted + strength * (up @ down.flatten(1) * t[f"{name}.alpha"] / 3).reshape(wanted.shape)
    torch.testing.assert_close(state[key], wanted, rtol=1e-5, atol=1e-6)
    text = {"strength_unet": [0.0], "strength_text_encoder": [1.0]}
    only = load_file(do("merge", workspace, base=str(base), adapters=names, layout="file", **text)["path"])
    unchanged = load_file(bare["path"])
    assert torch.equal(only[key], unchanged[key])
    assert any(not torch.equal(only[k], v) for k, v in unchanged.items() if k.startswith("cond_stage"))


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("bf16", 2e-2)])
def test_subtracting_gives_the_base_back_to_what_was_said(
    base: Path, loras: tuple[Path, Path], workspace: Workspace, precision: str, most: float
) -> None:
    given = {"adapters": [str(loras[0])], "precision": precision, "layout": "file"}
    merged = do("merge", workspace, base=str(base), **given)
    again = do("merge", workspace, base=merged["path"], subtract=True, **given)
    plain = do("merge", workspace, base=str(base), adapters=given["adapters"], strength=[0.0], layout="file")
    states = [load_file(found["path"]) for found in (again, plain)]
    apart = max(float((states[0][k].float() - v.float()).abs().max()) for k, v in states[1].items())
    assert 0 < apart <= merged["lost"] * 1.01 + 1e-7 < most


def test_the_header_goes_on_saying_what_it_said_and_names_the_adapters(
    base: Path, loras: tuple[Path, Path], workspace: Workspace
) -> None:
    given: dict[str, Any] = {"adapters": [str(loras[0])], "layout": "file"}
    once = do("merge", workspace, base=str(base), **given)
    twice = read_header(Path(do("merge", workspace, base=once["path"], **given)["path"])).metadata
    told = read_header(Path(once["path"])).metadata
    assert [one["merged"] for one in json.loads(twice["sdtrainer_made"])] == ["lora-1"] * 2
    assert told["sdtrainer_base_config"] == twice["sdtrainer_base_config"]
    assert told["sshs_model_hash"] != twice["sshs_model_hash"]


def test_nothing_is_overwritten_unasked_and_a_broken_off_merge_leaves_nothing(
    base: Path, loras: tuple[Path, Path], tmp_path: Path, workspace: Workspace
) -> None:
    to = tmp_path / "out" / "merged.safetensors"
    given = {"base": str(base), "adapters": [str(loras[0])], "layout": "file", "to": str(to)}
    chore = CHORES["merge"]
    doing = chore.do(chore.check(given), workspace)
    while "Writing" not in str(next(doing)):
        pass
    next(doing)
    assert list(to.parent.iterdir()) and not to.exists(), "it is under way"
    doing.close()
    assert not list(to.parent.iterdir())
    do("merge", workspace, **given)
    content = to.read_bytes()
    with pytest.raises(UserError, match="exists already") as refused:
        do("merge", workspace, **given, strength=[0.3])
    assert refused.value.path == "to" and to.read_bytes() == content
    do("merge", workspace, **given, strength=[0.3], overwrite=True)
    assert to.read_bytes() != content
    with pytest.raises(UserError, match="is what is read"):
        do("merge", workspace, **(given | {"base": str(to)}), overwrite=True)


def lora(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_down.weight": torch.zeros(2, width), f"{name}.lora_up.weight": torch.zeros(9, 2)}


def wrong_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Files that are no adapter for SD1, with the words that refuse them."""
    wide = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    mid = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    files = {
        "sdxl": (lora(wide, 2048), "LoRA for Stable Diffusion XL, and base is Stable Diffusion 1"),
        "shapes": (lora(mid, 7), "mid_block.attentions.0"),
        "embedding": ({"emb_params": torch.zeros(2, 768)}, "is an embedding.*not an adapter"),
        "vae": ({"encoder.down.0.block.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, "a VAE, not an adapter"),
        "oft": ({"lora_unet_a.oft_blocks": torch.zeros(2, 4, 4)}, "OFT adapter.*cannot be computed"),
    }
    for name, (state, _) in files.items():
        save_file(state, folder / f"{name}.safetensors")
    return {str(folder / f"{name}.safetensors"): ("adapters", words) for name, (_, words) in files.items()}


def test_what_does_not_belong_together_is_refused_before_work_begins(
    base: Path, loras: tuple[Path, Path], tmp_path: Path, workspace: Workspace
) -> None:
    lora = str(loras[0])
    for path, (setting, words) in wrong_files(tmp_path).items():
        with pytest.raises(UserError, match=words) as refused:
            do("merge", workspace, base=str(base), adapters=[path])
        assert refused.value.path == setting and refused.value.hint
    dora = str(trained(base, tmp_path, "dora")[0])
    for values, path, words in (
        ({"base": str(base), "adapters": []}, "adapters", "none is chosen"),
        ({"base": lora, "adapters": [lora]}, "base", "not a base model"),
        ({"base": "", "adapters": [lora]}, "base", "nothing is chosen"),
        ({"base": str(base), "adapters": [lora], "strength": [1, 2, 3]}, "strength", "3 numbers for 1"),
        ({"base": str(base), "adapters": [dora], "subtract": True}, "subtract", "is a DoRA"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            do("merge", workspace, **values)
        assert refused.value.path == path
    assert not workspace.tools.exists()
