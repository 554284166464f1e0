"""Trains the starter's UNet and text encoder together on the world's latents, for a given time."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from sdtrainer.starter.checkpoint import Checkpoint
from sdtrainer.starter.drawing import world_batch
from sdtrainer.starter.latents import PatchSpace
from sdtrainer.starter.networks import ddim_scheduler, new_text_encoder, new_unet
from sdtrainer.starter.pacing import Pace

BATCH = 16
PEAK_RATE = 8e-4
CAPTION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0
EMA_DECAY = 0.999
CHECKPOINT_NAME = "unet-training.pt"


@dataclass
class Denoiser:
    """The two networks that learn together, and the averaged copies that are shipped."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    averaged_unet: UNet2DConditionModel
    averaged_text_encoder: CLIPTextModel

    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that learns."""
        return [*self.unet.parameters(), *self.text_encoder.parameters()]

    def parts(self) -> dict[str, torch.nn.Module]:
        """All networks by the names under which they are kept."""
        return {
            "unet": self.unet,
            "text_encoder": self.text_encoder,
            "averaged_unet": self.averaged_unet,
            "averaged_text_encoder": self.averaged_text_encoder,
        }

    def update_average(self, step: int) -> None:
        """Move the averaged copies a little towards the learning ones."""
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for average, current in self._pairs():
                torch._foreach_lerp_(average, current, 1 - decay)

    def _pairs(self) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        return [
            (list(self.averaged_unet.parameters()), list(self.unet.parameters())),
            (list(self.averaged_text_encoder.parameters()), list(self.text_encoder.parameters())),
        ]


def train_unet(work: Path, tokenizer: CLIPTokenizer, minutes: float, seed: int = 0) -> int:
    """Train until the time is up, continuing a checkpoint if there is one; return the steps made in all."""
    torch.manual_seed(seed)
    denoiser = new_denoiser(tokenizer)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), fused=True)
    checkpoint = Checkpoint(work / CHECKPOINT_NAME, {**denoiser.parts(), "optimizer": optimizer})
    steps, spent = checkpoint.resume()
    torch.manual_seed(seed + steps)  # not the noise of the first steps again
    rng = random.Random(f"unet {seed} {steps}")
    space = PatchSpace.load(work / "patch-space.safetensors")
    pace = Pace(minutes * 60, spent, warm_up=0.01, decay_from=0.45)
    while not pace.over():
        pace.set_rate(optimizer, PEAK_RATE)
        pictures, captions = world_batch(rng, BATCH)
        latents = space.encode(pictures)
        loss = _step(denoiser, optimizer, tokenizer, latents, _with_dropout(rng, captions))
        denoiser.update_average(steps)
        steps += 1
        if steps % 50 == 0:
            print(f"unet step {steps} loss {loss:.4f} spent {pace.spent():.0f}s", flush=True)
        checkpoint.save_sometimes(steps, pace.spent())
    checkpoint.save(steps, pace.spent())
    return steps


def new_denoiser(tokenizer: CLIPTokenizer) -> Denoiser:
    """Fresh networks, the averages equal to the learning ones."""
    unet, text_encoder = new_unet(), new_text_encoder(len(tokenizer), tokenizer.eos_token_id)
    averaged = copy.deepcopy(unet).requires_grad_(False), copy.deepcopy(text_encoder).requires_grad_(False)
    return Denoiser(unet.train(), text_encoder.train(), *averaged)


def load_averaged(work: Path, denoiser: Denoiser) -> tuple[int, float]:
    """Put a checkpoint's averages into the denoiser; return its steps and seconds."""
    state = torch.load(work / CHECKPOINT_NAME, map_location="cpu", weights_only=True)
    denoiser.averaged_unet.load_state_dict(state["averaged_unet"])
    denoiser.averaged_text_encoder.load_state_dict(state["averaged_text_encoder"])
    return state["steps"], state["spent"]


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Captions as padded token ids, the way the pipeline itself makes them."""
    return tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


def _step(
    denoiser: Denoiser,
    optimizer: torch.optim.Optimizer,
    tokenizer: CLIPTokenizer,
    latents: torch.Tensor,
    captions: list[str],
) -> float:
    noise = torch.randn_like(latents)
    timesteps = _spread_timesteps(len(latents))
    noisy_latents = _noise_schedule().add_noise(latents, noise, timesteps)
    prompt_embeds = denoiser.text_encoder(token_ids(tokenizer, captions)).last_hidden_state
    predicted = denoiser.unet(noisy_latents, timesteps, prompt_embeds).sample
    errors = (predicted - noise).square().mean(dim=(1, 2, 3))
    loss = (errors * _min_snr_weights(timesteps)).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _spread_timesteps(count: int) -> torch.Tensor:
    # One from each equal share of the schedule: less random than independent draws, so steadier gradients.
    return ((torch.arange(count) + torch.rand(count)) * (1000 / count)).long().clamp(max=999)


@lru_cache(maxsize=1)
def _noise_schedule() -> DDIMScheduler:
    return ddim_scheduler()


def _min_snr_weights(timesteps: torch.Tensor) -> torch.Tensor:
    # Predicting the noise of a nearly clean picture is hard and matters little; gamma caps its share.
    alphas = _noise_schedule().alphas_cumprod[timesteps]
    snr = alphas / (1 - alphas)
    return snr.clamp(max=MIN_SNR_GAMMA) / snr


def _with_dropout(rng: random.Random, captions: list[str]) -> list[str]:
    return ["" if rng.random() < CAPTION_DROPOUT else caption for caption in captions]
