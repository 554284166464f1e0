"""Draws the fixed prompts with a pipeline, has the judge name them, and lays them out as one sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from sdtrainer.starter.judge import Judge
from sdtrainer.starter.prompts import Prompt

STEPS = 25
GUIDANCE = 4.5
SEED = 1
COLUMNS = 8
CAPTION_HEIGHT = 26


@dataclass(frozen=True)
class Sheet:
    """Drawn prompts and what the judge calls them."""

    prompts: tuple[Prompt, ...]
    images: list[Image.Image]
    names: list[str]

    @property
    def right(self) -> int:
        """How many pictures the judge names as their prompt does."""
        return sum(name == prompt.name for name, prompt in zip(self.names, self.prompts, strict=True))

    def mistakes(self) -> list[str]:
        """What was asked for and seen instead, one line each."""
        pairs = zip(self.names, self.prompts, strict=True)
        return [f"{prompt.text}: {name}" for name, prompt in pairs if name != prompt.name]


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The pipeline of a folder on the CPU, quiet."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    texts: list[str],
    seed: int = SEED,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """One picture per text; the n-th is drawn from seed + n, whatever is drawn beside it."""
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(texts))]
    images: list[Image.Image] = []
    for start in range(0, len(texts), 8):
        part = slice(start, start + 8)
        images += pipeline(
            texts[part], num_inference_steps=steps, guidance_scale=guidance, generator=generators[part]
        ).images
    return images


def draw_sheet(
    pipeline: StableDiffusionPipeline, judge: Judge, prompts: tuple[Prompt, ...], seed: int = SEED
) -> Sheet:
    """Draw the prompts and have them named."""
    images = draw(pipeline, [prompt.text for prompt in prompts], seed)
    return Sheet(prompts, images, judge.names(images))


def lay_out(sheet: Sheet) -> Image.Image:
    """All pictures in rows, each above what was asked for; what the judge saw instead is in red."""
    cell = sheet.images[0].width
    rows = -(-len(sheet.images) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * cell, rows * (cell + CAPTION_HEIGHT)), "white")
    pen = ImageDraw.Draw(page)
    for number, (image, prompt, name) in enumerate(
        zip(sheet.images, sheet.prompts, sheet.names, strict=True)
    ):
        left, top = number % COLUMNS * cell, number // COLUMNS * (cell + CAPTION_HEIGHT)
        page.paste(image, (left, top))
        pen.text((left + 3, top + cell), prompt.name, fill="black")
        if name != prompt.name:
            pen.text((left + 3, top + cell + 12), name, fill="red")
    return page
