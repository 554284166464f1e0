"""What a base model's layers are called in adapter files: a prefix for each part and, for the denoiser of
SDXL, the names of the original model in place of diffusers'.

Source of the names: networks/lora.py in kohya-ss/sd-scripts, which trains SD1 and SD2 under diffusers' names
and SDXL under those of Stability-AI/generative-models; for SD3 the key map of ComfyUI 0.3.64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..seams import DENOISER, Facts
from . import ldm
from .kohya import SD3_PREFIXES, SD_PREFIXES, SDXL_PREFIXES, module_name, with_text_model

UNET, TRANSFORMER = "unet", "transformer"
"""What files call the denoiser."""


@dataclass(frozen=True)
class Naming:
    """`prefixes` by the file's word for a part. `original` are the names in the original layout of the UNet's
    layers by those of diffusers; empty where adapter files have diffusers' names. `inside` are the same names
    wherever there is a UNet, and `clips` the text encoders' as ComfyUI has them in its own files. `joint` is
    the config of a transformer, whose layers in the original layout are others than diffusers'.
    """

    prefixes: Mapping[str, str]
    original: Mapping[str, str] = field(default_factory=dict)
    inside: Mapping[str, str] = field(default_factory=dict)
    clips: Mapping[str, str] = field(default_factory=dict)
    joint: Mapping[str, Any] = field(default_factory=dict)

    def path(self, part: str, path: str) -> str:
        """Return a module path as the file has it, with dots: input_blocks.4.1.proj_in."""
        known = ldm.beginning(path, self.original) if part == UNET else ""
        return self.original[known] + path[len(known) :] if known else path

    def name(self, part: str, path: str) -> str:
        """Return the name of a module in the file: lora_unet_input_blocks_4_1_proj_in."""
        return module_name(part, self.path(part, path), self.prefixes[part])

    def comfyui(self, part: str, path: str) -> str:
        """Return what a file that ComfyUI saves calls a module: the whole path in the model's own file.

        Of a transformer diffusers' names, for in its file query, key and value are one.
        """
        if part in self.clips:
            return f"text_encoders.{self.clips[part]}.transformer.{with_text_model(path)}"
        known = ldm.beginning(path, self.inside) if part == UNET else ""
        return f"diffusion_model.{self.inside[known]}{path[len(known) :]}" if known else f"{part}.{path}"


SD_NAMING = Naming(SD_PREFIXES)
SD3_NAMING = Naming(SD3_PREFIXES)


def part_name(part: str, facts: Facts) -> str:
    """Return what files for this base model call a part."""
    if part != DENOISER:
        return part
    return TRANSFORMER if facts.family == "sd3" else UNET


def naming_of(facts: Facts) -> Naming:
    """Return how adapter files for this base model name its layers."""
    if facts.family == "sd3":
        return replace(SD3_NAMING, clips=_TWO_CLIPS, joint=facts.config[DENOISER])
    if facts.family == "sdxl":
        names = ldm.names_of(DENOISER, facts.config[DENOISER], "both")
        return Naming(SDXL_PREFIXES, names, names, _TWO_CLIPS)
    is_two = ldm.text_layout(facts.text_width) == "openclip"
    clip = "clip_h" if is_two else "clip_l"
    inside = ldm.names_of(DENOISER, facts.config[DENOISER], "clip")
    return replace(SD_NAMING, inside=inside, clips={ldm.ENCODER: clip})


_TWO_CLIPS = {ldm.ENCODER: "clip_l", ldm.ENCODER_2: "clip_g"}
