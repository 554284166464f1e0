"""Files of Stable Diffusion 3: the names and shapes of the published model, and nothing lost either way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sd3 as published_sd3
import tiny
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders import single_file_utils as reference
from safetensors.torch import load_file, save_file
from test_sd3 import WITHOUT_T5, load, recognised, reference_of
from test_sdxl_files import assert_same, export, skeleton

from sdtrainer import anatomy, families
from sdtrainer.config import build
from sdtrainer.formats import ldm, mmdit, whole_model
from sdtrainer.methods import adapter, method_of
from sdtrainer.seams import DENOISER, T5, VAE, ExportOrder, Facts, LearningRates, Noised, Parts
from sdtrainer.section import UserError

ENCODER, ENCODER_2 = ldm.ENCODER, ldm.ENCODER_2
CAPTION = "a zib disc"
_LINES = (Path(__file__).parent / "keys/sd3_lora.txt").read_text().splitlines()
KEYS = {line for line in _LINES if not line.startswith("#")}
_WORD = re.compile(r"\.((lora_(down|up|A|B)\.weight)|alpha|dora_scale|hada_\w+|lokr_\w+)$")
RATES = LearningRates(1.0, 1.0)


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Stable Diffusion 3 Medium, without weights."""
    folder = published_sd3.write(tmp_path_factory.mktemp("models") / "sd3m", "3 medium")
    return skeleton(recognised(folder))


def exported_names(parts: Parts, *layouts: str, **method: Any) -> list[set[str]]:
    """The names of layers in each layout of a method's file."""
    section = build({"method": method}).method
    with torch.device("meta"):
        method_of(section.kind).attach(parts, section, RATES)
    files = [method_of(section.kind).state(parts, section, layout)[0] for layout in layouts]  # type: ignore[attr-defined]
    method_of(section.kind).detach(parts, section)
    return [{_WORD.sub("", key) for key in file} for file in files]


# -- the published models ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", published_sd3.TRANSFORMERS)
def test_the_file_has_the_names_of_the_published_one_and_tells_the_configs(
    tmp_path: Path, version: str
) -> None:
    empty = skeleton(recognised(published_sd3.write(tmp_path, version)))
    facts, states = empty.facts, whole_model.states_of(empty)
    assert facts.title == f"Stable Diffusion {version.title()}" and facts.resolution == 1024
    file = mmdit.to_file(states, facts.config)
    configs = mmdit.configs_of({name: tuple(t.shape) for name, t in file.items()})
    assert configs is not None
    for part in facts.parts:
        told = {k: v for k, v in facts.config[part].items() if k in configs[part] and k != "architectures"}
        assert {k: configs[part][k] for k in told} == told and len(told) >= 3
    assert_same(mmdit.from_file(file, configs), states)
    depth = 38 if "large" in version else 24
    width = facts.config[DENOISER]["caption_projection_dim"]
    inside = {k.removeprefix(ldm.UNET_PREFIX): v for k, v in file.items() if k.startswith(ldm.UNET_PREFIX)}
    assert tuple(inside["joint_blocks.0.x_block.attn.qkv.weight"].shape) == (3 * width, width)
    assert tuple(inside[f"joint_blocks.{depth - 1}.context_block.adaLN_modulation.1.bias"].shape) == (
        2 * width,
    )
    if version == "3 medium":
        known = {k.removeprefix("diffusion_model.") for k in KEYS if k.startswith("diffusion_model.")}
        assert {key.removesuffix(".weight") for key in inside if not key.endswith(".bias")} == known


def test_its_numbers_are_those_of_the_published_weights(published_models: dict[str, str]) -> None:
    """And each has its place in the picture of the model."""
    empty = skeleton(recognised(Path(published_models[published_sd3.HUB_ID])))
    denoiser = {DENOISER: empty.denoiser}
    assert sum(p.numel() for p in empty.denoiser.parameters()) == published_sd3.TRANSFORMER
    places = anatomy.blocks(anatomy.count(denoiser), anatomy.count(denoiser, trained_only=True))
    assert {b.place for b in places} == {
        "in", "out", "ends", *(f"block {n}" for n in range(24))
    }  # fmt: skip
    kinds = {kind: total for kind, total, _ in anatomy.totals(places)}
    assert kinds["attention"] > kinds["feed-forward"] * 0.5 > 0 and "convolutions" not in kinds


