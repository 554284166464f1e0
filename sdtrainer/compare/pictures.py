"""Pictures that a comparison needs and makes itself, once: other things, and the same in another style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from .. import files, verdict
from ..families import BaseSection
from ..result import sampler
from ..starter.prompts import Prompt

FIRST_SEED = 1001
"""Far from the seeds of the pictures that the judge names."""
BROWN = ("#2b1700", "#a9743b", "#fff3d6")
"""What black, middle grey and white become in a brown picture."""
BROWNNESS = 0.4
"""Of the brown picture in the mixture; at 0.7 the judge no longer knows most things."""


def draw_others(folder: Path, prompts: Sequence[Prompt], base: str) -> None:
    """Draw other things with a base model; each picture's prompt is its caption. Nothing if it is done."""
    if folder.exists():
        return
    texts = [prompt.text for prompt in prompts]
    images = verdict.draw(texts, sampler(BaseSection(path=base)), first_seed=FIRST_SEED)
    _save(folder, images, texts)


def restyle(source: Path, folder: Path) -> None:
    """Turn pictures halfway to old photographs, captions unchanged. Nothing if it is done."""
    if folder.exists():
        return
    paths = sorted(source.glob("*.png"))
    images = [browned(Image.open(path).convert("RGB")) for path in paths]
    _save(folder, images, [path.with_suffix(".txt").read_text(encoding="utf-8") for path in paths])


def browned(image: Image.Image) -> Image.Image:
    """Mix a picture with its brown self."""
    black, mid, white = BROWN
    brown = ImageOps.colorize(ImageOps.grayscale(image), black, white, mid)
    return Image.blend(image, brown, BROWNNESS)


def _save(folder: Path, images: Sequence[Image.Image], captions: Sequence[str]) -> None:
    with files.new_folder(folder) as new:
        for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
            image.save(new / f"{number:02d}.png")
            (new / f"{number:02d}.txt").write_text(caption, encoding="utf-8")
