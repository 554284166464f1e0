"""A mask painted by hand: what is painted is learnt, the rest counts less."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image

from ...data.images import BadImage, open_mask
from ...masking import keep
from ...section import UserError
from ..desk import Desk
from ..listen import Given
from ..thumbnails import LARGE, thumbnail
from ..words import tag

if TYPE_CHECKING:
    from ...data.census import Sample
    from .crops import Crops, Now

TEAL, SEE_THROUGH = (20, 184, 166), 0.6
"""Paint is see-through, so that the picture stays visible."""
HOW = "Paint over what shall be learnt. The rest counts as little as 'Weight outside the mask' says."


class Painting:
    """Opens on request, for the chosen picture. A saved mask comes before any mask in the folder."""

    def __init__(self, desk: Desk, crops: Crops) -> None:
        self.desk, self.crops = desk, crops

    def build(self) -> None:
        with gr.Accordion("Paint a mask", open=False) as self.fold:
            gr.HTML(tag("p", HOW, "quiet"))
            self.canvas = gr.ImageEditor(
                type="pil", image_mode="RGBA", sources=(), transforms=(), show_label=False, height=480,
                brush=gr.Brush(48, [(f"rgb{TEAL}", SEE_THROUGH)], color_mode="fixed"),
                eraser=gr.Eraser(48), layers=gr.LayerOptions(allow_additional_layers=False),
                label="Mask", elem_id="mask-canvas", buttons=["fullscreen"],
            )  # fmt: skip
            with gr.Row(elem_classes="controls"):
                self.save = gr.Button("Save mask", variant="primary", size="sm", elem_id="mask-save")
                self.invert = gr.Button("Swap inside and outside", size="sm", elem_id="mask-invert")
                self.clear = gr.Button("Remove mask", size="sm", elem_id="mask-clear")

    def wire(self, refresh: Any) -> None:
        on, crops = self.desk.on, self.crops
        shows = [*crops.shows, self.canvas]
        on(self.fold.expand, self._show, {crops.chosen}, [self.canvas])
        on(self.fold.collapse, lambda given: {self.canvas: None}, (), [self.canvas])
        on(crops.chosen.change, self._follow, {crops.chosen, self.canvas}, [self.canvas])
        refresh(on(self.save.click, self._save, {crops.chosen, self.canvas}, shows))
        refresh(on(self.invert.click, self._invert, {crops.chosen, self.canvas}, shows))
        refresh(on(self.clear.click, self._clear, {crops.chosen}, shows))

    def _show(self, given: Given) -> dict[Any, Any]:
        """Put the picture on the canvas, its mask painted over it."""
        return self._canvas(self.crops.now(given).sample)

    def _canvas(self, sample: Sample) -> dict[Any, Any]:
        with Image.open(thumbnail(self.desk.workspace, sample.file, LARGE)) as copy:
            ground = copy.convert("RGBA")
        mask = Image.new("L", ground.size, 0)
        if sample.mask:
            try:
                mask = open_mask(sample.mask, sample.mask == sample.file).resize(ground.size)
            except BadImage:
                gr.Warning("The mask of this picture cannot be read; you begin with an empty one.")
        return {self.canvas: {"background": ground, "layers": [painted(mask)], "composite": None}}

    def _follow(self, given: Given) -> dict[Any, Any]:
        """Another picture was chosen: it comes onto the canvas if that is open."""
        return self._show(given) if _has_picture(given[self.canvas]) else {}

    def _save(self, given: Given) -> dict[Any, Any]:
        now = self.crops.now(given)
        return self.crops.changed(now, _kept(now, mask_of(self._drawn(given))))

    def _invert(self, given: Given) -> dict[Any, Any]:
        now, mask = self.crops.now(given), mask_of(self._drawn(given))
        sample = _kept(now, mask.point(lambda grey: 255 - grey))
        return self.crops.changed(now, sample) | self._canvas(sample)

    def _clear(self, given: Given) -> dict[Any, Any]:
        """Forget the mask made here; one in the user's folder counts again, and is found by looking."""
        now = self.crops.now(given)
        now.overlay.lay("masks", {now.sample.path: None})
        sample = replace(now.sample, mask=None)
        return self.crops.changed(now, sample) | self._canvas(sample)

    def _drawn(self, given: Given) -> list[Image.Image]:
        value = given[self.canvas]
        if not _has_picture(value):
            raise UserError("There is no picture to paint on.", "Close and open 'Paint a mask'.")
        return value["layers"]


def _kept(now: Now, mask: Image.Image) -> Sample:
    """Keep a mask for the chosen picture; return the picture with it."""
    if not mask.getbbox():
        raise UserError("Nothing is painted.", "Paint over what shall be learnt, or remove the mask.")
    sample = now.sample
    whole = sample.crop.whole if sample.crop else (sample.width, sample.height)
    name = keep(now.overlay, fitted(mask, whole))
    now.overlay.lay("masks", {sample.path: name})
    gr.Info("The mask is saved.", duration=3)
    return replace(sample, mask=now.overlay.masks / name)


def painted(mask: Image.Image) -> Image.Image:
    """Return a mask as see-through paint."""
    paint = Image.new("RGBA", mask.size, (*TEAL, 0))
    paint.putalpha(mask.convert("L").point(lambda grey: round(grey * SEE_THROUGH)))
    return paint


def mask_of(layers: list[Image.Image]) -> Image.Image:
    """Return what is painted as a mask, in grey: full paint is white, twice painted no whiter."""
    alphas = [np.asarray(layer.convert("RGBA").getchannel("A"), np.float32) for layer in layers]
    if not alphas:
        return Image.new("L", (1, 1), 0)
    grey = np.max(alphas, axis=0) / SEE_THROUGH
    return Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))


def fitted(mask: Image.Image, whole: tuple[int, int]) -> Image.Image:
    """Return the mask in its picture's proportions, no larger than it was painted."""
    scale = min(1.0, max(mask.size) / max(whole))
    size = (max(1, round(whole[0] * scale)), max(1, round(whole[1] * scale)))
    return mask.resize(size, Image.Resampling.BILINEAR)


def _has_picture(value: Any) -> bool:
    return isinstance(value, dict) and value.get("background") is not None
