"""READ FIRST. The two seams of the program, Family and Method, and the values they exchange.

A *Family* knows one kind of base model: how to recognise, load, encode, noise, predict and save it. A
*Method* knows what is trained and how it is exported. They never import each other: they meet here, in the
plan and in the training loop. A new one is one file and one word in `families.FAMILIES` or `methods.METHODS`.

Shapes: B batch, C latent channels, H W pixels, h w latents, T tokens, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from .diffusion import PredictionType

if TYPE_CHECKING:
    import torch

    from .diffusion import NoiseSection, Schedule
    from .section import Section

DENOISER, VAE, T5 = "denoiser", "vae", "text_encoder_3"
T5_TOKENS = 256
"""How many tokens of a caption T5 reads; fewer are filled up."""
Goal = Literal["subject", "style", "concept"]
GOALS: tuple[Goal, ...] = get_args(Goal)
Precision = Literal["fp32", "fp16", "bf16"]
BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Of one number."""


@dataclass(frozen=True)
class Facts:
    """What is known of a base model before any weight is loaded.

    With `is_undecided` nothing says what it predicts: `prediction_type` is likely, and the loaded model is
    asked (probe.py). With `is_stated` the family is the user's word, and `why` says what it looks like. In
    `sampling_steps` and with `guidance` such models are usually drawn with. `t5_words` is the folder of T5's
    tokenizer where the model itself has none; `note` says what is left out. `download_bytes` are to be
    fetched from the hub before it can be loaded.
    """

    family: str
    title: str
    path: str
    layout: Literal["folder", "hub", "file"]
    why: str
    prediction_type: PredictionType
    resolution: int
    latent_channels: int
    pixels_per_latent: int
    text_width: int
    encoders: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_undecided: bool = False
    is_stated: bool = False
    sampling_steps: int = 25
    guidance: float = 7.0
    t5_words: str = ""
    note: str = ""
    download_bytes: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        return (DENOISER, VAE, *self.encoders)

    @property
    def has_unet(self) -> bool:
        """Whether the denoiser is a UNet, with convolutions and a way down and up, or else a transformer."""
        return self.family != "sd3"

    @property
    def learning_encoders(self) -> tuple[str, ...]:
        """The text encoders that can be taught, which are CLIP's: T5 stays as it is."""
        return tuple(name for name in self.encoders if name != T5)


@dataclass
class Parts:
    """The live modules of a base model. `modules` is keyed by DENOISER, VAE and the names of the text
    encoders. `placeholders` are words that stand for several tokens: each is written out before a text is
    tokenized.
    """

    facts: Facts
    modules: dict[str, torch.nn.Module]
    tokenizers: dict[str, Any]
    schedule: Schedule
    placeholders: dict[str, str] = field(default_factory=dict)

    def written_out(self, text: str) -> str:
        """Return the text with tokens in place of each placeholder, in capitals or not, and not as part of
        another word.
        """
        for word, tokens in self.placeholders.items():
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", tokens, text, flags=re.IGNORECASE)
        return text

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.modules[DENOISER]

    @property
    def vae(self) -> torch.nn.Module:
        return self.modules[VAE]

    @property
    def text_encoders(self) -> dict[str, torch.nn.Module]:
        return {name: self.modules[name] for name in self.facts.encoders}


