"""Stable Diffusion XL: two text encoders, a UNet that is also told the sizes of a picture, an 8x VAE.

Source: Podell et al. 2023 (arXiv 2307.01952), sections 2.1 and 2.2: both encoders' penultimate layers side by
side are the text, the larger one's projected end of text is its sum ("pooled"), and original size, crop and
target size are told. Knows nothing of what is trained in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import diffusion
from ..formats.diffusers_folder import COMPONENTS
from ..recognition.bases import AUTO
from ..seams import DENOISER, Conditioning, Facts, Latents, Noised, Parts
from . import clip, configs, loading, single_file, unet
from .configs import Found

if TYPE_CHECKING:
    import torch

ENCODER, ENCODER_2 = "text_encoder", "text_encoder_2"


GUIDANCE = 5.0
"""With which diffusers' pipeline draws, and stronger only burns the colours."""


class StableDiffusionXL:
    """SDXL 1.0 and what was made from it; epsilon or v prediction."""

    name = "sdxl"

    def recognise(self, path: str, stated: str = AUTO) -> Facts | None:
        found = single_file.look(path, stated) or self._in_folder(path)
        if found is None:
            return None
        facts = unet.facts(self.name, "Stable Diffusion XL", found, (ENCODER, ENCODER_2))
        return replace(facts, guidance=GUIDANCE)

    def _in_folder(self, path: str) -> Found | None:
        place = configs.place_of(path)
        if place is None:
            return None
        read = configs.read(place, COMPONENTS[self.name])
        width = read[DENOISER]["cross_attention_dim"]
        return Found(path, place.layout, read, f"a {place.pipeline} with text features {width} wide")

    def load(self, facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> Parts:
        return loading.load(facts, parts, dtypes)

    def skeleton(self, facts: Facts) -> dict[str, torch.nn.Module]:
        return loading.skeleton(facts)

    def tokenize(self, parts: Parts, captions: Sequence[str], chunks: int) -> dict[str, torch.Tensor]:
        return clip.tokenize(parts, captions, chunks)

    def count_tokens(self, parts: Parts, caption: str) -> int:
        return clip.count_tokens(parts, caption)

    def encode_text(
        self, parts: Parts, tokens: Mapping[str, torch.Tensor], clip_skip: int, sizes: torch.Tensor
    ) -> Conditioning:
        """Of several windows the first gives the pooled text. The final norm is left out, as the model was
        trained; so is one layer at least.
        """
        import torch

        said = {
            name: clip.run(parts.modules[name], tokens[name], keep_layers=True)
            for name in (ENCODER, ENCODER_2)
        }
        hidden = [
            clip.joined(output.hidden_states[-1 - max(1, clip_skip)], tokens[name])
            for name, output in said.items()
        ]
        pooled = clip.pooled(parts.modules[ENCODER_2], said[ENCODER_2], tokens[ENCODER_2])
        return Conditioning(torch.cat(hidden, dim=-1), pooled, sizes.float())

    def encode_images(self, parts: Parts, pixels: torch.Tensor) -> Latents:
        return unet.encode_images(parts, pixels)

    def noise(
        self, parts: Parts, latents: torch.Tensor, generator: torch.Generator, section: diffusion.NoiseSection
    ) -> Noised:
        return unet.noise(parts, latents, generator, section)

    def predict(self, parts: Parts, noised: Noised, conditioning: Conditioning) -> torch.Tensor:
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        return parts.denoiser(
            noised.noisy_latents,
            noised.timesteps,
            conditioning.prompt_embeds,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def pipeline(self, parts: Parts) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            vae=parts.vae,
            text_encoder=parts.modules[ENCODER],
            text_encoder_2=parts.modules[ENCODER_2],
            tokenizer=parts.tokenizers[ENCODER],
            tokenizer_2=parts.tokenizers[ENCODER_2],
            unet=parts.denoiser,
            scheduler=unet.scheduler(parts),
            add_watermarker=False,
        )


FAMILY = StableDiffusionXL()
