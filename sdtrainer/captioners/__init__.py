"""What writes captions: models that look at a picture, and rules that look at its name. One file each.

`Captioner` is the seam: a new one is one file and one word in CAPTIONERS.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from ..hub import Wanted
from ..seams import Precision
from ..section import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data.census import Sample
    from .section import Settings

Name = Literal[
    "florence2", "blip", "blip2", "qwen", "joycaption", "wd-tagger", "file-name", "folder-name", "template"
]  # fmt: skip
Device = Literal["cuda", "mps", "cpu"]
WHOLE = "model.safetensors"
As = Literal[Precision, "int8"]
"""The format that a model's weights are kept in."""

_MODULES: Mapping[Name, str] = {
    "florence2": "florence2.FLORENCE2",
    "blip": "blip.BLIP",
    "blip2": "blip2.BLIP2",
    "qwen": "qwen_vl.QWEN",
    "joycaption": "joycaption.JOYCAPTION",
    "wd-tagger": "wd_tagger.WD_TAGGER",
    "file-name": "rules.FILE_NAME",
    "folder-name": "rules.FOLDER_NAME",
    "template": "rules.TEMPLATE",
}


@dataclass(frozen=True)
class Picture:
    """One picture to caption. `image` is upright RGB; None for a captioner that does not look."""

    sample: Sample
    image: Image | None = None


Captioning = Callable[[Sequence[Picture]], list[str]]
"""A loaded captioner: one text for each picture, '' where it has nothing to say."""


@dataclass(frozen=True)
class Download:
    """Where a captioner's model comes from if the user names no other.

    About `num_bytes` come down; `licence` is what its makers allow. `files` and `needed` as in `hub.Wanted`.
    `also` are others of its kind, and their sizes.
    """

    repo: str
    num_bytes: int
    licence: str
    files: tuple[str, ...] = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
    needed: tuple[str, ...] = (
        "config.json", "tokenizer_config.json", "*processor_config.json", "*.safetensors"
    )  # fmt: skip
    also: Mapping[str, int] = field(default_factory=dict)

    def wanted(self, model: str) -> Wanted:
        """Return what is wanted of the hub: of this repository, or of the one that the user named."""
        return Wanted(model or self.repo, self.files, self.needed, "model", self.size(model))

    def size(self, model: str) -> int:
        """Return about how many bytes come down for a model; 0 where that is not known."""
        return self.num_bytes if model in ("", self.repo) else self.also.get(model, 0)

    def lacking(self, folder: Path) -> list[str]:
        """Return the files that a folder ought to have, and has not."""
        patterns = [name for name in self.needed if not any(folder.glob(name))]
        return patterns + [file.name for file in weights(folder) if not file.is_file()]


class Captioner(Protocol):
    """One way to write captions.

    `about` is for a person who chooses: what it writes, how fast it is. `reads` names the settings that it
    heeds, beyond those that all do. `download` is None where there is nothing to load. One that `only_fills`
    has no words of its own; one that `is_wide` computes with numbers too large for fp16. Implementations
    inherit from this class.
    """

    name: Name
    title: str
    about: str
    reads: tuple[str, ...] = ()
    download: Download | None = None
    writes_tags: bool = False
    only_fills: bool = False
    is_wide: bool = False

    @property
    def looks(self) -> bool:
        """Whether it looks at the picture, or only at what is known of it."""
        return self.download is not None

    def memory(self, folder: Path, precision: As) -> int:
        """Return about how many bytes the model takes in that format while it works."""
        return 0

    def load(self, folder: Path | None, device: Device, precision: As, settings: Settings) -> Captioning:
        """Load it from a folder of files.

        Raises:
            UserError: the folder holds no model of this kind.
        """


def weights(folder: Path) -> list[Path]:
    """Return the files of a model's weights, there or not: those that its index lists, if it has one."""
    whole, index = folder / WHOLE, folder / f"{WHOLE}.index.json"
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(listed))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"Other model: {index} lists no files."
        raise UserError(what, "Download it again.", "model") from error


@cache
def captioner(name: Name) -> Captioner:
    module, _, constant = _MODULES[name].partition(".")
    return getattr(importlib.import_module(f".{module}", __package__), constant)


def captioners() -> tuple[Captioner, ...]:
    return tuple(captioner(name) for name in get_args(Name))
