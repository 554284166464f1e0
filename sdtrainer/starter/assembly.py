"""Puts the trained parts together as a StableDiffusionPipeline folder in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from sdtrainer.starter.networks import ddim_scheduler
from sdtrainer.starter.unet_training import load_averaged, new_denoiser
from sdtrainer.starter.vae_training import load_vae

LARGEST_FILE = "14MB"
PARTS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")


def assemble(work: Path, folder: Path) -> None:
    """Write the pipeline of the last checkpoints into the folder, replacing an older one's parts."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    denoiser = new_denoiser(tokenizer)
    load_averaged(work, denoiser)
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    pipeline = new_pipeline(load_vae(work), denoiser.averaged_text_encoder, tokenizer, denoiser.averaged_unet)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, max_shard_size=LARGEST_FILE, safe_serialization=True)
    name_keys_the_old_way(folder / "text_encoder" / "model.safetensors")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        # Newer libraries write tokenizer.json alone; older ones read only these.
        shutil.copyfile(work / "tokenizer" / name, folder / "tokenizer" / name)


def new_pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """The parts as Stable Diffusion 1.5 is put together, without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=ddim_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def name_keys_the_old_way(file: Path) -> None:
    """Give the text encoder's tensors the prefix that every release of transformers and other tools know."""
    tensors = load_file(file)
    renamed = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in tensors.items()}
    save_file(renamed, file, metadata={"format": "pt"})
