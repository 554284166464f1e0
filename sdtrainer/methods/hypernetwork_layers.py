"""The networks of a hypernetwork, and where they stand: before the keys and the values of every attention.

A network serves each attention whose context has its width, whether the context is a text or the picture
itself. Knows nothing of settings and files.

Shapes: contexts (B, T, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from ..formats.hypernetwork import Architecture

NAME = "hypernetwork"
Pair = tuple[nn.Module, nn.Module]

INITS: Mapping[str, Callable[[torch.Tensor, str], torch.Tensor]] = {
    "Normal": lambda weight, ramp: nn.init.normal_(weight, std=0.01),
    "XavierUniform": lambda weight, ramp: nn.init.xavier_uniform_(weight),
    "XavierNormal": lambda weight, ramp: nn.init.xavier_normal_(weight),
    "KaimingUniform": lambda weight, ramp: nn.init.kaiming_uniform_(weight, nonlinearity=ramp),
    "KaimingNormal": lambda weight, ramp: nn.init.kaiming_normal_(weight, nonlinearity=ramp),
}
"""By the names of A1111. `ramp` is the activation that Kaiming's rule is told of."""


class Network(nn.Module):
    """x + strength * linear(x), computed in the precision of the weights."""

    def __init__(self, linear: nn.Sequential, strength: float = 1.0) -> None:
        super().__init__()
        self.linear, self.strength = linear, strength

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        change = self.linear(context.to(self.linear[0].weight.dtype))
        return context + (self.strength * change).to(context.dtype)


class Networks(nn.Module):
    """A pair of networks, for keys and for values, by width of context."""

    def __init__(self, pairs: Mapping[int, tuple[Network, Network]]) -> None:
        super().__init__()
        self.pairs = nn.ModuleDict({str(width): nn.ModuleList(pair) for width, pair in pairs.items()})
        self.hooks: list[Any] = []

    def by_width(self) -> dict[int, Pair]:
        return {int(width): (pair[0], pair[1]) for width, pair in self.pairs.items()}  # type: ignore[index]


def new(architecture: Architecture, width: int, weight_init: str) -> Network:
    """Make a network of random weights and biases of 0. As in A1111 layer norms too begin near 0, at a spread
    of 0.01, so that what is added is small whatever stands before them.
    """
    linear = _built(architecture, width)
    ramp = "leaky_relu" if architecture.activation == "leakyrelu" else "relu"
    for layer in linear:
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            INITS["Normal" if isinstance(layer, nn.LayerNorm) else weight_init](layer.weight, ramp)
            nn.init.zeros_(layer.bias)
    return Network(linear)


def loaded(
    architecture: Architecture, width: int, state: Mapping[str, torch.Tensor], strength: float = 1.0
) -> Network:
    """Make a network of the weights in a file, in fp32.

    Raises: RuntimeError if names or shapes are other than the architecture says.
    """
    with torch.device("meta"):  # nothing is allocated for what a damaged file may claim
        network = Network(_built(architecture, width), strength)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return network


def text_and_image_widths(denoiser: nn.Module, text_width: int) -> tuple[list[int], list[int]]:
    """Return the widths of contexts that are a text, and of those that are the picture itself, ascending."""
    found = {attention.to_k.in_features for attention in attentions(denoiser)}
    own = {a.to_k.in_features for a in attentions(denoiser) if not a.is_cross_attention}
    return sorted(found & {text_width}), sorted(own)


def put_before(denoiser: nn.Module, networks: Networks, name: str = NAME) -> None:
    """Make `networks` a part of the denoiser, before the layers that make keys and values of contexts."""
    networks.to(next(denoiser.parameters()).device)
    pairs = networks.by_width()
    for attention in attentions(denoiser):
        pair = pairs.get(attention.to_k.in_features, ())
        for layer, network in zip((attention.to_k, attention.to_v), pair, strict=False):
            networks.hooks.append(layer.register_forward_pre_hook(partial(_through, network)))
    denoiser.add_module(name, networks.train(denoiser.training))


def take_away(denoiser: nn.Module, name: str = NAME) -> None:
    """Undo `put_before`."""
    for hook in denoiser.get_submodule(name).hooks:
        hook.remove()
    delattr(denoiser, name)


def attentions(denoiser: nn.Module) -> Iterator[Any]:
    return (module for module in denoiser.modules() if isinstance(module, Attention))


def _built(architecture: Architecture, width: int) -> nn.Sequential:
    layers = architecture.layers(width)
    return nn.Sequential(*(getattr(nn, kind)(*arguments) for kind, *arguments in layers))


def _through(network: nn.Module, layer: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
    context, *rest = given
    return (network(context), *rest)
