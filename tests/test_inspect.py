"""What a file is, from its header alone: every base model, every adapter, and what is no model at all."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sd15
import torch
from conftest import Trainer

from sdtrainer import families, planner, recognition
from sdtrainer.__main__ import main
from sdtrainer.families import ASSETS, BaseSection
from sdtrainer.formats import ldm
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.recognition import Found
from sdtrainer.section import UserError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
ATTENTION = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
CLIP = {"cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}
OPENCLIP = {"cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024)}
BOTH = {
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}
THREE = {
    "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": (768,),
    "text_encoders.clip_g.transformer.text_model.final_layer_norm.weight": (1280,),
}
JOINT, JOINT_DIFFUSERS = "joint_blocks.0.x_block.", "transformer_blocks.0.attn."

Shapes = Mapping[str, tuple[int, ...]]


def write(path: Path, shapes: Shapes, dtype: str = "F16", metadata: Mapping[str, str] | None = None) -> Path:
    """Write a file of these tensors, all zeros: of full size, yet holes on the disk."""
    width, place, header = {"F16": 2, "BF16": 2, "F32": 4}[dtype], 0, dict[str, Any]()
    if metadata:
        header["__metadata__"] = dict(metadata)
    for name, shape in shapes.items():
        count = width * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + count]}
        place += count
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return path


def unet(width: int, channels: int = 4, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    named = {"input_blocks.0.0.weight": (320, channels, 3, 3), ATTENTION: (1280, width)}
    named |= {name.replace("__", "."): shape for name, shape in more.items()}
    return {UNET + name: shape for name, shape in named.items()} | vae(4)


def pruned(width: int) -> dict[str, tuple[int, ...]]:
    """A UNet whose middle is two thirds gone."""
    plain = {name: shape for name, shape in unet(width).items() if not name.endswith(ATTENTION)}
    return plain | {f"{UNET}middle_block.0.in_layers.2.weight": (1280, 1280, 3, 3)}


def vae(channels: int, prefix: str = VAE) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3),
        f"{prefix}decoder.conv_in.weight": (512, channels, 3, 3),
    }


def mmdit(width: int, *names: str) -> dict[str, tuple[int, ...]]:
    named = {f"{JOINT}{name}.weight": (64,) for name in names}
    named |= {"x_embedder.proj.weight": (width, 16, 2, 2), f"{JOINT}attn.qkv.weight": (3 * width, width)}
    return {UNET + name: shape for name, shape in named.items()} | vae(16)


def look(path: Path, shapes: Shapes, **options: Any) -> Found:
    return recognition.look(write(path / "file.safetensors", shapes, **options))


MODELS: Mapping[str, tuple[Shapes, str, str]] = {
    # name: tensors, base, variant
    "SD1": (unet(768) | CLIP, "SD1", ""),
    "SD1 without its text encoder": (unet(768), "SD1", ""),
    "SD1, inpainting": (unet(768, 9) | CLIP, "SD1", "inpainting"),
    "SD1, editing": (unet(768, 8) | CLIP, "SD1", "editing by instruction"),
    "SD2": (unet(1024) | OPENCLIP, "SD2", ""),
    "SD2, depth": (unet(1024, 5) | OPENCLIP, "SD2", "depth"),
    "SD2 unCLIP": (unet(1024, label_emb__0__0__weight=(1280, 2048)) | OPENCLIP, "SD2 unCLIP", ""),
    "SDXL": (unet(2048, label_emb__0__0__weight=(1280, 2816)) | BOTH, "SDXL", ""),
    "SDXL, inpainting": (unet(2048, 9) | BOTH, "SDXL", "inpainting"),
    "refiner": (unet(1280) | {"conditioner.embedders.0.model.ln_final.weight": (1280,)}, "SDXL refiner", ""),
    "SD3": (mmdit(1536) | THREE, "SD3", ""),
    "SD3.5 medium": (mmdit(1536, "attn.ln_q", "attn2.qkv") | THREE, "SD3.5 medium", ""),
    "SD3.5 large": (mmdit(2432, "attn.ln_q") | THREE, "SD3.5 large", ""),
    "Flux": ({f"{UNET}double_blocks.0.img_attn.qkv.weight": (9216, 3072)} | vae(16), "Flux", ""),
    "SSD-1B": (pruned(2048) | BOTH, "SDXL", "pruned"),
    "Playground v2.5": (
        unet(2048) | BOTH | {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)},
        "SDXL",
        "EDM",
    ),
    "CosXL": (unet(2048) | BOTH | {"edm_vpred.sigma_max": (1,), "edm_vpred.sigma_min": (1,)}, "SDXL", "EDM"),
    "Stable Cascade": ({f"{UNET}clf.1.weight": (64, 2048, 1, 1)} | vae(4), "Cascade", ""),
    "PixArt": ({f"{UNET}t_block.1.weight": (6912, 1152)} | vae(4), "PixArt", ""),
    "AuraFlow": ({f"{UNET}cond_seq_linear.weight": (3072, 2048)} | vae(4), "AuraFlow", ""),
    "Hunyuan-DiT": ({f"{UNET}mlp_t5.0.weight": (8192, 2048)} | vae(4), "Hunyuan-DiT", ""),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_base_model_is_told(tmp_path: Path, name: str) -> None:
    shapes, base, variant = MODELS[name]
    found = look(tmp_path, shapes)
    assert (found.kind, found.base, found.variant) == ("model", base, variant)
    assert [part.name for part in found.parts][:2] == ["denoiser", "VAE"]
    assert ("text encoder" in found.missing) == (name == "SD1 without its text encoder")


OTHERS: Mapping[str, tuple[Shapes, str, str]] = {
    # name: tensors, kind, a piece of its title
    "VAE": (vae(4, ""), "vae", "a VAE"),
    "VAE of a whole model": (vae(4), "vae", "a VAE"),
    "VAE of diffusers": ({"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}, "vae", "a VAE"),
    "text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}, "text encoder", "a CLIP"),
    "text encoder of a whole model": (CLIP, "text encoder", "a CLIP"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8)}, "text encoder", "a T5"),
    "ControlNet": (
        {"control_model.input_hint_block.0.weight": (16, 3, 3, 3), f"control_model.{ATTENTION}": (1280, 768)},
        "controlnet", "a ControlNet",
    ),
    "ControlNet of diffusers": (
        {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (320, 4, 3, 3)},
        "controlnet", "a ControlNet",
    ),
    "UNet of diffusers": (
        {"conv_in.weight": (320, 4, 3, 3),
         "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1280, 768)},
        "denoiser", "the denoiser of Stable Diffusion 1 alone",
    ),
    "UNet of ComfyUI": (
        {"input_blocks.0.0.weight": (320, 4, 3, 3), ATTENTION: (1280, 2048)},
        "denoiser", "the denoiser of Stable Diffusion XL alone",
    ),
    "transformer of diffusers": (
        {f"{JOINT_DIFFUSERS}add_q_proj.weight": (2432, 2432), f"{JOINT_DIFFUSERS}norm_q.weight": (64,),
         "pos_embed.proj.weight": (2432, 16, 2, 2)},
        "denoiser", "the denoiser of Stable Diffusion 3.5 Large alone",
    ),
    "embedding": ({"emb_params": (5, 768)}, "embedding", "5 vectors for Stable Diffusion 1"),
    "embedding of SD2": ({"zib": (1024,)}, "embedding", "1 vector for Stable Diffusion 2"),
    "embedding of SDXL": (
        {"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "2 vectors for Stable Diffusion XL"
    ),
    "upscaler": ({"conv_first.weight": (8, 3, 3, 3), "conv_last.weight": (3, 8, 3, 3)}, "other", "upscaler"),
    "averages alone": ({"model_ema.diffusion_modelout2bias": (4,)}, "other", "averaged weights"),
    "anything": ({"a": (2, 2), "b": (2, 2)}, "unknown", "not known"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_base_model_is_told_and_refused(tmp_path: Path, name: str) -> None:
    shapes, kind, title = OTHERS[name]
    found = look(tmp_path, shapes)
    assert found.kind == kind and title in found.title
    with pytest.raises(UserError) as refused:
        families.recognise(BaseSection(path=str(tmp_path / "file.safetensors")))
    assert refused.value.path == "base.path"
    expected = "nothing that can be trained" if kind == "unknown" else "not a base model"
    assert expected in refused.value.what


REFUSED = {
    "SD1 without its text encoder": "lacks its text encoder",
    "SD1, inpainting": "is Stable Diffusion 1, for inpainting",
    "SD1, editing": "is Stable Diffusion 1, for editing by instruction",
    "SD2 unCLIP": "is Stable Diffusion 2 unCLIP, which cannot be trained here yet",
    "refiner": "is the refiner of Stable Diffusion XL, which cannot",
    "Flux": "is Flux, which cannot be trained here yet",
    "SSD-1B": "is Stable Diffusion XL, with layers taken out, as in SSD-1B",
    "Playground v2.5": "is Stable Diffusion XL, with another kind of noise",
    "CosXL": "is Stable Diffusion XL, with another kind of noise",
    "Stable Cascade": "is Stable Cascade, which cannot be trained here yet",
    "PixArt": "is PixArt, which cannot be trained here yet",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_trained_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "some.safetensors", MODELS[name][0])
    with pytest.raises(UserError, match=f"some.safetensors {REFUSED[name]}") as refused:
        families.recognise(BaseSection(path=str(path)))
    assert refused.value.hint.startswith("Choose ")


FOLDERS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    # name: class of the pipeline, its UNet's config, what is said
    "inpainting": ("StableDiffusionInpaintPipeline", {"in_channels": 9}, "1, for inpainting"),
    "instruct-pix2pix": ("StableDiffusionInstructPix2PixPipeline", {"in_channels": 8}, "1, for editing"),
    "upscaler": ("StableDiffusionUpscalePipeline", {"in_channels": 7}, "1, for upscaling"),
    "depth": (
        "StableDiffusionDepth2ImgPipeline", {"in_channels": 5, "cross_attention_dim": 1024}, "2, for depth"
    ),
    "SSD-1B": ("StableDiffusionXLPipeline", {"mid_block_type": "UNetMidBlock2D"}, "XL, with layers taken"),
    "Vega": (
        "StableDiffusionXLPipeline", {"reverse_transformer_layers_per_block": [2, 1, 1]},
        "XL, with layers taken out",
    ),
    "Playground v2.5": ("StableDiffusionXLPipeline", {}, "XL, with another kind of noise"),
    "unCLIP": ("StableUnCLIPPipeline", {}, r"is a model of another kind \(StableUnCLIPPipeline\)"),
    "LCM": ("LatentConsistencyModelPipeline", {}, "is a model of another kind"),
    "Cascade": ("StableCascadePriorPipeline", {}, "is a model of another kind"),
    "PixArt": ("PixArtSigmaPipeline", {}, "is a model of another kind"),
    "Flux": ("FluxPipeline", {}, "is Flux, which cannot be trained here yet"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_trained_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    pipeline, unet_config, said = FOLDERS[name]
    scheduler = "EDMDPMSolverMultistepScheduler" if name.startswith("Playground") else "DDIMScheduler"
    contents = {
        "model_index.json": {"_class_name": pipeline},
        "unet/config.json": {"_class_name": "UNet2DConditionModel"} | unet_config,
        "scheduler/scheduler_config.json": {"_class_name": scheduler},
    }
    for file, values in contents.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=said) as refused:
        families.recognise(BaseSection(path=str(tmp_path)))
    assert refused.value.path == "base.path" and refused.value.hint.startswith("Choose ")


@pytest.mark.parametrize(
    ("name", "is_distilled"),
    [
        ("sd_xl_turbo_1.0", True), ("dreamshaperXL_v21TurboDPMSDE", True), ("sdxl_lightning_4step", True),
        ("juggernautXL_v9Rdphoto2Lightning", True), ("LCM_Dreamshaper_v7", True), ("Hyper-SDXL", True),
        ("hyperrealism_v3", False), ("turbomix", False), ("model", False),
    ],
)  # fmt: skip
def test_a_distilled_model_is_trained_with_a_warning(
    trainer: Trainer, base: Path, tmp_path: Path, name: str, is_distilled: bool
) -> None:
    (tmp_path / name).symlink_to(base)
    draft = planner.draft(trainer.config(base__path=str(tmp_path / name)), trainer.workspace, CPU_ONLY)
    warned = [advice for advice in draft.plan.advice if "few steps" in advice.text]
    assert len(warned) == is_distilled


# -- what it predicts ------------------------------------------------------------------------------


def test_marks_metadata_and_a_file_beside_say_what_is_predicted(tmp_path: Path) -> None:
    sd1, sdxl = MODELS["SD1"][0], MODELS["SDXL"][0]
    cases: list[tuple[Shapes, Mapping[str, str], str, str | None]] = [
        (sdxl | {"v_pred": (0,)}, {}, "", "v_prediction"),
        (sdxl, {"modelspec.prediction_type": "v"}, "", "v_prediction"),
        (sdxl, {"modelspec.prediction_type": "epsilon"}, "", "epsilon"),
        (MODELS["SD2"][0], {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "", "v_prediction"),
        (sd1, {}, 'model:\n  params:\n    parameterization: "v"\n', "v_prediction"),
        (sd1, {}, "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n", "epsilon"),
        (MODELS["SD3"][0], {}, "", "flow"),
        (sd1, {}, "", None),
        (MODELS["SD2"][0], {}, "", None),
        (sdxl, {}, "", None),
    ]
    for number, (shapes, metadata, beside, expected) in enumerate(cases):
        file = write(tmp_path / f"{number}.safetensors", shapes, metadata=metadata)
        if beside:
            file.with_suffix(".yaml").write_text(beside, encoding="utf-8")
        prediction = recognition.look(file).prediction
        assert prediction is not None
        assert prediction.is_decided == (expected is not None), number
        assert prediction.type == (expected or "epsilon"), number


def test_zero_terminal_snr_is_told_by_its_mark(tmp_path: Path) -> None:
    sdxl = MODELS["SDXL"][0]
    assert look(tmp_path, sdxl | {"v_pred": (0,), "ztsnr": (0,)}).is_zero_snr
    assert not look(tmp_path, sdxl | {"v_pred": (0,)}).is_zero_snr


# -- parts -----------------------------------------------------------------------------------------


def full_size(tmp_path: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of Stable Diffusion 1.5 in one file."""
    from test_single_file import empty_states

    facts = families.recognise(BaseSection(path=str(sd15.write(tmp_path / "sd15"))))
    file = ldm.to_ldm(empty_states(facts), facts.config, "clip")
    return {name: tuple(tensor.shape) for name, tensor in file.items()}


