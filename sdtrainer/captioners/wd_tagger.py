"""The WD taggers: tags of the anime board Danbooru, each with how sure the model is. Run by onnxruntime.

Their table lists a tag for each output: category 0 is general, 4 a character, 9 a rating. Pictures go in as
squares on white, with blue first, from 0 to 255. Source: the cards of SmilingWolf's models on the hub.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Images

from ..section import UserError
from . import As, Captioner, Captioning, Device, Download, Picture
from .section import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL, TABLE = "model.onnx", "selected_tags.csv"
_GENERAL, _CHARACTER = "0", "4"
FACES = frozenset(
    {"0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o"}
    | {"@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||"}
)
"""Tags that are drawings: their underscores are mouths."""


@dataclass(frozen=True)
class Tag:
    name: str
    category: str


class WdTagger(Captioner):
    name = "wd-tagger"
    title = "WD tagger"
    about = "Tags, as on anime boards: 1girl, outdoors, smile. Quick even without a card; made for drawings."
    reads = ("threshold", "character_threshold", "blacklist", "underscores", "model")
    download = Download(
        "SmilingWolf/wd-vit-tagger-v3",
        379_000_000,
        "Apache 2.0",
        (MODEL, TABLE),
        (MODEL, TABLE),
        {
            "SmilingWolf/wd-swinv2-tagger-v3": 467_000_000,
            "SmilingWolf/wd-eva02-large-tagger-v3": 1_260_000_000,
        },
    )
    writes_tags = True

    def load(self, folder: Path | None, device: Device, precision: As, settings: Settings) -> Captioning:
        assert folder
        tags, session = _tags(folder / TABLE), _session(folder / MODEL)
        given = session.get_inputs()[0]
        side = int(given.shape[1])

        def caption(pictures: Sequence[Picture]) -> list[str]:
            return [chosen(tags, sureness(p.image), settings) for p in pictures if p.image]

        def sureness(image: Image) -> np.ndarray:
            return session.run(None, {given.name: pixels(image, side)})[0][0]

        if (outputs := session.get_outputs()[0].shape[-1]) != len(tags):
            what = (
                f"WD tagger: the model in '{folder}' knows {outputs} tags, and its table lists {len(tags)}."
            )
            raise UserError(what, "Download both files again.", "model")
        return caption


def pixels(image: Image, side: int) -> np.ndarray:
    """Return the picture as the models see it. Shapes: (1, side, side, 3), float32."""
    square = Images.new("RGB", (max(image.size),) * 2, "white")
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    small = square.resize((side, side), Images.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float32)[None, :, :, ::-1].copy()


def chosen(tags: Sequence[Tag], sureness: np.ndarray, settings: Settings) -> str:
    """Return the tags that are sure enough, characters first, then the surest. Shapes: sureness (tags,)."""
    least = {_GENERAL: settings.threshold, _CHARACTER: settings.character_threshold}
    left_out = {_plain(tag) for tag in settings.blacklist}
    found = [
        (tag.category != _CHARACTER, -float(sure), tag.name)
        for tag, sure in zip(tags, sureness, strict=True)
        if tag.category in least and sure >= least[tag.category] and _plain(tag.name) not in left_out
    ]
    return ", ".join(_written(name, settings.underscores) for _, _, name in sorted(found))


def _written(tag: str, with_underscores: bool) -> str:
    return tag if with_underscores or tag in FACES else tag.replace("_", " ")


def _plain(tag: str) -> str:
    return tag.strip().casefold().replace("_", " ")


def _tags(table: Path) -> list[Tag]:
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [Tag(row["name"], row["category"]) for row in rows or [{}]]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        what = f"WD tagger: {table} is no table of tags with the columns name and category."
        raise UserError(what, "Choose a folder with model.onnx and selected_tags.csv.", "model") from error


def _session(model: Path) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each fault, and no common one
        what = f"WD tagger: {model} could not be loaded ({str(error).splitlines()[0][:200]})."
        raise UserError(what, "Choose a folder with model.onnx and selected_tags.csv.", "model") from error


WD_TAGGER = WdTagger()
