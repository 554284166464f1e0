"""The original single-file layout: names and shapes of the published models, nothing lost either way, and the
same reading as diffusers' own converter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sd15
import torch
from diffusers.loaders import single_file_utils as reference

from sdtrainer import families
from sdtrainer.families import BaseSection
from sdtrainer.formats import ldm
from sdtrainer.formats.kohya import with_text_model
from sdtrainer.seams import DENOISER, VAE, Facts
from sdtrainer.section import UserError

STARTER = Path(families.ASSETS) / "starter-model"
SD2 = {
    "unet": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
             "use_linear_projection": True},
    "text_encoder": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
                     "num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 512},
}  # fmt: skip
"""Where Stable Diffusion 2.1 differs from 1.5 (stabilityai/stable-diffusion-2-1 on the hub)."""

States = Mapping[str, Mapping[str, torch.Tensor]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[ldm.Text, Facts]:
    """SD 1.5 and SD 2.1 without weights."""
    one = sd15.write(tmp_path_factory.mktemp("models") / "sd15")
    two = sd15.write(tmp_path_factory.mktemp("models") / "sd21")
    for part, changes in SD2.items():
        path = two / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")
    return {"clip": facts_of(one), "openclip": facts_of(two)}


def facts_of(path: Path) -> Facts:
    return families.recognise(BaseSection(path=str(path)))


def states_of(modules: Mapping[str, torch.nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    return {
        part: {with_text_model(k) if part == ldm.ENCODER else k: v for k, v in module.state_dict().items()}
        for part, module in modules.items()
    }


def tiny_states(path: Path) -> tuple[Facts, dict[str, dict[str, torch.Tensor]]]:
    """A small model with random weights, no two alike."""
    facts = facts_of(path)
    states = states_of(families.family_of(facts).skeleton(facts))
    generator = torch.Generator().manual_seed(0)
    return facts, {
        part: {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}
        for part, state in states.items()
    }


def assert_same(found: States, expected: States) -> None:
    assert found.keys() == expected.keys()
    for part, state in expected.items():
        assert found[part].keys() == state.keys(), part
        for name, value in state.items():
            assert found[part][name].shape == value.shape, name
            assert value.is_meta or torch.equal(found[part][name], value), name


def read_by_diffusers(
    file: Mapping[str, torch.Tensor], text: ldm.Text, modules: Mapping[str, Any]
) -> dict[str, dict[str, torch.Tensor]]:
    """The file as diffusers' own converters understand it."""
    if text == "clip":
        encoder = reference.convert_ldm_clip_checkpoint(dict(file))
    else:
        encoder = reference.convert_open_clip_checkpoint(modules[ldm.ENCODER], dict(file))
    return {
        DENOISER: reference.convert_ldm_unet_checkpoint(dict(file), modules[DENOISER].config),
        VAE: reference.convert_ldm_vae_checkpoint(dict(file), modules[VAE].config),
        ldm.ENCODER: encoder,
    }


@pytest.mark.parametrize("text", ["clip", "openclip"])
@pytest.mark.parametrize("model", ["tiny", "starter"])
def test_writing_and_reading_loses_nothing(base: Path, model: str, text: ldm.Text) -> None:
    facts, states = tiny_states(base if model == "tiny" else STARTER)
    file = ldm.to_ldm(states, facts.config, text)
    assert_same(ldm.from_ldm(file, facts.config, text), states)


@pytest.mark.parametrize("text", ["clip", "openclip"])
def test_the_published_shapes_survive_both_ways(published: dict[ldm.Text, Facts], text: ldm.Text) -> None:
    facts = published[text]
    states = states_of(families.family_of(facts).skeleton(facts))
    file = ldm.to_ldm(states, facts.config, text)
    assert_same(ldm.from_ldm(file, facts.config, text), states)


@pytest.mark.parametrize("text", ["clip", "openclip"])
@pytest.mark.parametrize("model", ["tiny", "starter", "published"])
def test_diffusers_own_converter_reads_the_same_tensors(
    base: Path, published: dict[ldm.Text, Facts], model: str, text: ldm.Text
) -> None:
    if model == "published":
        facts = published[text]
        states = states_of(families.family_of(facts).skeleton(facts))
    else:
        facts, states = tiny_states(base if model == "tiny" else STARTER)
    file = ldm.to_ldm(states, facts.config, text)
    found = read_by_diffusers(file, text, families.family_of(facts).skeleton(facts))
    found[ldm.ENCODER].pop(ldm.POSITION_IDS, None)
    if model != "published" and text == "openclip":  # it leaves out the unused layer only where SD2 has it
        found[ldm.ENCODER] = {k: v for k, v in found[ldm.ENCODER].items() if k in states[ldm.ENCODER]}
    assert_same(found, states)


def test_the_file_has_the_names_and_shapes_of_stable_diffusion_1(
    published: dict[ldm.Text, Facts],
) -> None:
    """The pruned v1-5 file has 686 + 248 + 197 of them."""
    facts = published["clip"]
    file = ldm.to_ldm(states_of(families.family_of(facts).skeleton(facts)), facts.config, "clip")
    unet, vae, clip = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
    assert [sum(key.startswith(p) for key in file) for p in (unet, vae, clip)] == [686, 248, 197]
    known = {
        f"{unet}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{unet}input_blocks.3.0.op.weight": (320, 320, 3, 3),
        f"{unet}input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        f"{unet}middle_block.1.transformer_blocks.0.attn1.to_q.weight": (1280, 1280),
        f"{unet}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        f"{unet}output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        f"{unet}output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        f"{unet}out.2.bias": (4,),
        f"{vae}encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        f"{vae}encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        f"{vae}decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        f"{vae}decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        f"{vae}post_quant_conv.weight": (4, 4, 1, 1),
        f"{clip}text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        f"{clip}text_model.embeddings.position_ids": (1, 77),
    }
    assert {key: tuple(file[key].shape) for key in known} == known


def test_the_file_has_the_names_and_shapes_of_stable_diffusion_2(
    published: dict[ldm.Text, Facts],
) -> None:
    """24 layers of 12 tensors, of which the last is not used, and five tensors around them."""
    facts = published["openclip"]
    file = ldm.to_ldm(states_of(families.family_of(facts).skeleton(facts)), facts.config, "openclip")
    text = "cond_stage_model.model."
    assert sum(key.startswith(text) for key in file) == 24 * 12 + 5
    known = {
        f"{text}positional_embedding": (77, 1024),
        f"{text}token_embedding.weight": (49408, 1024),
        f"{text}text_projection": (1024, 1024),
        f"{text}transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
        f"{text}transformer.resblocks.0.mlp.c_fc.bias": (4096,),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320),
    }
    assert {key: tuple(file[key].shape) for key in known} == known


def test_no_two_tensors_share_a_name_in_the_file(published: dict[ldm.Text, Facts]) -> None:
    for facts in published.values():
        for part in facts.parts:
            names = list(ldm.names_of(part, facts.config[part], "openclip").values())
            assert names and len(set(names)) == len(names)


def test_what_belongs_to_no_part_is_left_out_and_what_is_unknown_is_named(base: Path) -> None:
    facts, states = tiny_states(base)
    file = ldm.to_ldm(states, facts.config, "clip")
    assert_same(ldm.from_ldm(file | {"model_ema.decay": torch.ones(())}, facts.config, "clip"), states)
    with pytest.raises(UserError, match=r"input_blocks\.99"):
        odd = {"model.diffusion_model.input_blocks.99.0.in_layers.0.weight": torch.ones(1)}
        ldm.from_ldm(file | odd, facts.config, "clip")