def test_a_full_size_model_is_told_in_under_a_second_of_work(tmp_path: Path) -> None:
    shapes = full_size(tmp_path)
    ema = {f"model_ema.{name.replace('.', '')}": shape for name, shape in shapes.items() if UNET in name}
    file = write(tmp_path / "big.safetensors", shapes | ema, "F32")
    assert file.stat().st_size > 7e9
    found = recognition.look(file)
    counts = {part.name: part.parameters for part in found.parts}
    assert counts["denoiser"] == sd15.UNET and counts["VAE"] == sd15.VAE
    assert counts["averaged weights (EMA)"] == sd15.UNET
    assert {part.precisions for part in found.parts} == {("fp32",)}
    assert any("EMA" in note for note in found.notes)
    before = time.process_time(), os.times().children_user
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sdtrainer", "inspect", str(file)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Stable Diffusion 1 (7.7 GB)" in done.stdout
    assert "| torch\n" not in done.stderr, "torch alone takes seconds to import"
    assert os.times().children_user - before[1] < 1.0


# -- other formats, and damage ---------------------------------------------------------------------


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_ckpt_is_opened_without_executing_it(tmp_path: Path, is_zip: bool) -> None:
    shapes, _, _ = MODELS["SD1"]
    state = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    file = tmp_path / "old.ckpt"
    torch.save({"state_dict": state, "global_step": 7}, file, _use_new_zipfile_serialization=is_zip)
    found = recognition.look(file)
    assert (found.kind, found.base) == ("model", "SD1")
    assert any("opened as a whole" in note for note in found.notes)