@dataclass(frozen=True)
class Latents:
    """The VAE's posterior, scaled as the denoiser sees it. Shapes: mean, std (B, C, h, w)."""

    mean: torch.Tensor
    std: torch.Tensor

    def sample(self, generator: torch.Generator | None) -> torch.Tensor:
        import torch

        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told. Shapes: prompt_embeds (B, T, D); pooled (B, P); time_ids (B, 6)."""

    prompt_embeds: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None


@dataclass(frozen=True)
class Noised:
    """One noising of a batch. Shapes: noisy_latents, target (B, C, h, w); timesteps, weight (B,)."""

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class LearningRates:
    denoiser: float
    text_encoder: float


@dataclass(frozen=True)
class ParamGroup:
    """Parameters trained at one learning rate. `name` is shown to the user ("denoiser", "text encoder")."""

    name: str
    parameters: Sequence[torch.nn.Parameter]
    lr: float


class Family(Protocol):
    """One kind of base model."""

    name: str

    def recognise(self, path: str, stated: str = "auto") -> Facts | None:
        """Return what is at `path`, which was seen or is `stated` to be of this family; None if its shapes
        are not known. Reads headers only.
        """

    def load(self, facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> Parts:
        """Load the named parts, frozen, in eval mode, on the CPU."""

    def skeleton(self, facts: Facts) -> dict[str, torch.nn.Module]:
        """Build the modules on the meta device: every shape, no weights, no files but configs."""

    def tokenize(self, parts: Parts, captions: Sequence[str], chunks: int) -> dict[str, torch.Tensor]:
        """Return token ids per encoder, (B, chunks x 77): captions beyond 75 tokens continue in the next
        chunk. Those of T5 are (B, 256).
        """

    def count_tokens(self, parts: Parts, caption: str) -> int:
        """Return how many tokens a caption has, without start and end."""

    def encode_text(
        self, parts: Parts, tokens: Mapping[str, torch.Tensor], clip_skip: int, sizes: torch.Tensor
    ) -> Conditioning:
        """Encode token ids. `sizes` (B, 6) is original height and width, crop top and left, target height and
        width.
        """

    def encode_images(self, parts: Parts, pixels: torch.Tensor) -> Latents:
        """Encode pixels (B, 3, H, W) in [-1, 1]."""

    def noise(
        self, parts: Parts, latents: torch.Tensor, generator: torch.Generator, section: NoiseSection
    ) -> Noised:
        """Draw timesteps and noise; return the noisy latents, the target and the weight of each sample."""

    def predict(self, parts: Parts, noised: Noised, conditioning: Conditioning) -> torch.Tensor:
        """Run the denoiser. Returns (B, C, h, w), to be compared with `noised.target`."""

    def pipeline(self, parts: Parts) -> Any:
        """Return a diffusers pipeline over the live modules, for sampling."""


@dataclass(frozen=True)
class Card:
    """What a hobbyist should know of a method before choosing it. `about` is one paragraph; `size` says what
    its file weighs for SD 1.5 ("10-160 MB").
    """

    about: str
    pros: tuple[str, ...]
    cons: tuple[str, ...]
    uses: tuple[str, ...]
    size: str


class Method(Protocol):
    """One way of fine-tuning. Its settings are a Section whose `kind` names it.

    `formats` are the words of `export.formats` that it can write, the usual first; `lrs` are its learning
    rates by goal, taken where `optim.lr` is 0. `starts_as_base`: before the first step the model draws
    exactly as the base does. `keeps_base`: what is trained lies beside the base's own weights.
    Implementations inherit from this class, and so the answers of a method that starts as the base, keeps it,
    adds no words and no term to the loss.
    """

    kind: str
    title: str
    Section: type[Section]
    card: Card
    formats: tuple[str, ...]
    lrs: Mapping[Goal, LearningRates]
    starts_as_base: bool = True
    keeps_base: bool = True

    def suits(self, section: Section, facts: Facts) -> None:
        """Raise UserError if these settings cannot work on this base, naming setting and remedy."""

    def attach(self, parts: Parts, section: Section, lrs: LearningRates) -> list[ParamGroup]:
        """Make the chosen weights trainable and return them grouped by learning rate.

        New ones are fp32, the base's own stay as loaded: the trainer gives them the format of the plan.
        Without effect on what the model draws until they are trained, where `starts_as_base`.
        """

    def words(self, section: Section) -> tuple[str, ...]:
        """Return the new words that it makes: captions must hold one, the first is the usual trigger word."""
        return ()

    def add_words(self, parts: Parts, section: Section) -> None:
        """Make its words known to tokenizers and placeholders; the modules need not be there yet.

        Raises:
            UserError: a word means something already.
        """
        return None

    def reads_base(self, section: Section) -> bool:
        """Return whether it computes with the base's own weights, so that rounded ones would not do."""
        return False

    def penalty(self, parts: Parts, section: Section) -> torch.Tensor | None:
        """Return a term that is added to the loss once a step, a single number, or None."""
        return None

    def detach(self, parts: Parts, section: Section) -> None:
        """Undo `attach`: what it added is gone, what it made trainable is frozen."""

    def trains(self, section: Section, facts: Facts) -> tuple[str, ...]:
        """Return the names of the parts that will hold trainable weights."""

    def exported_bytes(self, parts: Parts, section: Section, precision: Precision) -> int:
        """Return the size of the file that `export` will write, from attached modules (the meta device will
        do).
        """

    def outputs(self, section: Section, name: str, formats: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the files and folders that `export` will write, in the order of `formats`."""

    def provenance(self, section: Section) -> dict[str, Any]:
        """Return what the file's metadata says of the method: rank, alpha, network_args."""

    def export(self, parts: Parts, section: Section, order: ExportOrder) -> list[Path]:
        """Write the files that other programs load; returns their paths, the main one first."""

    def reads(self, file: Path) -> bool:
        """Return whether this file (or folder) holds an export of this method, ours or another program's.

        Looks at names and shapes only; never executes what a file brings along.
        """

    def put_on(self, parts: Parts, file: Path, strength: float) -> None:
        """Apply an exported file to the live modules of a base model, for drawing.

        Raises:
            UserError: the file does not fit this base model.
        """


@dataclass(frozen=True)
class ExportOrder:
    """Where and how an export is written. `metadata` is text by key, as it goes into the file header."""

    folder: Path
    name: str
    precision: Precision
    formats: tuple[str, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Batch:
    """What one forward pass trains on; every tensor lies on the training device.

    Either `latents` (cached) or `pixels` is given, and either `conditioning` (cached) or `tokens`. With
    `noised`, the noise is drawn already.
    With `mask`, places count as much as it says.
    Shapes: pixels (B, 3, H, W); tokens per encoder (B, chunks x 77); sizes (B, 6); weight (B,); mask
    (B, 1, h, w).
    """

    weight: torch.Tensor
    sizes: torch.Tensor
    latents: Latents | None = None
    pixels: torch.Tensor | None = None
    conditioning: Conditioning | None = None
    tokens: Mapping[str, torch.Tensor] | None = None
    noised: Noised | None = None
    mask: torch.Tensor | None = None
