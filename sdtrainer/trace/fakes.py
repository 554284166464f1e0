"""A base model with its method, as tensors that have shape, type and device but no bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import families
from ..activations import Size
from ..diffusion import Schedule
from ..methods import method_of
from ..plan import Phase, Plan
from ..seams import T5, T5_TOKENS, Batch, Conditioning, Family, Latents, Parts
from ..training.setup import DTYPES, arm

WINDOW = 77


@dataclass(frozen=True)
class Shape:
    """`height` and `width` count latents."""

    batch: int
    height: int
    width: int
    texts: int = 1

    def size(self, trained: int) -> Size:
        return Size(self.batch, self.height * self.width, self.texts, trained)


@contextmanager
def model(plan: Plan, phase: Phase) -> Iterator[tuple[Family, Parts]]:
    """Give the model as the plan has it in this phase: with the method from training on. Tensors made inside
    are fake, too.
    """
    family, method = families.family_of(plan.facts), method_of(plan.config.method.kind)
    modules = family.skeleton(plan.facts)
    for module in modules.values():
        module.requires_grad_(False).eval()
    parts = Parts(plan.facts, modules, {}, Schedule(torch.empty(0)))
    if phase == "train":
        with torch.device("meta"):
            method.attach(parts, plan.config.method, plan.lrs)
        arm(parts, plan)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part, module in modules.items():
            _fill(module, DTYPES[plan.place(part, phase).precision], DTYPES[plan.trained_as])
        parts.schedule = Schedule.from_config(plan.facts.config["scheduler"])
        yield family, parts


def _fill(module: torch.nn.Module, dtype: torch.dtype, trained_dtype: torch.dtype) -> None:
    """Put fake tensors in place of a module's own."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                kept = trained_dtype if parameter.requires_grad else dtype
                made = torch.empty(parameter.shape, dtype=kept)
                owner._parameters[name] = torch.nn.Parameter(made, parameter.requires_grad)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = torch.empty(
                    buffer.shape, dtype=dtype if buffer.is_floating_point() else buffer.dtype
                )


def batch(plan: Plan, family: Family, parts: Parts, shape: Shape) -> Batch:
    """Return what one step gets."""
    facts, scale = plan.facts, plan.facts.pixels_per_latent
    latents = pixels = None
    if plan.cache_latents:
        of_latents = (shape.batch, facts.latent_channels, shape.height, shape.width)
        latents = Latents(torch.empty(of_latents), torch.empty(of_latents))
    else:
        pixels = torch.empty(shape.batch, 3, shape.height * scale, shape.width * scale)
    text = conditioning(plan, family, parts, shape) if plan.cache_text else None
    ids = None if plan.cache_text else tokens(plan, shape)
    weight, sizes = torch.empty(shape.batch), torch.empty(shape.batch, 6)
    return Batch(weight, sizes, latents, pixels, text, ids)


def tokens(plan: Plan, shape: Shape) -> dict[str, torch.Tensor]:
    lengths = {name: T5_TOKENS if name == T5 else shape.texts * WINDOW for name in plan.facts.encoders}
    return {name: torch.empty(shape.batch, length, dtype=torch.long) for name, length in lengths.items()}


def conditioning(plan: Plan, family: Family, parts: Parts, shape: Shape) -> Conditioning:
    """Return captions as this family encodes them."""
    sizes = torch.empty(shape.batch, 6)
    with torch.no_grad(), autocast(plan):
        return family.encode_text(parts, tokens(plan, shape), plan.config.base.clip_skip, sizes)


def autocast(plan: Plan, enabled: bool = True) -> torch.autocast:
    """Mixed precision as in training, on the processor, where fake tensors lie."""
    return torch.autocast("cpu", DTYPES[plan.precision], enabled=enabled and plan.precision != "fp32")
