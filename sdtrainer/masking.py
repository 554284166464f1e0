"""Masks made by a model: what the given words name is white. The chore `mask`.

CLIPSeg (Lüddecke and Ecker 2022, https://arxiv.org/abs/2112.10003) gives the certainty of each place that the
words are meant, at 352 x 352. Masks are kept in the workspace; pictures that have one are left alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import files, hub
from .data.images import BadImage, open_rgb
from .data.overlay import Overlay, overlay_for
from .data.scan import scan
from .data.section import DataSection
from .events import Event, PhaseBegan, Progress, Said
from .hardware import detect
from .section import Section, UserError, knob
from .workspace import Workspace

if TYPE_CHECKING:
    import torch
    from PIL import Image

CLIPSEG = "CIDAS/clipseg-rd64-refined"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""As CLIPSeg was trained: ImageNet's (its preprocessor_config.json)."""


class Settings(Section):
    folder: str = knob(
        "", "Image folder", "The folder with your pictures. Nothing in it is changed.", level="basic",
        is_path=True,
    )  # fmt: skip
    words: list[str] = knob(
        [], "What to keep", "What shall count in the pictures, such as: dog.",
        level="basic", lines=2,
    )  # fmt: skip
    overwrite: bool = knob(
        False, "Replace masks", "Make masks anew also for pictures that have one.", level="basic"
    )
    certainty: float = knob(
        0.4, "Certainty",
        "How sure the model must be of a place. Lower takes in more around the subject, higher cuts parts "
        "of it off.",
        gt=0, lt=1,
    )  # fmt: skip
    margin: float = knob(
        2.0, "Margin", "How far the mask reaches beyond what was found; some room keeps edges natural.",
        unit="%", ge=0, le=25,
    )  # fmt: skip
    model: str = knob(
        CLIPSEG, "Model",
        "Where CLIPSeg is: its name on the Hugging Face hub, from where it is fetched once, or a folder that "
        "holds it.",
        is_path=True, is_hub_id=True,
    )  # fmt: skip


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    words = [word.strip() for word in settings.words if word.strip()]
    if not words:
        raise UserError("What to keep: there is no word.", "Write what shall count, such as dog.", "words")
    folder = Path(settings.folder).expanduser()
    overlay = overlay_for(workspace.root, folder)
    samples = scan(folder, DataSection(), overlay).samples
    left = [sample for sample in samples if settings.overwrite or sample.mask is None]
    answer: dict[str, Any] = {"made": 0, "had": len(samples) - len(left), "empty": [], "broken": []}
    if not left:
        return answer
    seeing = Seeing((yield from _model_folder(settings)))
    yield PhaseBegan("work", f"Looking for {' and '.join(words)}")
    for done, sample in enumerate(left):
        yield Progress(done, len(left), "pictures")
        try:
            image = open_rgb(sample.file, "white")
        except BadImage as error:
            answer["broken"].append(sample.path)
            yield Said("warning", f"{sample.path} is left out: {error}")
            continue
        mask = grown(seeing.certainty(image, words) >= settings.certainty, settings.margin / 100)
        if mask.any():
            name = keep(overlay, enlarged(mask, image.size))
            overlay.apply(f"Masks of {' and '.join(words)}", {sample.path: name}, "masks", joins=done > 0)
            answer["made"] += 1
        else:
            answer["empty"].append(sample.path)
    yield Progress(len(left), len(left), "pictures")
    return answer


def told(answer: dict[str, Any]) -> Iterable[str]:
    yield f"{answer['made']} masks made, {answer['had']} pictures had one."
    if answer["empty"]:
        yield f"Not found in {len(answer['empty'])}: {', '.join(answer['empty'][:10])}."
    if answer["broken"]:
        yield f"Could not be read: {', '.join(answer['broken'][:10])}."


def keep(overlay: Overlay, mask: Image.Image) -> str:
    """Write a mask into the workspace under the hash of its content; return its name there."""
    png = io.BytesIO()
    mask.convert("L").save(png, "PNG")
    name = f"{hashlib.sha256(png.getvalue()).hexdigest()[:24]}.png"
    if not (overlay.masks / name).exists():
        files.write_bytes(overlay.masks / name, png.getvalue())
    return name


def enlarged(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return a mask of truths as a picture of this size, its edges soft by a place of the mask."""
    from PIL import Image

    return Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)


def grown(mask: np.ndarray, part: float) -> np.ndarray:
    """Let what is true reach further, by a part of the side. Shapes: (S, S)."""
    from PIL import Image, ImageFilter

    reach = round(part * mask.shape[0])
    if not reach:  # a filter of one pixel ends Pillow 12.3 with a floating point exception
        return mask
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0


class Seeing:
    """CLIPSeg, on the card if there is one."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPSegForImageSegmentation, CLIPTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            model = CLIPSegForImageSegmentation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            what = f"Model: {folder} holds no CLIPSeg that can be read ({str(error).splitlines()[0][:200]})."
            raise UserError(what, f"Use {CLIPSEG}.", "model") from error
        self.device = detect().device
        self.model = model.eval().to(self.device)

    def certainty(self, image: Image.Image, words: Sequence[str]) -> np.ndarray:
        """Return how sure it is of each place that one of the words is meant, 0 to 1. Shapes: (S, S)."""
        import torch

        text = self.tokenizer(list(words), padding=True, truncation=True, return_tensors="pt")
        pixels = self._pixels(image).expand(len(words), -1, -1, -1)
        with torch.no_grad():
            logits = self.model(
                input_ids=text["input_ids"].to(self.device),
                attention_mask=text["attention_mask"].to(self.device),
                pixel_values=pixels.to(self.device),
            ).logits
        sides = logits.shape[-2:]
        return logits.reshape(-1, *sides).float().sigmoid().amax(0).cpu().numpy()

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, S, S), the whole picture squeezed into the square."""
        import torch
        from PIL import Image

        side = self.model.config.vision_config.image_size
        small = image.resize((side, side), Image.Resampling.BICUBIC)
        values = (np.asarray(small, np.float32) / 255 - _MEAN) / _STD
        return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]


def _model_folder(settings: Settings) -> Generator[Event, None, Path]:
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return folder
    if not hub.is_id(settings.model):
        raise UserError(f"Model: there is no folder {folder}.", f"Choose another, or {CLIPSEG}.", "model")
    patterns = ("*.json", "*.txt", "*.safetensors")
    wanted = hub.Wanted(settings.model, patterns, ("config.json", "*.safetensors"), "model", 603_000_000)
    return (yield from hub.fetch(wanted))
