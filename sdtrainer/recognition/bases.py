"""The base models that are known by name, and the tensors that tell each from the others.

A signature is a row of marks: names that must be there, some with a size. Names are those inside the
denoiser, in the original layout or in diffusers', and those of the text encoders beside it. The first row
that fits counts. Source of names and sizes: the published files of Stability AI and Black Forest Labs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Base:
    """`family` is the word in families.FAMILIES, "" where there is none. `text_width` is how wide the text is
    that the denoiser reads. `parts` are what a whole model has, by the beginning of their names.
    """

    title: str
    family: str
    text_width: int
    parts: Mapping[str, str]
    is_flow: bool = False


DENOISER_PREFIX = "model.diffusion_model."
_UNET_AND_VAE = {"denoiser": DENOISER_PREFIX, "VAE": "first_stage_model."}
_ONE = _UNET_AND_VAE | {"text encoder": "cond_stage_model."}
_REFINER = _UNET_AND_VAE | {"text encoder": "conditioner.embedders.0."}
_TWO = _REFINER | {"text encoder 2": "conditioner.embedders.1."}
_THREE = _UNET_AND_VAE | {"text encoder": "text_encoders.clip_l.", "text encoder 2": "text_encoders.clip_g."}

BASES: Mapping[str, Base] = {
    "SD1": Base("Stable Diffusion 1", "sd", 768, _ONE),
    "SD2": Base("Stable Diffusion 2", "sd", 1024, _ONE),
    "SD2 unCLIP": Base("Stable Diffusion 2 unCLIP", "", 1024, _ONE),
    "SDXL": Base("Stable Diffusion XL", "sdxl", 2048, _TWO),
    "SDXL refiner": Base("the refiner of Stable Diffusion XL", "", 1280, _REFINER),
    "SD3": Base("Stable Diffusion 3 Medium", "sd3", 4096, _THREE, is_flow=True),
    "SD3.5 medium": Base("Stable Diffusion 3.5 Medium", "sd3", 4096, _THREE, is_flow=True),
    "SD3.5 large": Base("Stable Diffusion 3.5 Large", "sd3", 4096, _THREE, is_flow=True),
    "Flux": Base("Flux", "", 4096, _UNET_AND_VAE, is_flow=True),
    "Cascade": Base("Stable Cascade", "", 1280, _UNET_AND_VAE),
    "PixArt": Base("PixArt", "", 4096, _UNET_AND_VAE),
    "AuraFlow": Base("AuraFlow", "", 2048, _UNET_AND_VAE, is_flow=True),
    "Hunyuan-DiT": Base("Hunyuan-DiT", "", 1024, _UNET_AND_VAE),
}
AUTO = "auto"
STATED: Mapping[str, tuple[str, ...]] = {
    "sd1": ("SD1",),
    "sd2": ("SD2",),
    "sdxl": ("SDXL",),
    "sd3": ("SD3", "SD3.5 medium", "SD3.5 large"),
}
"""What a user may say that a model is, and the rows of BASES that this means."""


class Mark(NamedTuple):
    """A tensor of this name, or with a dot at its end any below it; with `size`, its shape at `axis`."""

    name: str
    axis: int = 0
    size: int = 0

    def is_on(self, shapes: Shapes) -> bool:
        if self.name.endswith("."):
            return any(name.startswith(self.name) for name in shapes)
        shape = shapes.get(self.name)
        return shape is not None and (not self.size or shape[self.axis : self.axis + 1] == (self.size,))


_K = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
_K_DIFFUSERS = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
_JOINT, _JOINT_DIFFUSERS = "joint_blocks.0.x_block.", "transformer_blocks.0."
SIGNATURES: tuple[tuple[str, str, tuple[Mark, ...]], ...] = (
    # base, how it is told, marks
    ("Flux", "its double blocks", (Mark("double_blocks.0.img_attn.qkv.weight"),)),
    ("Flux", "its single blocks", (Mark("single_transformer_blocks.0."),)),
    ("Cascade", "its tensor clf.1.weight", (Mark("clf.1.weight"),)),
    ("PixArt", "its tensor t_block.1.weight", (Mark("t_block.1.weight"),)),
    ("AuraFlow", "its tensor cond_seq_linear.weight", (Mark("cond_seq_linear.weight"),)),
    ("Hunyuan-DiT", "its tensor mlp_t5.0.weight", (Mark("mlp_t5.0.weight"),)),
    (
        "SD3.5 large",
        "joint blocks of width 2432",
        (Mark(f"{_JOINT}attn.ln_q.weight"), Mark("x_embedder.proj.weight", 0, 2432)),
    ),
    ("SD3.5 medium", "joint blocks with a second attention", (Mark(f"{_JOINT}attn2.qkv.weight"),)),
    ("SD3", "its joint blocks", (Mark(f"{_JOINT}attn.qkv.weight"),)),
    (
        "SD3.5 large",
        "joint blocks of width 2432",
        (Mark(f"{_JOINT_DIFFUSERS}attn.norm_q.weight"), Mark("pos_embed.proj.weight", 0, 2432)),
    ),
    (
        "SD3.5 medium",
        "joint blocks with a second attention",
        (Mark(f"{_JOINT_DIFFUSERS}attn.add_q_proj.weight"), Mark(f"{_JOINT_DIFFUSERS}attn2.to_q.weight")),
    ),
    ("SD3", "its joint blocks", (Mark(f"{_JOINT_DIFFUSERS}attn.add_q_proj.weight"),)),
    ("SDXL refiner", "its one text encoder, OpenCLIP's", (Mark("conditioner.embedders.0.model."),)),
    ("SDXL", "its two text encoders", (Mark("conditioner.embedders.1.model."),)),
    ("SD2 unCLIP", "its place for a picture's meaning", (Mark("cond_stage_model."), Mark("label_emb."))),
    ("SD2", "its text encoder, OpenCLIP's", (Mark("cond_stage_model.model."),)),
    ("SD1", "its text encoder, CLIP's", (Mark("cond_stage_model.transformer."),)),
    *(
        (base, f"a text {BASES[base].text_width} wide", (Mark(name, 1, BASES[base].text_width),))
        for base in ("SDXL refiner", "SDXL", "SD2", "SD1")
        for name in (_K, _K_DIFFUSERS)
    ),
)

_FIRST = ("input_blocks.0.0.weight", "conv_in.weight")
VARIANTS: Mapping[int, str] = {9: "inpainting", 8: "editing by instruction", 5: "depth", 7: "upscaling"}
"""By the number of channels that the denoiser reads; those of a plain one are 4, or 16 in SD3."""
PRUNED, EDM = "pruned", "EDM"
_WORDS = {
    PRUNED: "with layers taken out, as in SSD-1B and Vega",
    EDM: "with another kind of noise (EDM), as in Playground v2.5 and CosXL",
}
EDM_MARKS = ("edm_mean", "edm_vpred.sigma_max")
"""Tensors beside the model by which programs know those."""
_MIDDLE = ("middle_block.", "mid_block.")
_MIDDLE_TEXT = ("middle_block.1.", "mid_block.attentions.")
"""What reads the text in the middle of a UNet; pruned ones lack it. Source of both: ComfyUI,
supported_models.py, SDXL.model_type and SSD1B."""


def base_of(shapes: Shapes) -> tuple[str, str]:
    """Return the name of the base model and how it is told, or two empty texts."""
    return next(
        ((base, why) for base, why, marks in SIGNATURES if all(mark.is_on(shapes) for mark in marks)),
        ("", ""),
    )


def variant_of(base: str, shapes: Shapes) -> str:
    """Return in which way a model differs from a plain one of its base, or an empty text."""
    channels = next((shapes[name][1] for name in _FIRST if len(shapes.get(name, ())) == 4), 4)
    if channels in VARIANTS:
        return VARIANTS[channels]
    if base == "SDXL" and any(mark in shapes for mark in EDM_MARKS):
        return EDM
    has_middle, reads_text = (
        any(Mark(name).is_on(shapes) for name in names) for names in (_MIDDLE, _MIDDLE_TEXT)
    )
    return PRUNED if base in ("SD1", "SD2", "SDXL") and has_middle and not reads_text else ""


def stated(base: str) -> str:
    """Return the word of STATED for a base model; '' if there is none."""
    return next((word for word, rows in STATED.items() if base in rows), "")


def titled(base: str, variant: str) -> str:
    """Return what such a model is called."""
    words = _WORDS.get(variant, f"for {variant}")
    return f"{BASES[base].title}, {words}" if variant else BASES[base].title