def test_every_layer_has_a_name_that_comfyui_knows(medium: Parts) -> None:
    everything = ["*", "text_encoder.*layers*", "text_encoder_2.*layers*"]
    names, of_diffusers = exported_names(
        medium, "webui", "diffusers", kind="lora", targets="own list", own_targets=everything
    )
    assert names == of_diffusers <= KEYS
    left = {k for k in KEYS - names if k.startswith(("transformer.", "text_encoder"))}
    assert not left, "this test leaves a layer out"


def test_the_usual_layers_are_attention_and_feed_forward(medium: Parts) -> None:
    """24 blocks; in the last one the words end with their keys and values, and have no feed-forward."""
    method = {"kind": "lora", "targets": "attention and feed-forward"}
    (names,) = exported_names(medium, "webui", **method)
    assert sum(".attn." in name for name in names) == 24 * 7 + 23
    assert sum(".ff" in name for name in names) == len(names) - (24 * 7 + 23) == 24 * 2 + 23 * 2
    (of_dora,) = exported_names(medium, "webui", **method, dora=True)
    assert of_dora == {f"lora_{name.replace('.', '_')}" for name in names} and of_dora <= KEYS


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_lycoris_files_have_the_same_names_as_a_dora(sd3: Path, kind: str) -> None:
    """Which ComfyUI knows, as the test above says."""
    tiny_parts, layers = load(sd3), {"targets": "attention and feed-forward", "train_text_encoder": True}
    names = exported_names(tiny_parts, "webui", kind=kind, **layers)
    assert names == exported_names(tiny_parts, "webui", kind="lora", dora=True, **layers)
    assert {"lora_transformer_transformer_blocks_0_attn_add_q_proj"} < names[0]


# -- whole models -----------------------------------------------------------------------------------


def random_states(path: Path) -> tuple[Facts, dict[str, dict[str, torch.Tensor]]]:
    """The tiny model with random weights, no two alike."""
    facts = recognised(path)
    return facts, tiny.random_like(whole_model.states_of(skeleton(facts)))


def test_diffusers_own_converters_read_the_same_tensors(sd3: Path) -> None:
    facts, states = random_states(sd3)
    file = mmdit.to_file(states, facts.config)
    assert_same(mmdit.from_file(file, facts.config), states)
    vae = skeleton(facts).modules[VAE]
    found = {
        DENOISER: reference.convert_sd3_transformer_checkpoint_to_diffusers(dict(file)),
        VAE: reference.convert_ldm_vae_checkpoint(dict(file), vae.config),
        **{
            encoder: reference.convert_ldm_clip_checkpoint(dict(file), remove_prefix=prefix)
            for encoder, prefix in mmdit.TEXT_PREFIXES.items()
        },
    }
    assert_same(found, states)


@pytest.mark.parametrize("layout", ["webui", "diffusers"])
def test_saving_and_loading_gives_the_same_model_and_the_same_file(
    sd3: Path, tmp_path: Path, layout: str
) -> None:
    (tmp_path / "again").mkdir()
    mine = load(sd3)
    path = export(mine, tmp_path, layout)
    other = load(path)
    assert_same(whole_model.states_of(other), whole_model.states_of(mine))
    assert (other.facts.title, other.facts.resolution) == (mine.facts.title, mine.facts.resolution)
    family = families.family_of(mine.facts)
    for name, ids in family.tokenize(mine, [CAPTION], 1).items():
        assert torch.equal(family.tokenize(other, [CAPTION], 1)[name], ids), name
    again = export(other, tmp_path / "again", layout)
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    assert len(files) == (1 if path.is_file() else 4)
    for one in files:
        copy = again / one.relative_to(path) if path.is_dir() else again
        first, second = load_file(one), load_file(copy)
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_t5_goes_into_the_folder_and_not_into_the_file(tmp_path: Path) -> None:
    base = tiny.make_sd3(tmp_path / "base", with_t5=True)
    mine = load(base)
    folder, file = (export(mine, tmp_path, layout) for layout in ("diffusers", "webui"))
    assert_same(whole_model.states_of(load(folder)), whole_model.states_of(mine))
    assert recognised(file).encoders == (ENCODER, ENCODER_2)
    assert not any("t5" in name for name in load_file(file))
    theirs = reference_of(folder)
    with torch.no_grad():
        said = families.family_of(mine.facts).encode_text(
            mine, families.family_of(mine.facts).tokenize(mine, [CAPTION], 1), 0, torch.zeros(1, 6)
        )
        embeds = theirs.encode_prompt(CAPTION, None, None, device="cpu", do_classifier_free_guidance=False)[0]
    assert T5 in mine.modules
    torch.testing.assert_close(said.prompt_embeds, embeds)


