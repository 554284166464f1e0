"""compare.png: what each method draws, a row for each, a column for each prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .. import files
from .course import Outcome

CELL, MARGIN, NAMES, HEAD, LETTERS = 128, 6, 190, 54, 11


def save(root: Path, runs: Path, outcome: Outcome) -> None:
    """Lay out the pictures of the base model and of each contestant's first run."""
    rows = [("The base model alone", root / "judged")]
    rows += [
        (score.title, runs / score.completed[0].folder / "judged")
        for score in outcome.scores
        if score.completed
    ]
    page = lay_out(rows, outcome.prompts)
    files.write(root / "compare.png", lambda part: page.save(part, format="PNG"))


def lay_out(rows: Sequence[tuple[str, Path]], prompts: Sequence[str]) -> Image.Image:
    """One row of pictures (00.png, 01.png ...) for each name and folder; a missing one stays blank."""
    width = NAMES + len(prompts) * (CELL + MARGIN) + MARGIN
    page = Image.new("RGB", (width, HEAD + len(rows) * (CELL + MARGIN) + MARGIN), "white")
    pen, letters = ImageDraw.Draw(page), ImageFont.load_default(LETTERS)
    for column, prompt in enumerate(prompts):
        text = textwrap.fill(prompt, 20)
        pen.multiline_text((_left(column), MARGIN), text, fill="black", font=letters, spacing=1)
    for row, (name, folder) in enumerate(rows):
        top = HEAD + row * (CELL + MARGIN)
        pen.multiline_text((MARGIN, top), textwrap.fill(name, 30), fill="black", font=letters)
        for column in range(len(prompts)):
            path = folder / f"{column:02d}.png"
            if path.exists():
                page.paste(Image.open(path).resize((CELL, CELL)), (_left(column), top))
    return page


def _left(column: int) -> int:
    return NAMES + column * (CELL + MARGIN)