class Sly:
    """What a pickle can make a careless reader do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_program_code_in_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callbacks": Sly()}, tmp_path / "sly.ckpt")
    with pytest.raises(UserError, match=r"sly\.ckpt.*(posix|nt)\.system.*never opened"):
        families.recognise(BaseSection(path=str(tmp_path / "sly.ckpt")))
    assert not (tmp_path / "executed").exists()


def test_old_files_of_other_kinds_are_told(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": torch.zeros(3, 768)}, "name": "zib"}, tmp_path / "zib.pt")
    net = {"linear.0.weight": torch.zeros(4, 2)}
    torch.save({768: (net, net), "name": "net"}, tmp_path / "net.pt")
    found = [recognition.look(tmp_path / name) for name in ("zib.pt", "net.pt")]
    assert [(f.kind, f.base) for f in found] == [("embedding", "SD1"), ("hypernetwork", "SD1")]
    assert found[0].says["title"] == "zib"


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_torn_file_is_named_with_its_size(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".ckpt":
        torch.save({"a": torch.zeros(1000)}, whole)
    else:
        write(whole, MODELS["SD1"][0])
    torn = tmp_path / f"torn{suffix}"
    torn.write_bytes(whole.read_bytes()[:-500])
    assert main(["inspect", str(torn)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"torn{suffix} is cut short" in said
    assert f"{torn.stat().st_size:,}" in said


def test_folders_are_told(base: Path, tmp_path: Path) -> None:
    found = recognition.look(base)
    assert (found.kind, found.base) == ("folder", "SD1")
    assert [part.name for part in found.parts] == ["denoiser", "VAE", "text encoder"]
    assert found.prediction is not None and found.prediction.is_decided
    assert recognition.look(ASSETS / "starter-model").base == "SD1"
    assert recognition.look(base / "vae").kind == "vae"
    assert recognition.look(tmp_path).kind == "unknown"
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UserError, match="Flux, which cannot be trained here yet"):
        families.recognise(BaseSection(path=str(tmp_path)))
