"""Trains the starter's decoder, for a given time, to draw pictures from the patch space's latents."""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from sdtrainer.starter.autoencoder import write_encoder
from sdtrainer.starter.checkpoint import Checkpoint
from sdtrainer.starter.drawing import as_tensor, world_batch
from sdtrainer.starter.latents import PATCH, PatchSpace
from sdtrainer.starter.networks import LATENT_SIZE, new_vae
from sdtrainer.starter.pacing import Pace
from sdtrainer.starter.scenery import any_picture

BATCH = 8
PEAK_RATE = 1.5e-3
CROP = 8  # in latents; most of a whole picture is plain background, which teaches little
WHOLE_FROM = 0.9
LATENT_NOISE = 0.06  # sampled latents are never exact
CHECKPOINT_NAME = "vae-training.pt"


def train_vae(work: Path, minutes: float, seed: int = 0) -> float:
    """Train until the time is up, continuing a checkpoint if there is one; return the PSNR in decibels."""
    torch.manual_seed(seed)
    space = PatchSpace.load(work / "patch-space.safetensors")
    vae = new_vae().train()
    write_encoder(vae, space)
    weights = vae.decoder.parameters()
    optimizer = torch.optim.AdamW(weights, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    checkpoint = Checkpoint(work / CHECKPOINT_NAME, {"vae": vae, "optimizer": optimizer})
    steps, spent = checkpoint.resume()
    torch.manual_seed(seed + steps)  # not the noise of the first steps again
    rng = random.Random(f"vae {seed} {steps}")
    pace = Pace(minutes * 60, spent, warm_up=0.01, decay_from=0.4)
    while not pace.over():
        pace.set_rate(optimizer, PEAK_RATE)
        pictures = as_tensor([any_picture(rng) for _ in range(BATCH)])
        if pace.progress() < WHOLE_FROM:
            pictures = _crops(rng, pictures)
        loss = _step(vae, optimizer, space, pictures)
        steps += 1
        if steps % 50 == 0:
            print(f"vae step {steps} loss {loss:.4f} spent {pace.spent():.0f}s", flush=True)
        checkpoint.save_sometimes(steps, pace.spent())
    checkpoint.save(steps, pace.spent())
    return psnr_of_world(vae)


def load_vae(work: Path) -> AutoencoderKL:
    """The autoencoder of the last checkpoint."""
    vae = new_vae()
    state = torch.load(work / CHECKPOINT_NAME, map_location="cpu", weights_only=True)
    vae.load_state_dict(state["vae"])
    return vae.eval()


def psnr_of_world(vae: AutoencoderKL, count: int = 48, seed: str = "held-out psnr") -> float:
    """Peak signal-to-noise ratio in decibels of held-out renderings sent through the autoencoder."""
    vae.eval()
    pictures, _ = world_batch(random.Random(seed), count)
    with torch.no_grad():
        restored = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    return psnr(pictures, restored)


def psnr(pictures: torch.Tensor, restored: torch.Tensor) -> float:
    """In decibels, for values in -1..1, over the whole batch."""
    return 10 * math.log10(4 / float((pictures - restored).square().mean()))


def _step(
    vae: AutoencoderKL, optimizer: torch.optim.Optimizer, space: PatchSpace, pictures: torch.Tensor
) -> float:
    latents = space.encode(pictures)
    noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1) * 2 * LATENT_NOISE
    restored = vae.decoder(latents + noise)
    loss = _difference(pictures, restored)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _difference(pictures: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    # The squared error alone blurs edges; the absolute error and the differences of neighbours keep them.
    error = restored - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return 0.5 * error.abs().mean() + 2 * error.square().mean() + 0.5 * edges


def _crops(rng: random.Random, pictures: torch.Tensor) -> torch.Tensor:
    edge, room = CROP * PATCH, LATENT_SIZE - CROP
    crops = []
    for picture in pictures:
        # The sum of two draws favours the middle, where the drawing is.
        left, top = (PATCH * ((rng.randint(0, room) + rng.randint(0, room)) // 2) for _ in range(2))
        crops.append(picture[:, top : top + edge, left : left + edge])
    return torch.stack(crops)
