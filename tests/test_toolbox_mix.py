"""Mixing and resizing: one file does what several did, and fewer ranks lose what is said, no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tools import answer, do, far, load, trained

from sdtrainer.config import build, to_toml
from sdtrainer.families import ASSETS, STARTER
from sdtrainer.formats.safetensors_file import read_header
from sdtrainer.methods import adapter
from sdtrainer.section import UserError
from sdtrainer.workspace import Workspace


def drawn(base: Path, *adapters: str, weights: Sequence[float] = ()) -> torch.Tensor:
    """What the base answers with adapters on it."""
    parts = load(base)
    for path, weight in zip(adapters, weights or [1.0] * len(adapters), strict=True):
        adapter.merge(parts, Path(path), weight)
    return answer(parts)


@pytest.fixture(scope="module")
def files(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An adapter of each kind; few layers, of every sort."""
    layers = {"own_targets": ["*attn2.to_k", "*conv1", "text_encoder.*fc1"]}
    folder = tmp_path_factory.mktemp("files")
    made = {kind: str(trained(base, folder, kind, **layers)[0]) for kind in ("lora", "dora", "loha", "lokr")}
    other = trained(base, folder, "lora", seed=2, **(layers | {"rank": 5, "alpha": 5.0}))[0]
    return made | {"other": str(other)}


@pytest.mark.parametrize(
    ("kinds", "values"),
    [
        (("lora", "other"), {}),
        (("lora", "other", "loha", "lokr"), {}),
        (("dora", "lora"), {"layout": "comfyui"}),
        (("lora", "other"), {"layout": "diffusers", "rank": 8}),
    ],
)
def test_a_mix_does_what_its_parts_did_together(
    base: Path, files: dict[str, str], workspace: Workspace, kinds: tuple[str, ...], values: dict[str, Any]
) -> None:
    paths, weights = [files[kind] for kind in kinds], [0.7, -0.4, 1.5, 0.5][: len(kinds)]
    given = {"adapters": paths, "weights": weights, "base": str(base), "precision": "fp32"} | values
    mixed = do("mix", workspace, **given)
    together = drawn(base, *paths, weights=weights)
    assert far(drawn(base, mixed["path"]), together) < 2e-5
    assert far(answer(load(base)), together) > 1e-2
    assert mixed["error"] < 1e-5 and mixed["is_exact"] == ("rank" not in values)


def test_ranks_add_up_and_a_lower_one_says_what_it_costs(
    base: Path, files: dict[str, str], workspace: Workspace
) -> None:
    paths = [files["lora"], files["other"]]
    given = {"adapters": paths, "base": str(base), "precision": "fp32"}
    exact, low = do("mix", workspace, **given), do("mix", workspace, **given, rank=4)
    assert {row["rank"] for row in exact["layers"]} == {8} and {row["rank"] for row in low["layers"]} == {4}
    states = [load_file(found["path"]) for found in (exact, low)]
    changes = [by_layer(state) for state in states]
    lost = sum(float((a - b).square().sum()) for a, b in zip(*changes, strict=True))
    whole = sum(float(a.square().sum()) for a in changes[0])
    assert low["error"] == pytest.approx(math.sqrt(lost / whole), rel=1e-3) and low["error"] > 0.05
    header = read_header(Path(exact["path"])).metadata
    assert (header["ss_network_dim"], header["ss_base_model_version"]) == ("8", "sd_v1")


