"""The text inside a PNG by which A1111, and programs that follow it, know how a picture was drawn.

It is the chunk `parameters`: the prompt with its adapters as <lora:name:strength>, a line `Negative prompt:`,
and a line of `Name: value` pairs with commas between them; a value that holds a comma, a colon or a line
break is quoted as JSON. Source of the words: modules/infotext_utils.py of AUTOMATIC1111.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = "parameters"
NEGATIVE = "Negative prompt: "
_PAIR = re.compile(r'\s*([\w+ /\-]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_ADAPTER = re.compile(r"<(lora|hypernet):([^:<>]+):(-?[\d.]+)>")
_LEAST_PAIRS = 3
"""A last line with fewer is part of the prompt."""


@dataclass(frozen=True)
class Named:
    """An adapter in a prompt: `kind` is A1111's word, lora or hypernet."""

    name: str
    strength: float
    kind: str = "lora"


@dataclass(frozen=True)
class Drawn:
    """How a picture was drawn. Sizes in pixels. `more` are further pairs by name."""

    prompt: str
    negative: str
    adapters: tuple[Named, ...]
    model: str
    sampler: str
    steps: int
    guidance: float
    seed: int
    width: int
    height: int
    clip_skip: int = 0
    more: Mapping[str, str] = field(default_factory=dict)


def written(drawn: Drawn) -> str:
    """Return the text of the chunk. There CLIP skip counts from 1."""
    calls = [f"<{a.kind}:{a.name}:{a.strength:g}>" for a in drawn.adapters]
    pairs = {
        "Steps": str(drawn.steps),
        "Sampler": drawn.sampler,
        "CFG scale": f"{drawn.guidance:g}",
        "Seed": str(drawn.seed),
        "Size": f"{drawn.width}x{drawn.height}",
        "Model": drawn.model,
        **({"Clip skip": str(drawn.clip_skip + 1)} if drawn.clip_skip else {}),
        **drawn.more,
    }
    lines = [" ".join([drawn.prompt, *calls])]
    if drawn.negative:
        lines.append(NEGATIVE + drawn.negative)
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items()))
    return "\n".join(lines)


def read(text: str) -> Drawn | None:
    """Return what a text of ours or of another program says, or None if it is no such text."""
    *lines, last = text.strip().split("\n")
    pairs = {name.strip(): _plain(value) for name, value in _PAIR.findall(last)}
    if len(pairs) < _LEAST_PAIRS or "Steps" not in pairs:
        return None
    prompt, _, negative = "\n".join(lines).partition(f"\n{NEGATIVE.rstrip()}")
    if prompt.startswith(NEGATIVE.rstrip()):
        prompt, negative = "", prompt[len(NEGATIVE.rstrip()) :]
    adapters = tuple(Named(name, float(strength), kind) for kind, name, strength in _ADAPTER.findall(prompt))
    width, _, height = pairs.pop("Size", "0x0").partition("x")
    try:
        return Drawn(
            prompt=_ADAPTER.sub("", prompt).strip(),
            negative=negative.strip(),
            adapters=adapters,
            model=pairs.pop("Model", ""),
            sampler=pairs.pop("Sampler", ""),
            steps=int(pairs.pop("Steps")),
            guidance=float(pairs.pop("CFG scale", "0")),
            seed=int(pairs.pop("Seed", "0")),
            width=int(width),
            height=int(height),
            clip_skip=int(pairs.pop("Clip skip", "1")) - 1,
            more=pairs,
        )
    except ValueError:
        return None


def text_in(picture: Path) -> str:
    """Return the text that a picture file carries, or nothing."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            return str(image.info.get(CHUNK, ""))
    except OSError:
        return ""


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _plain(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
