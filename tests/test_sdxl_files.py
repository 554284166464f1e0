"""Files of Stable Diffusion XL: the names and shapes of the published model, and nothing lost either way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sdxl as published_sdxl
import tiny
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders import single_file_utils as reference
from safetensors.torch import load_file, save_file

from sdtrainer import families
from sdtrainer.config import build
from sdtrainer.diffusion import Schedule
from sdtrainer.families import BaseSection
from sdtrainer.formats import embedding, ldm, ldm_shapes, whole_model
from sdtrainer.formats.readers import readers_of
from sdtrainer.methods import method_of
from sdtrainer.seams import DENOISER, VAE, ExportOrder, Facts, LearningRates, Parts
from sdtrainer.section import UserError

ENCODER, ENCODER_2 = ldm.ENCODER, ldm.ENCODER_2
CAPTION = "a zib disc"
_LINES = (Path(__file__).parent / "keys/sdxl_lora.txt").read_text().splitlines()
KEYS = {line for line in _LINES if not line.startswith("#")}
UNET_FILE, VAE_FILE = "model.diffusion_model.", "first_stage_model."
CLIP_FILE, OPENCLIP_FILE = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

States = Mapping[str, Mapping[str, torch.Tensor]]


def recognised(path: Path) -> Facts:
    return families.recognise(BaseSection(path=str(path)))


def load(path: Path) -> Parts:
    facts = recognised(path)
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))


def skeleton(facts: Facts) -> Parts:
    modules = families.family_of(facts).skeleton(facts)
    for module in modules.values():
        module.requires_grad_(False)
    return Parts(facts, modules, {}, Schedule(torch.empty(0)))


def export(parts: Parts, folder: Path, layout: str, **method: Any) -> Path:
    section = build({"method": {"kind": "full"} | method}).method
    order = ExportOrder(folder, "result", "fp32", (layout,), {})  # type: ignore[arg-type]
    return method_of(section.kind).export(parts, section, order)[0]


@pytest.fixture(scope="module")
def published(published_models: dict[str, str]) -> Facts:
    """SDXL 1.0, without weights."""
    return recognised(Path(published_models[published_sdxl.HUB_ID]))


@pytest.fixture(scope="module")
def empty(published: Facts) -> Parts:
    return skeleton(published)


@pytest.fixture(scope="module")
def file(empty: Parts) -> dict[str, torch.Tensor]:
    """The published model as one file, names and shapes alone."""
    return ldm.to_ldm(whole_model.states_of(empty), empty.facts.config, "both")


def assert_same(found: States, expected: States) -> None:
    assert found.keys() == expected.keys()
    for part, state in expected.items():
        assert found[part].keys() == state.keys(), part
        for name, value in state.items():
            assert found[part][name].shape == value.shape, name
            assert value.is_meta or torch.equal(found[part][name], value), name


# -- the published model ----------------------------------------------------------------------------


def test_the_published_model_is_known_and_counted(published: Facts, empty: Parts) -> None:
    assert (published.resolution, published.text_width, published.pixels_per_latent) == (1024, 2048, 8)
    counted = {part: sum(p.numel() for p in module.parameters()) for part, module in empty.modules.items()}
    assert counted == {
        DENOISER: published_sdxl.UNET,
        VAE: published_sdxl.VAE,
        ENCODER: published_sdxl.TEXT_ENCODER,
        ENCODER_2: published_sdxl.TEXT_ENCODER_2,
    }


def test_the_file_has_the_names_and_shapes_of_the_published_one(file: dict[str, torch.Tensor]) -> None:
    """The published file has one more: OpenCLIP's logit_scale, which no text encoder uses."""
    prefixes = (UNET_FILE, VAE_FILE, CLIP_FILE, OPENCLIP_FILE)
    assert [sum(key.startswith(p) for key in file) for p in prefixes] == [1680, 248, 197, 32 * 12 + 5]
    assert len(file) == 1680 + 248 + 197 + 389
    known = {
        f"{UNET_FILE}label_emb.0.0.weight": (1280, 2816),
        f"{UNET_FILE}input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        f"{UNET_FILE}input_blocks.8.1.transformer_blocks.9.ff.net.2.weight": (1280, 5120),
        f"{UNET_FILE}middle_block.1.proj_in.weight": (1280, 1280),
        f"{UNET_FILE}output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        f"{UNET_FILE}output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
        f"{CLIP_FILE}text_model.embeddings.position_ids": (1, 77),
        f"{CLIP_FILE}text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        f"{OPENCLIP_FILE}transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        f"{OPENCLIP_FILE}text_projection": (1280, 1280),
        f"{OPENCLIP_FILE}positional_embedding": (77, 1280),
    }
    assert {key: tuple(file[key].shape) for key in known} == known


