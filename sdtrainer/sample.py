"""Drawing pictures with the live modules, while training and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import samplers
from .data.captions import chunks_needed
from .seams import DENOISER, VAE, Family, Parts
from .section import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


RESCALE = 0.7
"""Of guidance, after zero terminal SNR. Source: Lin et al. 2023 (arXiv 2305.08891), section 3.4."""
Bring = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Request:
    """One picture to draw. Sizes in pixels."""

    prompt: str
    negative: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    clip_skip: int = 0


class Sampler:
    """Draws requests with a family's pipeline over live modules; the pipeline is built once. With `bring` its
    parts take turns on the device.
    """

    def __init__(
        self,
        family: Family,
        parts: Parts,
        device: str,
        autocast: torch.dtype | None,
        bring: Bring | None = None,
    ) -> None:
        self.family, self.parts, self.device, self.autocast = family, parts, device, autocast
        self._bring = bring or _leave
        self.pipeline = family.pipeline(parts)
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def sampler_name(self) -> str:
        """A1111's name for the way from noise to a picture."""
        return samplers.name_of(self.pipeline.scheduler)

    def use(self, name: str) -> None:
        """Go another way.

        Raises:
            UserError: the model is not drawn so.
        """
        if self.parts.facts.prediction_type == "flow":
            raise UserError(
                f"Sampler: {self.parts.facts.title} is not drawn with {name}.",
                f"Choose '{samplers.OWN}'.",
                "sampler",
            )
        self.pipeline.scheduler = samplers.made(name, self.pipeline.scheduler)

    def draw(self, request: Request, bring: Bring | None = None, is_tiled: bool = False) -> Image:
        """Return the picture. Same request, same weights: same picture; the global random state is left
        alone.
        """
        return self.draw_all([request], bring, is_tiled)[0]

    def draw_all(
        self, requests: Sequence[Request], bring: Bring | None = None, is_tiled: bool = False
    ) -> list[Image]:
        """Return the pictures of requests that differ only in prompt, negative prompt and seed.

        With `bring` it takes more time and less memory: it is asked to have only those parts on the device
        that are at work. `is_tiled`: large pictures are decoded in tiles.
        """
        first, bring = requests[0], bring or self._bring
        with torch.no_grad(), evaluating(self.parts), self._autocast():
            bring(self.parts.facts.encoders)
            prompts = self._embed(requests)
            bring((DENOISER,))
            latents = self.pipeline(
                **prompts,
                width=first.width,
                height=first.height,
                num_inference_steps=first.steps,
                guidance_scale=first.guidance,
                **_rescaled(self.parts),
                generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
                output_type="latent",
            ).images
        bring((VAE,))
        with torch.no_grad(), _tiled(self.parts.vae, is_tiled):
            return self._decode(latents)

    def elsewhere(self, device: str) -> Sampler:
        """Return a sampler that draws on another device, once the parts are there."""
        return Sampler(self.family, self.parts, device, self.autocast)

    def _embed(self, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        """What the pipeline is told of the prompts, and of the negative prompts."""
        first, texts = requests[0], [r.prompt for r in requests] + [r.negative for r in requests]
        chunks = chunks_needed(texts, lambda text: self.family.count_tokens(self.parts, text))
        tokens = self.family.tokenize(self.parts, texts, chunks)
        tokens = {name: ids.to(self.device) for name, ids in tokens.items()}
        size = [first.height, first.width, 0, 0, first.height, first.width]
        sizes = torch.tensor([size] * len(texts), dtype=torch.float32, device=self.device)
        said = self.family.encode_text(self.parts, tokens, first.clip_skip, sizes)
        told = {"prompt_embeds": said.prompt_embeds}
        if said.pooled is not None:
            told["pooled_prompt_embeds"] = said.pooled
        wanted = {name: both[: len(requests)] for name, both in told.items()}
        return wanted | {f"negative_{name}": both[len(requests) :] for name, both in told.items()}

    def _decode(self, latents: torch.Tensor) -> list[Image]:
        """One at a time: a VAE at work holds more than anything else, and gains nothing from batches."""
        vae = self.parts.vae
        shift = vae.config.shift_factor or 0.0
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + shift
        pixels = torch.cat([vae.decode(one, return_dict=False)[0] for one in scaled.split(1)])
        return self.pipeline.image_processor.postprocess(pixels.float(), output_type="pil")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            torch.device(self.device).type, self.autocast, enabled=self.autocast is not None
        )


def _rescaled(parts: Parts) -> dict[str, float]:
    """What keeps guidance from burning the colours of a model that starts from pure noise."""
    return {"guidance_rescale": RESCALE} if parts.schedule.has_zero_terminal else {}


def _leave(names: Sequence[str]) -> None:
    """Every part is where it should be."""


@contextmanager
def _tiled(vae: torch.nn.Module, is_on: bool) -> Iterator[None]:
    if not is_on:
        yield
        return
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


@contextmanager
def evaluating(parts: Parts) -> Iterator[None]:
    """Dropout off inside; each module goes back to the mode it was in."""
    modes = {name: module.training for name, module in parts.modules.items()}
    try:
        for module in parts.modules.values():
            module.eval()
        yield
    finally:
        for name, module in parts.modules.items():
            module.train(modes[name])
