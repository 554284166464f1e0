"""Adapter files of other trainers: each layout is read into the change of the right weights, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_lora import load, output

from sdtrainer import methods
from sdtrainer.formats import lycoris
from sdtrainer.methods import adapter
from sdtrainer.seams import Parts
from sdtrainer.section import UserError

CONV, CONV_NAME = "down_blocks.0.resnets.0.conv1", "lora_unet_down_blocks_0_resnets_0_conv1"
LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
LINEAR_NAME = "lora_unet_" + LINEAR.replace(".", "_")
NORM, NORM_NAME = "conv_norm_out", "lora_unet_conv_norm_out"
ENCODER = "encoder.layers.0.mlp.fc1"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weight(parts: Parts, path: str, part: str = "denoiser") -> torch.Tensor:
    return parts.modules[part].get_submodule(path).weight.detach().clone()


def put(
    base: Path, folder: Path, state: dict[str, torch.Tensor], strength: float = 1.0, **metadata: str
) -> Parts:
    file = folder / "theirs.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file, metadata)
    parts = load(base)
    methods.recognise(file).put_on(parts, file, strength)
    return parts


def pair(name: str, down: str = "lora_down.weight", up: str = "lora_up.weight") -> dict[str, torch.Tensor]:
    return {f"{name}.{down}": random(2, 32), f"{name}.{up}": random(32, 2)}


PRODUCT = random(32, 2) @ random(2, 32)


@pytest.mark.parametrize(
    ("state", "scale"),
    [
        (pair(LINEAR_NAME) | {f"{LINEAR_NAME}.alpha": torch.tensor(3.0)}, 1.5),
        (pair(LINEAR_NAME), 1.0),
        (pair(LINEAR_NAME.replace("lora_unet", "lycoris")), 1.0),
        (pair(f"unet.{LINEAR}", "lora_A.weight", "lora_B.weight"), 1.0),
        (pair(f"unet.{LINEAR}", "lora.down.weight", "lora.up.weight"), 1.0),
        (pair(f"unet.{LINEAR.removesuffix('.to_k')}.processor.to_k_lora", "down.weight", "up.weight"), 1.0),
        (pair(f"base_model.model.{LINEAR}", "lora_A.weight", "lora_B.weight"), 1.0),
        (pair(f"base_model.model.{LINEAR}", "lora_A.default.weight", "lora_B.default.weight"), 1.0),
    ],
    ids=["kohya", "no alpha", "lycoris", "diffusers", "diffusers 2023", "processors", "peft", "peft live"],
)
def test_a_lora_of_any_layout_changes_its_layer_by_up_times_down(
    base: Path, tmp_path: Path, state: dict[str, torch.Tensor], scale: float
) -> None:
    parts, before = put(base, tmp_path, state), load(base)
    torch.testing.assert_close(weight(parts, LINEAR), weight(before, LINEAR) + scale * PRODUCT)
    changed = [
        name
        for name, tensor in parts.denoiser.state_dict().items()
        if not torch.equal(tensor, before.denoiser.state_dict()[name])
    ]
    assert changed == [f"{LINEAR}.weight"]


@pytest.mark.parametrize(
    "name", ["lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_te1_text_model_encoder_layers_0_mlp_fc1"]
)
def test_the_text_encoder_goes_by_both_its_names(base: Path, tmp_path: Path, name: str) -> None:
    state = {f"{name}.lora_down.weight": random(2, 32), f"{name}.lora_up.weight": random(64, 2)}
    change = weight(put(base, tmp_path, state), ENCODER, "text_encoder") - weight(
        load(base), ENCODER, "text_encoder"
    )
    torch.testing.assert_close(change, random(64, 2) @ random(2, 32))


def test_the_header_of_diffusers_says_alpha(base: Path, tmp_path: Path) -> None:
    config = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 5}}
    state = pair(f"unet.{LINEAR}", "lora_A.weight", "lora_B.weight")
    other = LINEAR.replace("attn2.to_k", "attn1.to_q")
    state |= pair(f"unet.{other}", "lora_A.weight", "lora_B.weight")
    for rslora, root in ((False, 1.0), (True, 2**0.5)):
        header = json.dumps(config | {"unet.use_rslora": rslora})
        parts = put(base, tmp_path, state, lora_adapter_metadata=header)
        for path, alpha in ((LINEAR, 8), (other, 5)):
            expected = weight(load(base), path) + alpha / 2 * root * PRODUCT
            torch.testing.assert_close(weight(parts, path), expected)


def test_a_damaged_header_is_told(base: Path, tmp_path: Path) -> None:
    state = pair(f"unet.{LINEAR}", "lora_A.weight", "lora_B.weight")
    with pytest.raises(UserError, match="header"):
        put(base, tmp_path, state, lora_adapter_metadata="{")


def test_diffusers_own_writer_is_read_at_its_own_strength(base: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    live = load(base)
    config = LoraConfig(r=2, lora_alpha=7, target_modules=["to_q", "to_k", "conv1"], init_lora_weights=False)
    live.denoiser.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(live.denoiser), unet_lora_adapter_metadata=config.to_dict()
    )
    again = load(base)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    methods.recognise(file).put_on(again, file, 1.0)
    torch.testing.assert_close(output(again), output(live), rtol=1e-4, atol=1e-4)


def test_a_locon_with_a_middle_is_three_convolutions_in_a_row(base: Path, tmp_path: Path) -> None:
    down, mid, up = random(3, 16, 1, 1), random(3, 3, 3, 3), random(16, 3, 1, 1)
    state = {
        f"{CONV_NAME}.lora_down.weight": down, f"{CONV_NAME}.lora_mid.weight": mid,
        f"{CONV_NAME}.lora_up.weight": up, f"{CONV_NAME}.alpha": torch.tensor(6.0),
    }  # fmt: skip
    change = weight(put(base, tmp_path, state), CONV) - weight(load(base), CONV)
    image, conv = random(1, 16, 8, 8), torch.nn.functional.conv2d
    row = conv(conv(conv(image, down), mid, padding=1), up)
    torch.testing.assert_close(conv(image, change, padding=1), row * 2, rtol=1e-3, atol=1e-4)


def test_whole_differences_change_weight_bias_and_norms(base: Path, tmp_path: Path) -> None:
    state = {
        f"{CONV_NAME}.diff": random(16, 16, 3, 3), f"{CONV_NAME}.diff_b": random(16),
        f"{NORM_NAME}.w_norm": random(16), f"{NORM_NAME}.b_norm": random(16, seed=1),
    }  # fmt: skip
    parts, before = put(base, tmp_path, state, strength=0.5), load(base)
    for path, name, key in (
        (CONV, "weight", f"{CONV_NAME}.diff"), (CONV, "bias", f"{CONV_NAME}.diff_b"),
        (NORM, "weight", f"{NORM_NAME}.w_norm"), (NORM, "bias", f"{NORM_NAME}.b_norm"),
    ):  # fmt: skip
        new, old = (getattr(p.denoiser.get_submodule(path), name) for p in (parts, before))
        torch.testing.assert_close(new, old + 0.5 * state[key])


@pytest.mark.parametrize("axis", [0, 1], ids=["per output", "per input"])
def test_dora_gives_every_row_its_size(base: Path, tmp_path: Path, axis: int) -> None:
    """|W'| along the other axis is the file's magnitude, and its direction is that of W + delta."""
    sizes = random(32).abs() + 1
    magnitude = sizes[:, None] if axis == 0 else sizes[None]
    parts = put(base, tmp_path, pair(LINEAR_NAME) | {f"{LINEAR_NAME}.dora_scale": magnitude})
    new, moved = weight(parts, LINEAR), weight(load(base), LINEAR) + PRODUCT
    torch.testing.assert_close(new.norm(dim=1 - axis), sizes)
    torch.testing.assert_close(
        torch.nn.functional.normalize(new, dim=1 - axis), torch.nn.functional.normalize(moved, dim=1 - axis)
    )


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0, 2.0])
def test_strength_multiplies_the_change(base: Path, tmp_path: Path, strength: float) -> None:
    magnitude = {f"{LINEAR_NAME}.dora_scale": random(32, 1).abs() + 1}
    old, full = weight(load(base), LINEAR), weight(put(base, tmp_path, pair(LINEAR_NAME) | magnitude), LINEAR)
    part = weight(put(base, tmp_path, pair(LINEAR_NAME) | magnitude, strength), LINEAR)
    torch.testing.assert_close(part, old + strength * (full - old), rtol=1e-4, atol=1e-5)


MISFITS: dict[str, dict[str, torch.Tensor]] = {
    "lora_unet_of_another_model": pair("lora_unet_of_another_model"),
    "mid_block.attentions.0": {f"{LINEAR_NAME}.lora_down.weight": random(2, 32)},
    "attn2.to_k": pair(LINEAR_NAME) | {f"{LINEAR_NAME}.lora_down.weight": random(2, 24)},
    "a1.weight": pair(LINEAR_NAME) | {f"{LINEAR_NAME}.a1.weight": random(2, 2)},
    "unet.mid_block": pair(LINEAR_NAME) | {f"{LINEAR_NAME}.dora_scale": random(7, 1)},
    "conv_norm_out": {f"{NORM_NAME}.diff": random(7)},
}  # fmt: skip


@pytest.mark.parametrize("named", MISFITS)
def test_what_does_not_fit_is_named_and_nothing_is_changed(base: Path, tmp_path: Path, named: str) -> None:
    """A good layer comes first: it must not be changed either."""
    good = pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q")
    file = tmp_path / "theirs.safetensors"
    save_file(good | MISFITS[named], file)
    parts, before = load(base), load(base)
    with pytest.raises(UserError, match=named.replace(".", r"\.")) as caught:
        methods.recognise(file).put_on(parts, file, 1.0)
    assert "base model" in caught.value.hint
    for part, module in parts.modules.items():
        old = before.modules[part].state_dict()
        assert all(torch.equal(tensor, old[name]) for name, tensor in module.state_dict().items())


def test_low_precision_models_are_changed_from_full_precision(base: Path, tmp_path: Path) -> None:
    """The sum is rounded once, to what the model is stored in."""
    file = tmp_path / "theirs.safetensors"
    save_file(pair(LINEAR_NAME), file)
    parts = load(base)
    parts.denoiser.to(torch.bfloat16)
    adapter.merge(parts, file, 0.3)
    exact = load(base).denoiser.get_submodule(LINEAR).weight.to(torch.bfloat16).float() + 0.3 * PRODUCT
    assert torch.equal(weight(parts, LINEAR), exact.to(torch.bfloat16))


def test_changes_are_pure_and_of_the_weights_shape() -> None:
    tensors: dict[str, Any] = {"lora_down": random(2, 8), "lora_up": random(6, 2)}
    for shape in ((6, 8), (6, 8, 1, 1)):
        found = lycoris.changes(tensors, torch.zeros(shape), None)
        assert found.keys() == {"weight"} and found["weight"].shape == shape
    with pytest.raises(ValueError):
        lycoris.changes(tensors, torch.zeros(8, 6), None)
