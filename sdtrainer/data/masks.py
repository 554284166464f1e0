"""Masks: which places of a picture count, and how much, for a loss that looks there.

Finds them as people keep them: made in the app; `name-masklabel.png` beside the picture, as OneTrainer has
it; in a folder `masks`, or in one that a setting names, by the picture's name, as kohya's trainer has it; or
in the picture's alpha channel. White is learnt, black is not, grey in part.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .buckets import Fit
from .census import Problem, Sample
from .images import EXTENSIONS, BadImage, open_mask, read_header, seen_by_model
from .items import Draw, Item, fit_of
from .overlay import Overlay
from .section import DataSection
from .walk import Files, Folder, Found

if TYPE_CHECKING:
    import torch
    from PIL import Image

MASK_LABEL, OTHER_LABEL = "-masklabel", "-condlabel"
FOLDER_NAMES = ("masks", "mask")
WITH_ALPHA = (".png", ".webp", ".tif", ".tiff", ".gif", ".avif")
SHAPE_TOLERANCE = 0.02
"""How far the sides of a mask may be from the picture's proportions."""
KEEP_BYTES = 2**28


class MaskFiles:
    """The masks among the files of a folder."""

    def __init__(self, root: Path, files: Files, section: DataSection, overlay: Overlay | None) -> None:
        self.root, self.mode, self.overlay = root, section.masks, overlay
        labels = [
            found
            for folder in files.folders
            if MASK_LABEL in folder.names or OTHER_LABEL in folder.names
            for found in folder.of(EXTENSIONS)
            if found.bare.endswith((MASK_LABEL, OTHER_LABEL))
        ]
        self._no_pictures = {found.path for found in labels}
        inside = _in_mask_folders(files.folders, self._no_pictures)
        self._no_pictures |= inside.keys()
        self._named = {picture: root / mask for mask, picture in inside.items()}
        if section.mask_folder:
            self._named = _in_folder(Path(section.mask_folder).expanduser()) | self._named
        self._named |= {
            found.bare.removesuffix(MASK_LABEL): root / found.path
            for found in labels
            if found.bare.endswith(MASK_LABEL)
        }

    def pictures(self, files: Files | Folder) -> Iterator[Found]:
        """Yield the images that are no masks."""
        return (found for found in files.of(EXTENSIONS) if found.path not in self._no_pictures)

    def num_pictures(self, files: Files) -> int:
        return files.count(EXTENSIONS) - len(self._no_pictures)

    def given(self, samples: Iterable[Sample], problems: list[Problem]) -> Iterator[Sample]:
        """Yield the samples, not yet cropped, with their masks; what cannot be used goes to `problems`."""
        if not self._may_have_any():
            yield from samples
            return
        for sample in samples:
            mask = self._of(sample)
            if mask and mask != sample.file and (fault := _fault(mask, (sample.width, sample.height))):
                problems.append(Problem(sample.path, "mask", fault, "warning"))
                mask = None
            yield replace(sample, mask=mask) if mask else sample

    def _may_have_any(self) -> bool:
        made = self.overlay.entries("masks") if self.overlay else {}
        return self.mode != "off" and bool(made or self._named or self.mode == "alpha")

    def _of(self, sample: Sample) -> Path | None:
        if self.overlay and (name := self.overlay.entry("masks", sample.path)):
            return self.overlay.masks / name
        if found := self._named.get(_bare(sample.path)):
            return found
        has_alpha = self.mode == "alpha" and sample.file.suffix.lower() in WITH_ALPHA
        return sample.file if has_alpha else None


@dataclass
class Masks:
    """Weights by item and showing; those of what is seen without chance are kept in memory, as bytes."""

    pixels_per_latent: int
    _kept: dict[tuple[Path, Fit, bool], torch.Tensor] = field(default_factory=dict)
    _free_bytes: int = KEEP_BYTES

    def weights(self, item: Item, draw: Draw) -> torch.Tensor | None:
        """Return what each place of a picture weighs in its error; None where all weigh 1.

        Shapes: (1, h, w) fp32.
        Raises: BadImage, if the mask is gone or broken.
        """
        import torch

        if item.mask is None:
            return None
        shown = self._shown(item, draw).float() / 255
        rest = item.section.unmasked_weight
        weights = torch.lerp(torch.full_like(shown, rest), torch.ones_like(shown), shown)
        mean = weights.mean()
        return weights / mean if item.section.even_masks and mean > 0 else weights

    def _shown(self, item: Item, draw: Draw) -> torch.Tensor:
        """The mask at the size of the latents, (1, h, w) bytes."""
        fit = fit_of(item, draw)
        key = (item.sample.file, fit, draw.flip)
        if (found := self._kept.get(key)) is not None:
            return found
        made = _pooled(item.sample, fit, draw.flip, self.pixels_per_latent)
        if fit == item.fit and made.nbytes <= self._free_bytes:
            self._free_bytes -= made.nbytes
            self._kept[key] = made
        return made


def picture_of_mask(sample: Sample, fit: Fit) -> Image.Image:
    """Return the part of a sample's mask that the model goes by, as a grey image of its bucket's size."""
    from PIL import Image

    assert sample.mask
    mask = open_mask(sample.mask, is_alpha=sample.mask == sample.file)
    if mask.size != fit.whole:
        mask = mask.resize(fit.whole, Image.Resampling.BILINEAR)
    return seen_by_model(mask, fit, sample.mask.name, Image.Resampling.BILINEAR)


def _pooled(sample: Sample, fit: Fit, flip: bool, side: int) -> torch.Tensor:
    import numpy as np
    import torch

    grey = np.array(picture_of_mask(sample, fit))
    values = torch.from_numpy(grey).float()[None]
    pooled = torch.nn.functional.avg_pool2d(values, side).round().to(torch.uint8)
    return pooled.flip(-1) if flip else pooled


def _in_mask_folders(folders: Sequence[Folder], labels: Collection[str]) -> Mapping[str, str]:
    """Return {path of a mask: path of its picture, without extension} for folders of masks beside pictures:
    every image in such a folder has the name of a picture beside it.
    """
    by_path = {folder.path: folder for folder in folders}
    masks = {}
    for path in by_path:
        parent, name = posixpath.split(path)
        if name.lower() in FOLDER_NAMES and parent in by_path:
            inside, beside = (_images(by_path[path], labels), _images(by_path[parent], labels))
            if inside.keys() <= beside.keys():
                masks |= {mask: posixpath.join(parent, stem) for stem, mask in inside.items()}
    return masks


def _images(folder: Folder, labels: Collection[str]) -> dict[str, str]:
    """Return the paths of a folder's images by their names without extension."""
    return {found.stem: found.path for found in folder.of(EXTENSIONS) if found.path not in labels}


def _in_folder(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by their path in it, without extension."""
    return {
        _bare(file.relative_to(folder).as_posix()).removesuffix(MASK_LABEL): file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in EXTENSIONS and file.is_file()
    }


def _bare(path: str) -> str:
    return posixpath.splitext(path)[0]


def _fault(mask: Path, size: tuple[int, int]) -> str:
    """Say why a mask is not used; empty if nothing is wrong by its header."""
    try:
        header = read_header(mask)
    except BadImage as error:
        return f"Its mask is not used: {error}"
    if abs(header.width * size[1] / (header.height * size[0]) - 1) <= SHAPE_TOLERANCE:
        return ""
    shapes = f"{header.width} x {header.height} px and the picture {size[0]} x {size[1]} px"
    return f"Its mask {mask.name} is {shapes}: of another shape, so it is not used."
