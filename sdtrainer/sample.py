"""Drawing pictures with the live modules, while training and after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .seams import Family, Parts

if TYPE_CHECKING:
    from PIL.Image import Image


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
    """Draws requests with a family's pipeline over live modules; the pipeline is built once."""

    def __init__(self, family: Family, parts: Parts, device: str, autocast: torch.dtype | None) -> None:
        self.family, self.parts, self.device, self.autocast = family, parts, device, autocast
        self.pipeline = family.pipeline(parts)
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, request: Request) -> Image:
        """Return the picture. Same request, same weights: same picture; the global random state is left alone."""
        with torch.no_grad(), evaluating(self.parts), self._autocast():
            wanted, unwanted = self._embed(request)
            latents = self.pipeline(
                prompt_embeds=wanted,
                negative_prompt_embeds=unwanted,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=torch.Generator("cpu").manual_seed(request.seed),
                output_type="latent",
            ).images
        with torch.no_grad():
            return self._decode(latents)

    def _embed(self, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(self.family.count_tokens(self.parts, t) for t in (request.prompt, request.negative))
        chunks = max(1, -(-longest // 75))
        tokens = self.family.tokenize(self.parts, [request.prompt, request.negative], chunks)
        tokens = {name: ids.to(self.device) for name, ids in tokens.items()}
        size = [request.height, request.width, 0, 0, request.height, request.width]
        sizes = torch.tensor([size] * 2, dtype=torch.float32, device=self.device)
        embeds = self.family.encode_text(self.parts, tokens, request.clip_skip, sizes).prompt_embeds
        return embeds[:1], embeds[1:]

    def _decode(self, latents: torch.Tensor) -> Image:
        vae = self.parts.vae
        shift = vae.config.shift_factor or 0.0
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor + shift, return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(pixels.float(), output_type="pil")[0]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            torch.device(self.device).type, self.autocast, enabled=self.autocast is not None
        )


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
