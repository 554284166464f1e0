"""Batches of drawn pictures and captions as tensors, from a seeded random generator."""

from __future__ import annotations

import random

import numpy
import torch
from PIL import Image

from sdtrainer.starter.world import draw_scene, render


def world_batch(rng: random.Random, count: int) -> tuple[torch.Tensor, list[str]]:
    """So many fresh pictures (N, 3, 128, 128) in -1..1 and their captions."""
    scenes = [draw_scene(rng) for _ in range(count)]
    return as_tensor([render(scene) for scene in scenes]), [scene.caption for scene in scenes]


def as_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as (N, 3, H, W) in -1..1."""
    stacked = numpy.stack([numpy.asarray(picture, dtype=numpy.float32) for picture in pictures])
    return torch.from_numpy(stacked).movedim(-1, 1).contiguous() / 127.5 - 1


def as_pictures(tensor: torch.Tensor) -> list[Image.Image]:
    """The way back: (N, 3, H, W) in -1..1 to RGB pictures."""
    pixels = ((tensor.detach().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
