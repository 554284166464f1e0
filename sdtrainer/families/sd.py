"""Stable Diffusion 1 and 2: one CLIP text encoder, a UNet, an 8x VAE; epsilon, v or x0 prediction.

Owns how such a model is recognised, loaded, noised, asked and sampled. Knows nothing of what is trained in
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import diffusion
from ..formats.diffusers_folder import COMPONENTS
from ..recognition.bases import AUTO, BASES
from ..seams import DENOISER, Conditioning, Facts, Latents, Noised, Parts
from . import clip, configs, loading, single_file, unet
from .configs import Found

if TYPE_CHECKING:
    import torch

ENCODER = "text_encoder"


class StableDiffusion:
    """SD 1.x and 2.x, told apart by the width of the text encoder."""

    name = "sd"

    def recognise(self, path: str, stated: str = AUTO) -> Facts | None:
        found = single_file.look(path, stated) or self._in_folder(path)
        if found is None:
            return None
        is_second = found.configs[DENOISER]["cross_attention_dim"] == BASES["SD2"].text_width
        title = BASES["SD2" if is_second or stated == "sd2" else "SD1"].title
        return unet.facts(self.name, title, found, (ENCODER,))

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
        encoder, ids = parts.modules[ENCODER], tokens[ENCODER]
        output = clip.run(encoder, ids, keep_layers=clip_skip > 0)
        hidden = output.last_hidden_state
        if clip_skip:
            hidden = encoder.final_layer_norm(output.hidden_states[-1 - clip_skip])
        return Conditioning(clip.joined(hidden, ids))

    def encode_images(self, parts: Parts, pixels: torch.Tensor) -> Latents:
        return unet.encode_images(parts, pixels)

    def noise(
        self, parts: Parts, latents: torch.Tensor, generator: torch.Generator, section: diffusion.NoiseSection
    ) -> Noised:
        return unet.noise(parts, latents, generator, section)

    def predict(self, parts: Parts, noised: Noised, conditioning: Conditioning) -> torch.Tensor:
        return parts.denoiser(
            noised.noisy_latents, noised.timesteps, conditioning.prompt_embeds, return_dict=False
        )[0]

    def pipeline(self, parts: Parts) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=parts.vae,
            text_encoder=parts.modules[ENCODER],
            tokenizer=parts.tokenizers[ENCODER],
            unet=parts.denoiser,
            scheduler=unet.scheduler(parts),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


FAMILY = StableDiffusion()