def test_shapes_tell_the_configs(published: Facts, empty: Parts, file: dict[str, torch.Tensor]) -> None:
    configs = ldm_shapes.configs_of({name: tuple(t.shape) for name, t in file.items()})
    assert configs is not None
    for part in published.parts:
        told = {k: v for k, v in published.config[part].items() if k in configs[part]}
        assert {k: configs[part][k] for k in told} == told and len(told) >= 3
    assert_same(ldm.from_ldm(file, configs, "both"), whole_model.states_of(empty))


# -- whole models -----------------------------------------------------------------------------------


def random_states(path: Path) -> tuple[Facts, dict[str, dict[str, torch.Tensor]]]:
    """The tiny model with random weights, no two alike."""
    facts = recognised(path)
    return facts, tiny.random_like(whole_model.states_of(skeleton(facts)))


def test_diffusers_own_converter_reads_the_same_tensors(sdxl: Path) -> None:
    facts, states = random_states(sdxl)
    file, modules = ldm.to_ldm(states, facts.config, "both"), skeleton(facts).modules
    assert_same(ldm.from_ldm(file, facts.config, "both"), states)
    clip = reference.convert_ldm_clip_checkpoint(dict(file), remove_prefix=CLIP_FILE)
    found = {
        DENOISER: reference.convert_ldm_unet_checkpoint(dict(file), modules[DENOISER].config),
        VAE: reference.convert_ldm_vae_checkpoint(dict(file), modules[VAE].config),
        ENCODER: {name: value for name, value in clip.items() if name != ldm.POSITION_IDS},
        ENCODER_2: reference.convert_open_clip_checkpoint(
            modules[ENCODER_2], dict(file), prefix=OPENCLIP_FILE
        ),
    }
    assert_same(found, states)


@pytest.mark.parametrize("layout", ["webui", "diffusers"])
def test_saving_and_loading_gives_the_same_model_and_the_same_file(
    sdxl: Path, tmp_path: Path, layout: str
) -> None:
    (tmp_path / "again").mkdir()
    mine = load(sdxl)
    path = export(mine, tmp_path, layout)
    other = load(path)
    assert_same(whole_model.states_of(other), whole_model.states_of(mine))
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


def test_diffusers_loads_the_folder(sdxl: Path, tmp_path: Path) -> None:
    folder = export(load(sdxl), tmp_path, "diffusers")
    mine, theirs = (StableDiffusionXLPipeline.from_pretrained(path) for path in (sdxl, folder))
    with torch.no_grad():
        first, second = (
            p.encode_prompt(CAPTION, device="cpu", do_classifier_free_guidance=False) for p in (mine, theirs)
        )
    assert torch.equal(first[0], second[0]) and torch.equal(first[2], second[2])


# -- files of others --------------------------------------------------------------------------------


