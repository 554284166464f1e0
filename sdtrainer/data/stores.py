"""Cached latents and cached text: what they are keyed by, and how `Latents` and `Conditioning` become tensors
on disk.

Every fact that changes a tensor is in its key. Changing one caption or one crop makes only its own entries
anew.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from ..seams import Conditioning, Latents
from ..section import UserError
from .buckets import Fit
from .cache import Cache
from .images import PIXELS_VERSION, bad_image
from .items import Item

Tensors = dict[str, torch.Tensor]


def latent_key(
    cache: Cache, content: str, fit: Fit, flip: bool, background: str, model: str, dtype: str
) -> str:
    """Return the key of one image's latents.

    `content` is the hash of the file, `model` identifies the VAE.
    """
    return cache.key("latents", PIXELS_VERSION, content, _facts_of(fit), flip, background, model, dtype)


def _facts_of(fit: Fit) -> dict[str, object]:
    """All that is seen; a crop counts only where there is one, so that older entries are found."""
    return {name: value for name, value in asdict(fit).items() if value is not None}


def text_key(cache: Cache, caption: str, model: str, clip_skip: int, chunks: int, dtype: str) -> str:
    """Return the key of one caption's conditioning. `model` identifies text encoders and tokenizers."""
    return cache.key("text", caption, model, clip_skip, chunks, dtype)


@dataclass(frozen=True)
class LatentStore:
    """Where one VAE's latents are kept."""

    cache: Cache
    model: str
    dtype: str

    def key(self, item: Item, flip: bool) -> str:
        """Return the key of what is seen of an item without chance. Raises BadImage if the file is gone."""
        try:
            content = self.cache.content(item.sample.file)
        except OSError as error:
            raise bad_image(item.sample.file, error) from error
        return latent_key(self.cache, content, item.fit, flip, item.background, self.model, self.dtype)

    def put(self, keys: Sequence[str], latents: Latents) -> None:
        for key, mean, std in zip(keys, latents.mean.detach(), latents.std.detach(), strict=True):
            self.cache.put(key, {"mean": mean, "std": std})

    @staticmethod
    def stack(entries: Sequence[Tensors]) -> Latents:
        return Latents(torch.stack([e["mean"] for e in entries]), torch.stack([e["std"] for e in entries]))


@dataclass(frozen=True)
class TextStore:
    """Where one model's conditioning is kept, every caption in the same number of chunks."""

    cache: Cache
    model: str
    clip_skip: int
    chunks: int
    dtype: str

    def key(self, caption: str) -> str:
        return text_key(self.cache, caption, self.model, self.clip_skip, self.chunks, self.dtype)

    def put(self, keys: Sequence[str], conditioning: Conditioning) -> None:
        """Store one entry per caption.

        Of time ids only the dtype is kept: their values are those of the image.
        """
        for row, key in enumerate(keys):
            entry = {"prompt_embeds": conditioning.prompt_embeds[row].detach()}
            if conditioning.pooled is not None:
                entry["pooled"] = conditioning.pooled[row].detach()
            if conditioning.time_ids is not None:
                entry["time_ids"] = torch.empty(0, dtype=conditioning.time_ids.dtype)
            self.cache.put(key, entry)

    def get(self, caption: str, memory: Memory) -> Tensors:
        return memory.get(self.cache, self.key(caption), f"the encoded caption '{caption[:60]}'")

    @staticmethod
    def stack(entries: Sequence[Tensors], sizes: torch.Tensor) -> Conditioning:
        first = entries[0]
        return Conditioning(
            prompt_embeds=torch.stack([e["prompt_embeds"] for e in entries]),
            pooled=torch.stack([e["pooled"] for e in entries]) if "pooled" in first else None,
            time_ids=sizes.to(first["time_ids"].dtype) if "time_ids" in first else None,
        )


class Memory:
    """Cached tensors kept in memory until `budget_bytes` are full; the rest is read from disk each time.

    Nothing is ever put out again: an epoch visits every entry, so putting out the oldest would help none.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._free_bytes = budget_bytes
        self._entries: dict[str, Tensors] = {}
        self._lock = threading.Lock()

    def get(self, cache: Cache, key: str, what: str) -> Tensors:
        """Return an entry. Raises UserError if it is not in the cache."""
        if key in self._entries:
            return self._entries[key]
        entry = cache.get(key)
        if entry is None:
            hint = "An image or the cache changed during the run; start again, and what is missing is made."
            raise UserError(f"The cache no longer holds {what}.", hint, "data.folder")
        num_bytes = sum(tensor.nbytes for tensor in entry.values())
        with self._lock:
            if key not in self._entries and num_bytes <= self._free_bytes:
                self._free_bytes -= num_bytes
                self._entries[key] = entry
        return entry
