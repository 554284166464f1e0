"""Encoding: images to latents and captions to embeddings, for the caches; slower where memory is short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from ..events import Said
from ..plan import Plan
from ..seams import VAE, Conditioning, Family, Latents, Parts
from .shortage import first_that_fits

Made = TypeVar("Made", Latents, Conditioning)


@dataclass(frozen=True)
class Encoding:
    """`autocast` is the number format of the computation, None for fp32. `slow` counts what the processor had
    to do.
    """

    plan: Plan
    family: Family
    parts: Parts
    autocast: torch.dtype | None
    slow: Counter[str] = field(default_factory=Counter)

    def tokenize(self, captions: list[str]) -> dict[str, torch.Tensor]:
        return self.family.tokenize(self.parts, captions, self.plan.chunks)

    def encode(self, pixels: torch.Tensor) -> Latents:
        card = partial(self._latents, pixels, self.plan.place(VAE, "cache").device)
        return first_that_fits(card, card, lambda: self._slowly("images", self._latents(pixels, "cpu")))

    def encode_text(self, captions: list[str]) -> Conditioning:
        """All at once; where memory is short one after the other, and at last on the processor."""
        device = self.plan.place(self.plan.facts.encoders[0], "cache").device
        together = partial(self._embeds, captions, device)
        return first_that_fits(
            together,
            together,
            lambda: _joined([self._embeds([caption], device) for caption in captions]),
            lambda: self._slowly("captions", self._embeds(captions, "cpu")),
        )

    def warnings(self) -> Iterator[Said]:
        """Say what took longer than it should have."""
        for what, count in self.slow.items():
            yield Said(
                "warning",
                f"The card ran out of memory while preparing {what}. The processor took over {count} times, "
                "which is slower; nothing is left out.",
            )
        self.slow.clear()

    def _latents(self, pixels: torch.Tensor, device: str) -> Latents:
        self.parts.vae.to(device)
        with torch.no_grad():
            return self.family.encode_images(self.parts, pixels.to(device))

    def _embeds(self, captions: list[str], device: str) -> Conditioning:
        for encoder in self.parts.text_encoders.values():
            encoder.to(device)
        tokens = {name: ids.to(device) for name, ids in self.tokenize(captions).items()}
        sizes = torch.zeros(len(captions), 6, device=device)
        enabled = self.autocast is not None
        with torch.no_grad(), torch.autocast(torch.device(device).type, self.autocast, enabled=enabled):
            return self.family.encode_text(self.parts, tokens, self.plan.config.base.clip_skip, sizes)

    def _slowly(self, what: str, made: Made) -> Made:
        self.slow[what] += 1
        return made


def _joined(told: list[Conditioning]) -> Conditioning:
    """Put captions that were encoded one by one together."""

    def join(name: str) -> torch.Tensor | None:
        each = [getattr(one, name) for one in told]
        return None if each[0] is None else torch.cat(each)

    embeds = join("prompt_embeds")
    assert embeds is not None
    return Conditioning(embeds, join("pooled"), join("time_ids"))