def foreign(
    path: Path, marks: tuple[str, ...] = (), scale: float = 1.0, **denoiser: Any
) -> dict[str, dict[str, torch.Tensor]]:
    """Write a file as another trainer would: of SDXL's structure, thin, without a word on how it is built.
    `denoiser` is in its config.
    """
    text = {"vocab_size": 49408, "num_hidden_layers": 2, "max_position_embeddings": 77}
    configs: dict[str, dict[str, Any]] = {
        DENOISER: {
            "in_channels": 4, "block_out_channels": [32, 64, 64], "transformer_layers_per_block": [1, 2, 3],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [1, 1, 1], "use_linear_projection": True, "cross_attention_dim": 128,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 32 + 6 * 256, **denoiser,
        },
        VAE: {
            "block_out_channels": [32, 32, 32, 32], "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4,
        },
        ENCODER: text | {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1},
        ENCODER_2: text | {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1,
                           "projection_dim": 32},
    }  # fmt: skip
    facts = Facts("sdxl", "", "", "file", "", "epsilon", 1024, 4, 8, 128, (ENCODER, ENCODER_2), configs)
    generator = torch.Generator().manual_seed(0)
    states = {
        part: {name: scale * torch.randn(value.shape, generator=generator) for name, value in state.items()}
        for part, state in whole_model.states_of(skeleton(facts)).items()
    }
    file = ldm.to_ldm(states, configs, "both") | {mark: torch.zeros(0) for mark in marks}
    file[f"{OPENCLIP_FILE}logit_scale"] = torch.ones(())
    save_file({k: v.clone().contiguous() for k, v in file.items()}, path)
    return states


def test_a_file_of_another_trainer_is_loaded_from_its_shapes(tmp_path: Path) -> None:
    path = tmp_path / "anything.safetensors"
    states = foreign(path)
    facts = recognised(path)
    assert (facts.family, facts.prediction_type, facts.resolution) == ("sdxl", "epsilon", 1024)
    parts = load(path)
    assert_same(whole_model.states_of(parts), states)
    assert parts.vae.config.scaling_factor == 0.13025
    ids = families.family_of(facts).tokenize(parts, [CAPTION], 1)
    assert ids[ENCODER][0, -1] == 49407 and ids[ENCODER_2][0, -1] == 0, "each pads as it is used to"


def test_marks_tell_what_a_file_predicts(tmp_path: Path) -> None:
    for marks, zero_terminal in ((("v_pred",), False), (("v_pred", "ztsnr"), True)):
        path = tmp_path / f"{len(marks)}.safetensors"
        foreign(path, marks)
        facts = recognised(path)
        assert facts.prediction_type == "v_prediction" and "mark v_pred" in facts.why
        assert Schedule.from_config(facts.config["scheduler"]).has_zero_terminal == zero_terminal


