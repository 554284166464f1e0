"""What looking at a file tells: plain values, for the page, the command line and the families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..diffusion import PredictionType
from .bases import stated

Kind = Literal[
    "model", "folder", "denoiser", "adapter", "embedding", "hypernetwork", "vae", "text encoder",
    "controlnet", "other", "unknown",
]  # fmt: skip
"""A `model` is a whole one in one file, a `folder` one of diffusers; a `denoiser` is one alone."""


@dataclass(frozen=True)
class Prediction:
    """What a model predicts, and how that is known. Undecided, `type` is the likeliest."""

    type: PredictionType
    why: str
    is_decided: bool = True


@dataclass(frozen=True)
class Part:
    """One part of a file. `precisions` begin with the one that most bytes are in."""

    name: str
    tensors: int
    parameters: int
    bytes: int
    precisions: tuple[str, ...]


@dataclass(frozen=True)
class Adapter:
    """`ranks` and `alphas` are the layers that have each; `targets` are layers by part and kind."""

    kind: str
    layout: str
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    targets: Mapping[str, Mapping[str, int]]

    @property
    def trains_text_encoder(self) -> bool:
        return any(part.startswith("text encoder") for part in self.targets)


@dataclass(frozen=True)
class Found:
    """`base` names a row of bases.BASES, "" if it is not known; `variant` is "inpainting" and the like.

    `title` says what it is in a few words ("a LoRA for Stable Diffusion XL"), `why` how that is known.
    `missing` are the parts that a whole model has and this has not. `otherwise` is what it may be taken for
    if the user says so: at most one for each word of bases.STATED.
    """

    kind: Kind
    title: str
    why: str
    base: str = ""
    variant: str = ""
    bytes: int = 0
    parts: tuple[Part, ...] = ()
    missing: tuple[str, ...] = ()
    prediction: Prediction | None = None
    is_zero_snr: bool = False
    adapter: Adapter | None = None
    notes: tuple[str, ...] = ()
    says: Mapping[str, str] = field(default_factory=dict)
    otherwise: tuple[Found, ...] = ()

    def taken_as(self, word: str) -> Found:
        """Return what it is if the user states this family, a word of bases.STATED: itself if it is known to
        be one, or cannot be one.
        """
        return next((other for other in self.otherwise if stated(other.base) == word), self)
