"""Trying: any base with any adapters at strengths, and pictures that say how they were drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image
from safetensors.torch import load_file, save_file
from test_toolbox_files import do

from sdtrainer import samplers
from sdtrainer.families import BaseSection
from sdtrainer.formats import picture_text
from sdtrainer.formats.picture_text import Drawn, Named
from sdtrainer.result import Worn, load
from sdtrainer.sample import Request
from sdtrainer.section import UserError
from sdtrainer.workspace import Workspace

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
REQUEST = Request("a zib disc", "", 64, 64, 2, 3.0, 7)
TINY: dict[str, Any] = {"prompt": ["a zib disc"], "steps": 1, "width": 64, "height": 64}


def adapter(path: Path, seed: int, width: int = 16) -> Path:
    torch.manual_seed(seed)
    tensors = {f"{LAYER}.lora_down.weight": torch.randn(2, width), f"{LAYER}.alpha": torch.tensor(2.0)}
    save_file(tensors | {f"{LAYER}.lora_up.weight": torch.randn(width, 2)}, path)
    return path


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return adapter(folder / "one.safetensors", 1), adapter(folder / "two.safetensors", 2)


def weight(sampler: Any) -> torch.Tensor:
    return sampler.parts.denoiser.get_submodule(
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    ).weight


def test_adapters_add_up_at_their_strengths_and_the_model_itself_stays(
    base: Path, adapters: tuple[Path, Path]
) -> None:
    loaded = load(BaseSection(path=str(base)))
    one, two = adapters
    bare = weight(loaded.wearing([], is_last=False)).clone()
    deltas = [weight(loaded.wearing([Worn(file)], is_last=False)) - bare for file in adapters]
    both = weight(loaded.wearing([Worn(one, 0.5), Worn(two, -2.0)], is_last=False))
    assert torch.allclose(both, bare + 0.5 * deltas[0] - 2.0 * deltas[1], atol=1e-5)
    assert torch.equal(weight(loaded.wearing([Worn(one, 0.0)])), bare)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_draws_its_own_picture_and_is_named(base: Path, name: str) -> None:
    sampler = _sampler(base)
    sampler.use(name)
    assert sampler.sampler_name == name
    first, second = sampler.draw(REQUEST), sampler.draw(REQUEST)
    assert first.size == (64, 64) and first.tobytes() == second.tobytes()


def test_flow_models_are_drawn_by_their_own_alone(sd3: Path) -> None:
    loaded = load(BaseSection(path=str(sd3))).wearing([])
    assert loaded.sampler_name == "Euler"
    with pytest.raises(UserError, match="is not drawn with Euler a"):
        loaded.use("Euler a")


_LOADED: dict[Path, Any] = {}


def _sampler(base: Path) -> Any:
    if base not in _LOADED:
        _LOADED[base] = load(BaseSection(path=str(base)))
    return _LOADED[base].wearing([], is_last=False)


def test_a_grid_has_a_picture_for_each_prompt_and_strength(
    base: Path, adapters: tuple[Path, Path], workspace: Workspace
) -> None:
    one, two = adapters
    answer = do(
        "sample", workspace, what=[f"{one}:0.5", str(two)], base=str(base), strength=[0, 1],
        **TINY | {"prompt": ["a zib disc", "red, \"big\": sky"]}, negative="blue", sampler="Euler a",
    )  # fmt: skip
    shown = [(p["prompt"], p["strength"], p["seed"]) for p in answer["pictures"]]
    assert shown == [
        (p, s, n) for s in (0.0, 1.0) for n, p in enumerate(("a zib disc", 'red, "big": sky'), 1)
    ]
    paths = [Path(picture["path"]) for picture in answer["pictures"]]
    assert {path.parent for path in paths} == {workspace.drawings} and len(set(paths)) == 4
    said = [picture_text.read(picture_text.text_in(path)) for path in paths]
    assert said[0] and said[0].adapters == () and said[0].model == base.name
    assert said[3] and said[3].adapters == (Named("one", 0.5), Named("two", 1.0))
    assert (said[3].prompt, said[3].negative, said[3].seed) == ('red, "big": sky', "blue", 2)
    assert (said[3].sampler, said[3].steps, said[3].width) == ("Euler a", 1, 64)
    assert said[3].more["Lora hashes"].startswith("one: ")
    pixels = [Image.open(path).tobytes() for path in paths]
    assert pixels[0] != pixels[2] and pixels[1] != pixels[3]


def test_what_does_not_go_together_is_refused_before_anything_is_loaded(
    base: Path, adapters: tuple[Path, Path], workspace: Workspace, sdxl: Path, tmp_path: Path
) -> None:
    xl = tmp_path / "xl.safetensors"
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file(
        {f"{name}.lora_down.weight": torch.zeros(2, 2048), f"{name}.lora_up.weight": torch.zeros(9, 2)}, xl
    )
    for values, said in (
        ({"what": [str(xl)], "base": str(base)}, "is a LoRA for Stable Diffusion XL, and the base model is"),
        ({"what": [str(adapters[0])]}, "does not say which it belongs to"),
        ({"what": [str(tmp_path / "none.safetensors")], "base": str(base)}, "there is nothing at"),
        ({}, "Base model: none is chosen"),
        ({"base": str(base), "prompt": []}, "Prompts: there is none"),
        ({"base": str(base), "strength": []}, "Strengths: there is none"),
    ):
        with pytest.raises(UserError, match=said):
            do("sample", workspace, **TINY | values)
    assert not workspace.drawings.exists()


def test_settings_of_another_version_do_not_keep_a_file_from_being_drawn_with(
    base: Path, adapters: tuple[Path, Path], workspace: Workspace, tmp_path: Path
) -> None:
    old = tmp_path / "old.safetensors"
    save_file(load_file(adapters[0]), old, {"sdtrainer_config": "[base]\nunheard_of = 1"})
    answer = do("sample", workspace, what=[str(old)], base=str(base), **TINY)
    assert len(answer["pictures"]) == 1


def test_a_path_with_a_colon_is_not_a_strength() -> None:
    from sdtrainer.toolbox.sample import split

    assert split(r"C:\loras\cat.safetensors") == (r"C:\loras\cat.safetensors", 1.0)
    assert split(r"C:\loras\cat.safetensors:-0.5") == (r"C:\loras\cat.safetensors", -0.5)
    assert split("cat.safetensors: 0.8") == ("cat.safetensors", 0.8)


# -- the text in a picture -------------------------------------------------------------------------

NAMES = some.text("abcXYZ019 _-.", min_size=1, max_size=12).map(str.strip).filter(bool)
TENTHS = some.integers(-20, 20).map(lambda n: n / 10)
WORDS = some.text("abc,:()[]\"'\\ äé!.\n", max_size=30).map(
    lambda text: "\n".join(map(str.strip, text.strip().split("\n")))
)


@settings(max_examples=80)
@given(
    drawn=some.builds(
        Drawn, prompt=WORDS, negative=WORDS.map(lambda text: text.replace("\n", " ").strip()),
        adapters=some.lists(
            some.builds(Named, NAMES, TENTHS, some.sampled_from(["lora", "hypernet"])), max_size=3
        ).map(tuple),
        model=some.text("abc,:\" -._", min_size=1, max_size=12).map(str.strip).filter(bool),
        sampler=some.sampled_from(sorted(samplers.SAMPLERS)), steps=some.integers(1, 200),
        guidance=some.integers(10, 300).map(lambda n: n / 10), seed=some.integers(0, 2**32 - 1),
        width=some.integers(8, 256).map(lambda n: 8 * n), height=some.integers(8, 256).map(lambda n: 8 * n),
        clip_skip=some.integers(0, 11),
        more=some.dictionaries(some.just("Lora hashes"), NAMES.map(lambda name: f"{name}: 0123456789ab")),
    )
)  # fmt: skip
def test_what_a_picture_says_of_itself_is_read_back(drawn: Drawn) -> None:
    assert picture_text.read(picture_text.written(drawn)) == drawn


def test_the_text_of_a1111_is_read() -> None:
    text = (
        "portrait of a cat, (detailed:1.2) <lora:cat_v2:0.8>\nNegative prompt: blurry, bad\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        'Model hash: 45dee52b12, Model: v1-5-pruned, Clip skip: 2, Lora hashes: "cat_v2: 8b5a2f1c0d3e", '
        "Version: v1.8.0"
    )
    found = picture_text.read(text)
    assert found and found.prompt == "portrait of a cat, (detailed:1.2)"
    assert (found.negative, found.width, found.height, found.clip_skip) == ("blurry, bad", 512, 768, 1)
    assert found.adapters == (Named("cat_v2", 0.8),) and found.model == "v1-5-pruned"
    assert found.more["Schedule type"] == "Karras" and found.more["Lora hashes"] == "cat_v2: 8b5a2f1c0d3e"
    assert picture_text.read("a cat, blue: 3") is None
