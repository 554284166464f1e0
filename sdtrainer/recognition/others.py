"""Everything else that hobbyists keep beside their models: a table of what tells each."""

from __future__ import annotations

from ..formats import embedding, hypernetwork
from .bases import BASES, Mark
from .contents import Contents
from .found import Found, Kind
from .models import parts_of

_TABLE: tuple[tuple[Kind, str, tuple[Mark, ...]], ...] = (
    ("controlnet", "a Control LoRA", (Mark("lora_controlnet"),)),
    ("controlnet", "a ControlNet", (Mark("control_model.input_hint_block.0.weight"),)),
    ("controlnet", "a ControlNet", (Mark("input_hint_block.0.weight"),)),
    ("controlnet", "a ControlNet", (Mark("controlnet_cond_embedding.conv_in.weight"),)),
    ("controlnet", "a ControlNet", (Mark("controlnet_blocks.0.weight"),)),
    ("controlnet", "a T2I adapter", (Mark("body.0.in_conv.weight"),)),
    ("controlnet", "a T2I adapter", (Mark("adapter.body.0.resnets.0.block1.weight"),)),
    ("controlnet", "a T2I adapter", (Mark("body.0.block1.weight"),)),
    ("other", "an IP adapter", (Mark("ip_adapter."),)),
    ("other", "an IP adapter", (Mark("ip_adapter.1.to_k_ip.weight"),)),
    ("other", "a motion module", (Mark("down_blocks.0.motion_modules."),)),
    ("other", "an upscaler", (Mark("conv_first.weight"), Mark("conv_last.weight"))),
    ("other", "an upscaler", (Mark("model.0.weight"), Mark("model.1.sub."))),
    ("other", "an upscaler", (Mark("RRDB_trunk."),)),
    ("other", "an upscaler", (Mark("layers.0.residual_group."),)),
    ("other", "a picture encoder of CLIP", (Mark("vision_model."),)),
)
"""Looked at before whole models, whose names some of these have too."""

_PIECES: tuple[tuple[Kind, str, tuple[Mark, ...]], ...] = (
    ("vae", "a VAE", (Mark("first_stage_model."),)),
    ("vae", "a VAE", (Mark("encoder.down.0.block.0.conv1.weight"),)),
    ("vae", "a VAE", (Mark("encoder.down_blocks.0."),)),
    ("vae", "a small VAE for previews", (Mark("decoder.layers.0.weight"),)),
    ("vae", "a small VAE for previews", (Mark("1.weight"), Mark("3.conv.0.weight"))),
    ("text encoder", "a T5 text encoder", (Mark("encoder.block.0.layer.0.SelfAttention.q.weight"),)),
    ("text encoder", "a CLIP text encoder", (Mark("text_model.encoder."),)),
    ("text encoder", "a CLIP text encoder", (Mark("transformer.text_model.encoder."),)),
    ("text encoder", "a CLIP text encoder", (Mark("transformer.resblocks."),)),
    ("text encoder", "a CLIP text encoder", (Mark("cond_stage_model."),)),
    ("text encoder", "text encoders", (Mark("conditioner.embedders."),)),
    ("text encoder", "text encoders", (Mark("text_encoders."),)),
)
"""Pieces of a model, looked at after whole ones."""

_EMBEDDING_BASES = {768: "SD1", 1024: "SD2"}
_MOST_VECTORS = 1000


def look_before_models(contents: Contents) -> Found | None:
    """Return what has names of a model beside its own, or None."""
    return _of(_TABLE, contents)


def look_after_models(contents: Contents) -> Found | None:
    """Return which piece of a model this is, or a few tensors of another kind, or None."""
    return _of(_PIECES, contents) or _embedding(contents) or _hypernetwork(contents)


def _of(table: tuple[tuple[Kind, str, tuple[Mark, ...]], ...], contents: Contents) -> Found | None:
    shapes = contents.shapes
    for kind, title, marks in table:
        if all(mark.is_on(shapes) for mark in marks):
            why = f"its tensor {marks[0].name.rstrip('.')}"
            return Found(kind, title, why, parts=parts_of(contents.tensors, {kind: ""}))
    return None


def _embedding(contents: Contents) -> Found | None:
    params = contents.plain.get("string_to_param")
    if isinstance(params, dict):
        shapes = {str(name): tuple(value.shape) for name, value in params.items()}
    else:
        shapes = contents.shapes
    names = embedding.vectors_in(shapes)
    sizes = [(1, *shapes[name])[-2:] for name in names]  # one vector may be stored without its first axis
    if not names or max(count for count, _ in sizes) > _MOST_VECTORS:
        return None
    base = _EMBEDDING_BASES.get(sizes[0][1], "") if len(sizes) == 1 else ("", "", "SDXL", "SD3")[len(sizes)]
    count = sizes[0][0]
    words = f"an embedding of {count} vector{'s' if count != 1 else ''}"
    widths = " and ".join(str(width) for _, width in sizes)
    return Found(
        "embedding",
        f"{words} for {BASES[base].title}" if base else words,
        f"vectors {widths} wide",
        base=base,
        parts=parts_of(contents.tensors, {"embedding": ""}),
    )


def _hypernetwork(contents: Contents) -> Found | None:
    widths = sorted(hypernetwork.networks_in(contents.plain))
    if not widths:
        return None
    base = next((_EMBEDDING_BASES[width] for width in widths if width in _EMBEDDING_BASES), "")
    of = f" for {BASES[base].title}" if base else ""
    said = ", ".join(str(width) for width in widths)
    return Found("hypernetwork", f"a hypernetwork{of}", f"networks for widths {said}", base=base)