def by_layer(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The change of each layer in a kohya file."""
    names = sorted(key.removesuffix(".alpha") for key in state if key.endswith(".alpha"))
    assert names
    return [
        state[f"{name}.lora_up.weight"].flatten(1)
        @ state[f"{name}.lora_down.weight"].flatten(1)
        * (state[f"{name}.alpha"] / state[f"{name}.lora_down.weight"].shape[0])
        for name in names
    ]


@pytest.mark.parametrize("rank", [2, 3, 7])
def test_a_resized_lora_is_the_best_of_its_rank_or_the_same(
    base: Path, files: dict[str, str], workspace: Workspace, rank: int
) -> None:
    found = do("resize", workspace, file=files["lora"], base=str(base), rank=rank)
    before, after = by_layer(load_file(files["lora"])), by_layer(load_file(found["path"]))
    lost = whole = 0.0
    for old, new, row in zip(before, after, found["layers"], strict=True):
        values = torch.linalg.svdvals(old.double()).square()
        assert row["rank"] == rank
        best, error = float(values[rank:].sum()), float((old - new).double().square().sum())
        assert error == pytest.approx(best, rel=1e-3, abs=1e-8)
        lost, whole = lost + best, whole + float(values.sum())
    assert found["error"] == pytest.approx(math.sqrt(lost / whole), abs=1e-4)
    metadata = read_header(Path(found["path"])).metadata
    assert metadata["ss_network_dim"] == str(rank) and metadata["ss_note"] == "test"
    assert metadata["sshs_model_hash"] != read_header(Path(files["lora"])).metadata["sshs_model_hash"]


def test_a_grown_lora_can_learn_in_its_new_directions(
    base: Path, files: dict[str, str], workspace: Workspace
) -> None:
    state = load_file(do("resize", workspace, file=files["lora"], base=str(base), rank=7)["path"])
    downs = {name: t for name, t in state.items() if name.endswith("lora_down.weight")}
    assert downs and all(t.shape[0] == 7 and t.flatten(1)[3:].abs().sum(1).min() > 0 for t in downs.values())


def test_other_kinds_become_loras_and_a_dora_keeps_its_sizes(
    base: Path, files: dict[str, str], workspace: Workspace
) -> None:
    full = {kind: do("resize", workspace, file=files[kind], base=str(base), rank=32, precision="fp32")
            for kind in ("loha", "lokr", "dora")}  # fmt: skip
    for kind, found in full.items():
        assert far(drawn(base, found["path"]), drawn(base, files[kind])) < 1e-4
        words = {name.partition(".")[2] for name in load_file(found["path"])}
        plain = {"lora_down.weight", "lora_up.weight", "alpha"}
        assert words == (plain | {"dora_scale"} if kind == "dora" else plain)


@pytest.mark.parametrize("verb", ["mix", "resize", "convert"])
def test_a_file_that_names_its_base_needs_no_other(tmp_path: Path, workspace: Workspace, verb: str) -> None:
    base = ASSETS / "starter-model"
    layers = {"own_targets": ["*mid_block*attn1.to_q", "text_encoder.*layers.0*q_proj"]}
    file, parts = trained(base, tmp_path, "lora", **layers)
    given = {"adapters": [str(file)]} if verb == "mix" else {"file": str(file)}
    with pytest.raises(UserError, match="Give the base model") as refused:
        do(verb, workspace, **given)
    assert refused.value.path == "base"
    ours = to_toml(build({"base": {"path": STARTER}}))
    save_file(load_file(file), file, {"sdtrainer_config": ours})
    made = do(verb, workspace, **given, precision="fp32")
    assert far(drawn(base, made["path"]), answer(parts)) < 2e-5 < far(drawn(base), answer(parts))


def test_what_cannot_be_mixed_or_resized_is_refused(
    base: Path, files: dict[str, str], tmp_path: Path, workspace: Workspace
) -> None:
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    shapes = {"lora_down.weight": (2, 2048), "lora_up.weight": (640, 2)}
    of_xl = tmp_path / "xl.safetensors"
    save_file({f"{key}.{word}": torch.zeros(shape) for word, shape in shapes.items()}, of_xl)
    pair = [files["lora"], str(of_xl)]
    for verb, values, path, words in (
        ("mix", {"adapters": pair, "base": str(base)}, "adapters", "is a LoRA for Stable Diffusion XL"),
        ("mix", {"adapters": pair[::-1] + pair[:1]}, "adapters", "do not fit the base model"),
        ("mix", {"adapters": pair[:1]}, "base", "shapes do not tell"),
        ("mix", {"adapters": []}, "adapters", "none is chosen"),
        ("mix", {"adapters": [files["dora"]]}, "base", "is a DoRA"),
        ("mix", {"adapters": pair[:1], "weights": [1, 2]}, "weights", "2 numbers for 1"),
        ("mix", {"adapters": [files["lokr"]], "base": str(base), "layout": "diffusers"}, "layout", "neither"),
        ("resize", {"file": str(of_xl), "base": str(base)}, "file", "for Stable Diffusion XL, and base"),
        ("resize", {"file": str(base)}, "file", "not an adapter"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words) as refused:
            do(verb, workspace, **values)
        assert refused.value.path == path
    assert not workspace.tools.exists()
