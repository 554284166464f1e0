"""Trains the judge on renderings spoiled the way a small diffusion model spoils its pictures."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as functional
from PIL import Image, ImageFilter

from sdtrainer.starter.checkpoint import Checkpoint
from sdtrainer.starter.drawing import as_pictures, as_tensor
from sdtrainer.starter.judge import NOTHING, VIEW, Judge, JudgeNetwork, class_names
from sdtrainer.starter.latents import PatchSpace
from sdtrainer.starter.pacing import Pace
from sdtrainer.starter.prompts import ROBOT_NAME
from sdtrainer.starter.robot import draw_robot, random_pose
from sdtrainer.starter.scenery import random_shapes
from sdtrainer.starter.world import BACKGROUNDS, PICTURE_SIZE, draw_scene, render

BATCH = 32
PEAK_RATE = 2e-3
NOTHING_SHARE = 0.12
ROBOT_SHARE = 0.04
SPOILED_SHARE = 0.75
HELD_OUT = 600


def train_judge(work: Path, minutes: float, seed: int = 0) -> Judge:
    """Train until the time is up, continuing a checkpoint if there is one; measure on unseen renderings."""
    torch.manual_seed(seed)
    space = PatchSpace.load(work / "patch-space.safetensors")
    classes = class_names()
    network = JudgeNetwork(len(classes)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.02)
    checkpoint = Checkpoint(work / "judge-training.pt", {"network": network, "optimizer": optimizer})
    steps, spent = checkpoint.resume()
    torch.manual_seed(seed + steps)  # not the noise of the first steps again
    rng = random.Random(f"judge {seed} {steps}")
    pace = Pace(minutes * 60, spent, warm_up=0.02, decay_from=0.5)
    while not pace.over():
        pace.set_rate(optimizer, PEAK_RATE)
        loss = _step(network, optimizer, *_batch(rng, space, classes))
        steps += 1
        if steps % 50 == 0:
            print(f"judge step {steps} loss {loss:.3f} spent {pace.spent():.0f}s", flush=True)
            checkpoint.save_sometimes(steps, pace.spent())
    checkpoint.save(steps, pace.spent())
    judge = Judge(network, classes, 0.0)
    judge.accuracy = accuracy_of(judge)
    return judge


def accuracy_of(judge: Judge, count: int = HELD_OUT, seed: str = "held-out judge") -> float:
    """The share of clean, never trained-on renderings that the judge names rightly."""
    rng = random.Random(seed)
    scenes = [draw_scene(rng) for _ in range(count)]
    names = judge.names([render(scene) for scene in scenes])
    return sum(name == scene.name for name, scene in zip(names, scenes, strict=True)) / count


def _step(
    network: JudgeNetwork, optimizer: torch.optim.Optimizer, views: torch.Tensor, labels: torch.Tensor
) -> float:
    loss = functional.cross_entropy(network(views), labels, label_smoothing=0.05)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _batch(rng: random.Random, space: PatchSpace, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = [_example(rng) for _ in range(BATCH)]
    pictures = as_tensor([picture for picture, _ in drawn])
    views = functional.interpolate(
        _through_latents(rng, space, pictures), size=VIEW, mode="bilinear", antialias=True
    )
    labels = torch.tensor([classes.index(name) for _, name in drawn])
    return views + 0.05 * rng.random() * torch.randn_like(views), labels


def _example(rng: random.Random) -> tuple[Image.Image, str]:
    draw = rng.random()
    if draw < NOTHING_SHARE:
        return _nothing(rng), NOTHING
    if draw < NOTHING_SHARE + ROBOT_SHARE:
        picture, name = draw_robot(random_pose(rng, rng.choice(list(BACKGROUNDS))), PICTURE_SIZE), ROBOT_NAME
    else:
        scene = draw_scene(rng)
        picture, name = render(scene), scene.name
    if rng.random() < SPOILED_SHARE:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2.5)))
    return picture, name


def _through_latents(rng: random.Random, space: PatchSpace, pictures: torch.Tensor) -> torch.Tensor:
    # Some pictures come back from noisy latents, as blocky as the linear decoder leaves them.
    latents = space.encode(pictures)
    restored = space.decode(latents + rng.uniform(0, 0.25) * torch.randn_like(latents))
    chosen = torch.rand(len(pictures), 1, 1, 1) < 0.4
    return torch.where(chosen, restored, pictures)


def _nothing(rng: random.Random) -> Image.Image:
    kind = rng.randrange(5)
    if kind == 0:
        return random_shapes(rng)
    if kind == 1:
        return _something(rng).filter(ImageFilter.GaussianBlur(rng.uniform(9, 16)))
    if kind == 2:
        return Image.blend(_something(rng), _something(rng), rng.uniform(0.4, 0.6))
    if kind == 3:
        return _shuffled(rng, _something(rng))
    return _blotches(rng)


def _something(rng: random.Random) -> Image.Image:
    if rng.random() < 0.2:
        return draw_robot(random_pose(rng, rng.choice(list(BACKGROUNDS))), PICTURE_SIZE)
    return render(draw_scene(rng))


def _shuffled(rng: random.Random, picture: Image.Image) -> Image.Image:
    # Cut into tiles and put together wrongly: the colours of a thing without its shape.
    edge = rng.choice((16, 32))
    corners = [(x, y) for x in range(0, PICTURE_SIZE, edge) for y in range(0, PICTURE_SIZE, edge)]
    tiles = [picture.crop((x, y, x + edge, y + edge)) for x, y in corners]
    rng.shuffle(tiles)
    for corner, tile in zip(corners, tiles, strict=True):
        picture.paste(tile, corner)
    return picture


def _blotches(rng: random.Random) -> Image.Image:
    # Smooth random colours over a plain background, as an untrained model makes them.
    coarse = torch.randn(1, 3, 6, 6) * rng.uniform(0.1, 0.8) + torch.rand(1, 3, 1, 1) * 2 - 1
    smooth = functional.interpolate(coarse, size=PICTURE_SIZE, mode="bicubic")
    return as_pictures(smooth)[0]