def foreign(path: Path, scale: float = 1.0) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Write a file as another trainer would: of SD3.5's structure, thin, without a word on how it is built.
    Returns the states of its parts, and what the file holds.
    """
    text = {"vocab_size": 49408, "num_hidden_layers": 2, "max_position_embeddings": 77}
    clip = text | {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "projection_dim": 64}
    configs: Mapping[str, Mapping[str, Any]] = {
        DENOISER: {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2,
            "attention_head_dim": 64, "num_attention_heads": 1, "joint_attention_dim": 160,
            "caption_projection_dim": 64, "pooled_projection_dim": 128, "pos_embed_max_size": 24,
            "dual_attention_layers": [0], "qk_norm": "rms_norm",
        },
        VAE: {
            "block_out_channels": [32, 32, 32, 32], "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 16,
            "use_quant_conv": False, "use_post_quant_conv": False,
        },
        ENCODER: clip, ENCODER_2: clip,
    }  # fmt: skip
    facts = Facts("sd3", "", "", "file", "", "flow", 1024, 16, 8, 160, (ENCODER, ENCODER_2), configs)
    generator = torch.Generator().manual_seed(0)
    states = {
        part: {name: scale * torch.randn(value.shape, generator=generator) for name, value in state.items()}
        for part, state in whole_model.states_of(skeleton(facts)).items()
    }
    beside = {
        "text_encoders.t5xxl.transformer.shared.weight": torch.ones(2, 3, dtype=torch.float16),
        "text_encoders.clip_g.transformer.logit_scale": torch.ones(()),
    }
    file = mmdit.to_file(states, configs) | beside
    save_file({k: v.contiguous() for k, v in file.items()}, path)
    return states, file


def test_a_file_of_another_trainer_is_loaded_from_its_shapes(tmp_path: Path) -> None:
    path = tmp_path / "anything.safetensors"
    states, file = foreign(path)
    assert (recognised(path).title, recognised(path).resolution) == ("Stable Diffusion 3.5 Medium", 1024)
    parts = load(path)
    assert_same(whole_model.states_of(parts), states)
    assert (parts.vae.config.scaling_factor, parts.vae.config.shift_factor) == (1.5305, 0.0609)
    ids = families.family_of(parts.facts).tokenize(parts, [CAPTION], 1)
    again = load_file(export(parts, tmp_path, "webui"))
    assert again.keys() == file.keys() and all(torch.equal(again[key], file[key]) for key in file)
    assert ids[ENCODER][0, -1] == 49407 and ids[ENCODER_2][0, -1] == 0, "each pads as it is used to"


# -- adapters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "dora"), [("webui", False), ("diffusers", True)])
def test_diffusers_loads_a_lora(sd3: Path, tmp_path: Path, layout: str, dora: bool) -> None:
    section = {"kind": "lora", "rank": 2, "alpha": 3.0, "dora": dora, "train_text_encoder": True}
    parts, settings = load(sd3), build({"method": section}).method
    groups = method_of("lora").attach(parts, settings, RATES)
    torch.manual_seed(0)
    for group in groups:
        for parameter in group.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3, **WITHOUT_T5)
    pipeline.load_lora_weights(export(parts, tmp_path, layout, **section))
    family = families.family_of(parts.facts)
    with torch.no_grad():
        said = family.encode_text(parts, family.tokenize(parts, [CAPTION], 1), 0, torch.zeros(1, 6))
        embeds = pipeline.encode_prompt(CAPTION, None, None, device="cpu", do_classifier_free_guidance=False)
        torch.testing.assert_close(said.prompt_embeds, embeds[0], rtol=1e-4, atol=1e-5)
        noisy, time = torch.randn(1, 16, 8, 8), torch.tensor([500.0])
        mine = family.predict(parts, Noised(noisy, time, noisy, time), said)
        theirs, plain = (
            transformer(noisy, said.prompt_embeds, said.pooled, time).sample
            for transformer in (pipeline.transformer, load(sd3).denoiser)
        )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert (mine - plain).abs().max() > 1e-2


# -- files of sd-scripts ------------------------------------------------------------------------------


def of_sd_scripts(parts: Parts, path: Path, kind: str = "lora") -> dict[str, torch.Tensor]:
    """Write an adapter for every layer of the transformer's blocks under the names of the original layout;
    returns the changes of the weights by their names there.
    """
    file = mmdit.to_file(whole_model.states_of(parts), parts.facts.config)
    generator, entries, deltas = torch.Generator().manual_seed(3), {}, {}

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for key, weight in file.items():
        name = key.removeprefix(ldm.UNET_PREFIX).removesuffix(".weight")
        if not re.fullmatch(r"joint_blocks\.\d+\..*(qkv|proj|fc\d|adaLN_modulation\.1)", name):
            continue
        (rows, columns), layer = weight.shape, f"lora_unet_{name.replace('.', '_')}"
        entries[f"{layer}.alpha"] = torch.tensor(1.0)
        if kind == "lora":
            up, down = random(rows, 2), random(2, columns)
            entries |= {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
            deltas[key] = up @ down / 2
        else:
            a, b = (random(rows, 2) for _ in range(2)), (random(2, columns) for _ in range(2))
            (a1, a2), (b1, b2) = a, b
            entries |= {f"{layer}.hada_w1_a": a1, f"{layer}.hada_w1_b": b1}
            entries |= {f"{layer}.hada_w2_a": a2, f"{layer}.hada_w2_b": b2}
            deltas[key] = (a1 @ b1) * (a2 @ b2) / 2
    assert len(deltas) == 2 * 10 - 3 + 2, "the last block says no words, the first has a second attention"
    save_file(entries, path)
    return deltas


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_an_adapter_under_the_original_names_changes_what_it_says(
    sd3: Path, tmp_path: Path, kind: str
) -> None:
    parts, path = load(sd3), tmp_path / "theirs.safetensors"
    deltas = of_sd_scripts(parts, path, kind)
    before = mmdit.to_file(whole_model.states_of(parts), parts.facts.config)
    before = {key: value.clone() for key, value in before.items()}
    adapter.merge(parts, path, 0.5)
    after = mmdit.to_file(whole_model.states_of(parts), parts.facts.config)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value + 0.5 * deltas.get(key, 0.0), rtol=1e-5, atol=1e-5)


def test_a_lora_goes_on_from_one_under_the_original_names(sd3: Path, tmp_path: Path) -> None:
    parts, path = load(sd3), tmp_path / "theirs.safetensors"
    deltas = of_sd_scripts(parts, path)
    layers = {"targets": "own list", "own_targets": ["transformer_blocks.*"]}
    section = build({"method": {"kind": "lora", "rank": 2, "init_from": str(path), **layers}}).method
    lora = method_of("lora")
    lora.suits(section, parts.facts)
    lora.attach(parts, section, RATES)
    result = lora.export(parts, section, ExportOrder(tmp_path, "mine", "fp32", ("diffusers",), {}))[0]
    fresh = load(sd3)
    before = mmdit.to_file(whole_model.states_of(fresh), fresh.facts.config)
    before = {key: value.clone() for key, value in before.items()}
    adapter.merge(fresh, result, 1.0)
    after = mmdit.to_file(whole_model.states_of(fresh), fresh.facts.config)
    for key, delta in deltas.items():
        torch.testing.assert_close(after[key], before[key] + delta, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_divided_is_named(sd3: Path, tmp_path: Path) -> None:
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    save_file(
        {f"{name}.lokr_w1": torch.ones(2, 2), f"{name}.lokr_w2": torch.ones(24, 8)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(UserError, match=name):
        adapter.merge(load(sd3), tmp_path / "a.safetensors", 1.0)
