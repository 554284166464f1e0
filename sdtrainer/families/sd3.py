"""Stable Diffusion 3 and 3.5: a transformer that reads picture and text side by side, two CLIP text encoders
and, if it is there, T5; an 8x VAE of 16 channels; rectified flow.

Source: Esser et al. 2024 (arXiv 2403.03206), section 4 and appendix B: both CLIP encoders' penultimate layers
side by side, filled up with zeros to T5's width, and behind them what T5 says, are the text; both projected
ends of text are its sum ("pooled"). Without T5 its place holds zeros, as diffusers has it. Knows nothing of
what is trained in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import diffusion, flow
from ..formats.diffusers_folder import COMPONENTS, tokenizer_folder
from ..recognition.bases import AUTO
from ..seams import DENOISER, T5, T5_TOKENS, VAE, Conditioning, Facts, Latents, Noised, Parts
from . import clip, configs, loading, single_file, unet
from .configs import SCHEDULER, Found

if TYPE_CHECKING:
    import torch

ENCODER, ENCODER_2 = "text_encoder", "text_encoder_2"
_DRAWN = {
    "Stable Diffusion 3 Medium": (28, 7.0),
    "Stable Diffusion 3.5 Medium": (40, 4.5),
    "Stable Diffusion 3.5 Large": (28, 3.5),
}
"""Sampling steps and guidance, as the models' cards on the hub have them."""
_OLDER_CONFIG = {"qk_norm": None, "dual_attention_layers": []}


class StableDiffusion3:
    """SD3 medium, SD3.5 medium and large."""

    name = "sd3"

    def recognise(self, path: str, stated: str = AUTO) -> Facts | None:
        found = single_file.look(path, stated) or self._in_folder(path)
        return found and _facts(found)

    def _in_folder(self, path: str) -> Found | None:
        place = configs.place_of(path)
        if place is None:
            return None
        folders = (T5, tokenizer_folder(T5))
        has_t5 = all(place.index.get(name, [None])[0] for name in folders)
        has_t5 |= not place.index and all(place.has(name) for name in folders)
        components = {part: c for part, c in COMPONENTS[self.name].items() if part != T5 or has_t5}
        beside = "with T5" if has_t5 else "without T5"
        return Found(path, place.layout, configs.read(place, components), f"a {place.pipeline} {beside}")

    def load(self, facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> Parts:
        return loading.load(facts, parts, dtypes)

    def skeleton(self, facts: Facts) -> dict[str, torch.nn.Module]:
        return loading.skeleton(facts)

    def tokenize(self, parts: Parts, captions: Sequence[str], chunks: int) -> dict[str, torch.Tensor]:
        """T5 reads the first 256 tokens as they are written: it knows no word that is learnt here."""
        ids = clip.tokenize(parts, captions, chunks)
        if T5 in parts.facts.encoders:
            ids[T5] = parts.tokenizers[T5](
                list(captions), padding="max_length", max_length=T5_TOKENS, truncation=True,
                return_tensors="pt",
            ).input_ids  # fmt: skip
        return ids

    def count_tokens(self, parts: Parts, caption: str) -> int:
        return clip.count_tokens(parts, caption)

    def encode_text(
        self, parts: Parts, tokens: Mapping[str, torch.Tensor], clip_skip: int, sizes: torch.Tensor
    ) -> Conditioning:
        """Of several windows the first gives the pooled text. The final norms are left out, as the model was
        trained; so is one layer at least.

        Shapes: prompt_embeds (B, chunks x 77 + 256, D).
        """
        import torch

        hidden, pooled = [], []
        for name in (ENCODER, ENCODER_2):
            said = clip.run(parts.modules[name], tokens[name], keep_layers=True)
            hidden.append(clip.joined(said.hidden_states[-1 - max(1, clip_skip)], tokens[name]))
            pooled.append(clip.pooled(parts.modules[name], said, tokens[name]))
        words = torch.cat(hidden, dim=-1)
        words = torch.nn.functional.pad(words, (0, parts.facts.text_width - words.shape[-1]))
        return Conditioning(
            torch.cat([words, _said_by_t5(parts, tokens, words)], dim=1), torch.cat(pooled, dim=-1)
        )

    def encode_images(self, parts: Parts, pixels: torch.Tensor) -> Latents:
        return unet.encode_images(parts, pixels)

    def noise(
        self, parts: Parts, latents: torch.Tensor, generator: torch.Generator, section: diffusion.NoiseSection
    ) -> Noised:
        """Every sample counts alike: the density of the timesteps is the weight."""
        own_shift = parts.facts.config[SCHEDULER].get("shift", 1.0)
        s = flow.draw(generator, latents.shape[0], section, own_shift, latents.device)
        drawn = diffusion.noise_like(latents, generator)
        return Noised(
            flow.add_noise(latents, drawn, s),
            1000 * s,
            flow.target(latents, drawn),
            s.new_ones(s.shape),
        )

    def predict(self, parts: Parts, noised: Noised, conditioning: Conditioning) -> torch.Tensor:
        return parts.denoiser(
            hidden_states=noised.noisy_latents,
            encoder_hidden_states=conditioning.prompt_embeds,
            pooled_projections=conditioning.pooled,
            timestep=noised.timesteps,
            return_dict=False,
        )[0]

    def pipeline(self, parts: Parts) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

        return StableDiffusion3Pipeline(
            transformer=parts.denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(parts.facts.config[SCHEDULER]),
            vae=parts.vae,
            **{name: parts.modules.get(name) for name in (ENCODER, ENCODER_2, T5)},
            **{tokenizer_folder(name): parts.tokenizers.get(name) for name in (ENCODER, ENCODER_2, T5)},
        )


FAMILY = StableDiffusion3()


def _facts(found: Found) -> Facts:
    denoiser, vae = found.configs[DENOISER], found.configs[VAE]
    title = _title(denoiser)
    steps, guidance = _DRAWN[title]
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return Facts(
        family=FAMILY.name,
        title=title,
        path=found.path,
        layout=found.layout,
        why=found.why,
        prediction_type="flow",
        resolution=denoiser["sample_size"] * scale,
        latent_channels=denoiser["in_channels"],
        pixels_per_latent=scale,
        text_width=denoiser["joint_attention_dim"],
        encoders=tuple(name for name in (ENCODER, ENCODER_2, T5) if name in found.configs),
        config=found.configs,
        sampling_steps=steps,
        guidance=guidance,
    )


def _title(denoiser: Mapping[str, Any]) -> str:
    """3.5 medium has a second attention; large is a deeper one that norms queries and keys."""
    config = _OLDER_CONFIG | dict(denoiser)
    if config["dual_attention_layers"]:
        return "Stable Diffusion 3.5 Medium"
    return "Stable Diffusion 3.5 Large" if config["qk_norm"] else "Stable Diffusion 3 Medium"


def _said_by_t5(parts: Parts, tokens: Mapping[str, torch.Tensor], words: torch.Tensor) -> torch.Tensor:
    """What stands behind CLIP's words (B, T, D): (B, 256, D). T5 computes as it is kept: in fp16 some of its
    layers must stay fp32, which autocast does not know.
    """
    import torch

    if T5 in parts.facts.encoders:
        with torch.autocast(words.device.type, enabled=False):
            return parts.modules[T5](tokens[T5]).last_hidden_state
    return words.new_zeros(len(words), T5_TOKENS, words.shape[-1])
