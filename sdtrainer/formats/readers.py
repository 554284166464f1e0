"""Which program reads which of our files, and how: one table, shown to the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Program = Literal["A1111 / Forge", "ComfyUI", "diffusers"]
Layout = Literal["webui", "diffusers"]


@dataclass(frozen=True)
class Reader:
    """`how` is a sentence for the user; `tried` says with which version the claim was tried, or is empty."""

    method: str
    family: str
    layout: Layout
    program: Program
    reads: Literal["yes", "no", "converted"]
    how: str
    tried: str = ""


READERS: tuple[Reader, ...] = (
    Reader(
        "lora", "sd", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Lora and write <lora:name:1> into the prompt.",
        "its own loaders, 1.8.0",
    ),
    Reader(
        "lora", "sd", "webui", "ComfyUI", "yes",
        "Put the file into models/loras and add a Load LoRA node.",
        "its key map, 0.3.64",
    ),
    Reader(
        "lora", "sd", "webui", "diffusers", "yes",
        'Call pipeline.load_lora_weights("name.safetensors").',
        "its own loader, 0.42.1",
    ),
    Reader(
        "lora", "sd", "diffusers", "A1111 / Forge", "no",
        "Export the webui file for this program.",
    ),
    Reader(
        "lora", "sd", "diffusers", "ComfyUI", "no",
        "It would leave out the attention layers: export the webui file for this program.",
        "its key map, 0.3.64",
    ),
    Reader(
        "lora", "sd", "diffusers", "diffusers", "yes",
        'Call pipeline.load_lora_weights("name-diffusers.safetensors").',
        "its own loader, 0.42.1",
    ),
)  # fmt: skip


def readers_of(method: str, family: str, layout: Layout) -> tuple[Reader, ...]:
    """Return what each program does with a file of this kind."""
    return tuple(r for r in READERS if (r.method, r.family, r.layout) == (method, family, layout))