def test_the_refiner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "refiner.safetensors"
    save_file({"conditioner.embedders.0.model.ln_final.weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match="refiner"):
        recognised(path)


# -- adapters ---------------------------------------------------------------------------------------


def modules_in(file: Mapping[str, torch.Tensor]) -> set[str]:
    """The names of layers in an adapter file."""
    return {re.sub(r"\.((lora_(down|up|A|B)\.weight)|alpha|hada_\w+|lokr_\w+)$", "", key) for key in file}


def exported_names(facts: Facts, *layouts: str, **method: Any) -> list[set[str]]:
    """The names of layers in each layout of a method's file."""
    parts, section = skeleton(facts), build({"method": method}).method
    with torch.device("meta"):
        method_of(section.kind).attach(parts, section, LearningRates(1.0, 1.0))
    files = (method_of(section.kind).state(parts, section, layout)[0] for layout in layouts)  # type: ignore[attr-defined]
    return [modules_in(file) for file in files]


def test_every_layer_of_the_published_model_has_a_name_that_comfyui_knows(published: Facts) -> None:
    everything = ["*", "text_encoder.*layers*", "text_encoder_2.*layers*", "text_encoder_2.text_projection"]
    named, of_diffusers = exported_names(
        published, "webui", "diffusers", kind="lora", targets="own list", own_targets=everything
    )
    assert len(named) == 794 + 12 * 6 + 32 * 6 + 1
    known = {key for key in KEYS if key.startswith("lora_")} - {"lora_te1_text_projection"}
    assert named == known, "a name is unknown, or this test leaves a layer out"
    unread = of_diffusers - KEYS
    assert unread and all(".attn" in name or "text_projection" in name for name in unread)
    (row,) = [r for r in readers_of("lora", "sdxl", "diffusers") if r.program == "ComfyUI"]
    assert row.reads == "no", "ComfyUI does not know the attention layers in the diffusers layout"


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_lycoris_files_have_the_same_names(sdxl: Path, kind: str) -> None:
    layers = {"targets": "with convolutions", "train_text_encoder": True}
    names = exported_names(recognised(sdxl), "webui", kind=kind, **layers)
    assert names == exported_names(recognised(sdxl), "webui", kind="lora", **layers)
    assert {"lora_unet_input_blocks_3_1_proj_in", "lora_unet_output_blocks_1_2_conv"} < names[0]


@pytest.mark.parametrize("layout", ["webui", "diffusers"])
def test_diffusers_loads_a_lora(sdxl: Path, tmp_path: Path, layout: str) -> None:
    section = {"kind": "lora", "rank": 2, "alpha": 3.0, "targets": "own list", "own_targets": [
        "*attn*to_*", "*proj_in", "*conv1", "*emb_proj", "*shortcut", "*samplers*", "text_encoder.*layers*",
        "text_encoder_2.*layers*",
    ]}  # fmt: skip
    parts, settings = load(sdxl), build({"method": section}).method
    groups = method_of("lora").attach(parts, settings, LearningRates(1.0, 1.0))
    torch.manual_seed(0)
    for group in groups:
        for parameter in group.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    path = export(parts, tmp_path, layout, **section)
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl)
    pipeline.load_lora_weights(path)
    family = families.family_of(parts.facts)
    with torch.no_grad():
        said = family.encode_text(parts, family.tokenize(parts, [CAPTION], 1), 0, torch.zeros(1, 6))
        embeds, _, pooled, _ = pipeline.encode_prompt(
            CAPTION, device="cpu", do_classifier_free_guidance=False
        )
        torch.testing.assert_close(said.prompt_embeds, embeds, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(said.pooled, pooled, rtol=1e-4, atol=1e-5)
        told = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
        noisy = torch.randn(1, 4, 8, 8)
        mine, theirs, plain = (
            unet(noisy, 500, embeds, added_cond_kwargs=told).sample
            for unet in (parts.denoiser, pipeline.unet, load(sdxl).denoiser)
        )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert (mine - plain).abs().max() > 1e-2


def test_an_embedding_has_a_tensor_for_each_encoder_and_diffusers_reads_both(
    sdxl: Path, tmp_path: Path
) -> None:
    section = {"kind": "textual_inversion", "tokens": ["<zib>"], "init": ["a disc"], "vectors": 2}
    parts, settings = load(sdxl), build({"method": section}).method
    method_of("textual_inversion").attach(parts, settings, LearningRates(1.0, 1.0))
    path = export(parts, tmp_path, "webui", **section)
    vectors = load_file(path)
    assert {name: tuple(v.shape) for name, v in vectors.items()} == {"clip_l": (2, 32), "clip_g": (2, 48)}
    assert [v.shape[-1] for v in embedding.read(path).vectors] == [32, 48]
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl)
    for name, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        pipeline.load_textual_inversion(
            {"<zib>": vectors[name]}, token="<zib>", text_encoder=encoder, tokenizer=tokenizer
        )
        table = encoder.get_input_embeddings().weight
        assert torch.equal(table[tokenizer.convert_tokens_to_ids("<zib>")], vectors[name][0])


def test_the_end_of_text_is_found_beside_learnt_words(sdxl: Path) -> None:
    """Learnt words have higher numbers than the end, where older code looks for it."""
    section = {"kind": "textual_inversion", "tokens": ["<zib>"], "init": ["a"], "vectors": 1}
    parts, settings = load(sdxl), build({"method": section}).method
    method_of("textual_inversion").attach(parts, settings, LearningRates(1.0, 1.0))
    family = families.family_of(parts.facts)
    with torch.no_grad():
        learnt, usual = (
            family.encode_text(parts, family.tokenize(parts, [text], 1), 0, torch.zeros(1, 6)).pooled
            for text in ("<zib> disc", "a disc")
        )
    assert learnt is not None and usual is not None
    torch.testing.assert_close(learnt, usual)


def test_a_wide_or_narrow_base_is_told_apart(tmp_path: Path, sdxl: Path) -> None:
    path = export(load(tiny.make_sdxl(tmp_path / "wide", (40, 48))), tmp_path, "webui")
    with pytest.raises(UserError, match="does not fit"):
        method_of("full").put_on(load(sdxl), path, 1.0)
