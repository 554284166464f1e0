"""One picture with the window that the model sees of it, and that window alone. Pure HTML."""

from __future__ import annotations

from collections.abc import Sequence

from ...data.buckets import Fit, Size
from ...data.census import Sample
from ...data.items import VISIBLE_ENLARGEMENT
from .. import words
from ..words import tag

POINTING = """
const within = part => Math.min(1, Math.max(0, part));
const at = (stage, event) => {
  const box = stage.getBoundingClientRect();
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
};
element.addEventListener('pointerdown', down => {
  const stage = down.target.closest('.stage');
  if (!stage || down.button) return;
  down.preventDefault();
  const from = at(stage, down);
  let band = null, to = from;
  const edges = () => [0, 1].map(axis => [Math.min(from[axis], to[axis]), Math.max(from[axis], to[axis])]);
  const move = event => {
    to = at(stage, event);
    const [[left, right], [top, bottom]] = edges();
    if (!band && Math.max(right - left, bottom - top) < 0.03) return;
    if (!band) { band = document.createElement('div'); band.className = 'band'; stage.append(band); }
    band.style.inset = `${100 * top}% ${100 - 100 * right}% ${100 - 100 * bottom}% ${100 * left}%`;
  };
  const end = event => {
    stage.removeEventListener('pointermove', move);
    stage.removeEventListener('pointerup', end);
    stage.removeEventListener('pointercancel', end);
    if (event.type === 'pointercancel') { band?.remove(); return; }
    const [[left, right], [top, bottom]] = edges();
    if (band && Math.min(right - left, bottom - top) < 0.02) { band.remove(); return; }
    trigger('click', band ? {act: 'crop', box: [left, top, right, bottom]} : {act: 'focus', point: from});
  };
  stage.setPointerCapture(down.pointerId);
  stage.addEventListener('pointermove', move);
  stage.addEventListener('pointerup', end);
  stage.addEventListener('pointercancel', end);
});"""
"""A click on the picture reports a focus point, a drag a crop: fractions of the picture."""


def stage(sample: Sample, fit: Fit, picture: str, mask: str = "") -> str:
    """Return the picture with its crop, its window and its focus point; `picture` and `mask` are files that
    the page serves.
    """
    inner = words.picture(picture, f"{sample.path}, whole")
    if mask:
        inner += _masking(mask)
    if sample.crop:
        inner += tag("div", "", "cropped", style=_inset(sample.crop.box, fit.whole))
    inner += tag("div", "", "window", style=_inset(fit.seen, fit.whole))
    if sample.focus:
        x, y = (f"{100 * part:.2f}%" for part in sample.focus)
        inner += tag("div", "", "focus", style=f"left:{x};top:{y}")
    width, height = fit.whole
    return tag("div", inner, "stage", style=_shape((width, height), 70))


def window(sample: Sample, fit: Fit, picture: str, mask: str = "") -> str:
    """Return what the model sees of the picture, and nothing else."""
    left, top, right, bottom = fit.seen
    width, height = fit.whole
    wide, high = 100 * width / (right - left), 100 * height / (bottom - top)
    place = f"width:{wide:.3f}%;height:{high:.3f}%;left:{-wide * left / width:.3f}%"
    place += f";top:{-high * top / height:.3f}%"
    inner = words.picture(picture, f"{sample.path}, as the model sees it")
    inner = tag("div", inner + (_masking(mask) if mask else ""), "whole", style=place)
    return tag("div", inner, "seen", style=_shape(fit.size, 40))


def facts(sample: Sample, fits: Sequence[tuple[int, Fit]]) -> str:
    """Say what becomes of the picture at each resolution."""
    width, height = fits[0][1].whole
    lines = [f"The picture is {by((width, height))} px."]
    if sample.crop:
        lines.append(f"Your crop is {by(sample.crop.size)} px.")
    for resolution, fit in fits:
        lines.append(f"At {resolution} px the model sees {by(fit.size)} px{_fate(fit)}.")
    rest = tag("p", words.safe(" ".join(lines)), "quiet")
    return tag("h3", words.safe(sample.path)) + rest


def by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _fate(fit: Fit) -> str:
    fate = []
    if fit.part_lost >= 0.005:
        fate.append(f"{100 * fit.part_lost:.0f}% is cut off")
    if fit.enlargement > 1.005:
        soft = ", which looks soft" if fit.enlargement > VISIBLE_ENLARGEMENT else ""
        fate.append(f"it is enlarged {fit.enlargement:.1f} times{soft}")
    return ": " + " and ".join(fate) if fate else ", all of it"


def _shape(size: Size, height: int) -> str:
    """As wide as there is room, and at most so high, in parts of a hundred of the window."""
    width = height * size[0] / size[1]
    return f"aspect-ratio:{size[0]}/{size[1]};width:min(100%,{width:.1f}vh)"


def _inset(box: Sequence[float], whole: Size) -> str:
    left, top, right, bottom = box
    parts = (top / whole[1], 1 - right / whole[0], 1 - bottom / whole[1], left / whole[0])
    return "inset:" + " ".join(f"{100 * part:.3f}%" for part in parts)


def _masking(mask: str) -> str:
    image = tag("img", "", "mask", src=f"gradio_api/file={mask}", alt="", loading="lazy")
    return image.removesuffix("</img>")
