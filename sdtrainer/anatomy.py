"""Anatomy: the blocks of a model from its input to its output, and how many numbers of each are trained.

Read off the names that diffusers and transformers give to parameters; knows no method and no memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .seams import VAE

if TYPE_CHECKING:
    import torch

Kind = Literal["attention", "feed-forward", "convolutions", "words", "others"]
KINDS: tuple[Kind, ...] = ("attention", "feed-forward", "convolutions", "words", "others")

_PLACES = (
    (r"down_blocks\.(\d+)\.", "down {}"),
    (r"mid_block\.", "middle"),
    (r"up_blocks\.(\d+)\.", "up {}"),
    (r"transformer_blocks\.(\d+)\.", "block {}"),
    (r"(?:conv_in|pos_embed|context_embedder)\.", "in"),
    (r"(?:conv_(?:norm_)?out|norm_out|proj_out)\.", "out"),
    (r"layers\.(\d+)\.", "layer {}"),
    (r"block\.(\d+)\.", "layer {}"),  # of T5
    (r"(?:token_embedding|shared)\.", "words"),
)
_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"(?:token_embedding|shared)\.", "words"),
    (r"(?:ff|ff_context|mlp|norm3|layer_norm2|DenseReluDense)\.", "feed-forward"),
    (r"(?:attentions|attn\d?|self_attn|layer_norm1|SelfAttention)\.", "attention"),
    (r"(?:resnets|downsamplers|upsamplers|conv_in|conv_norm_out|conv_out)\.", "convolutions"),
)
_ORDER = ("in", "down", "middle", "up", "block", "out", "words", "layer", "ends")


@dataclass(frozen=True)
class Block:
    """`total` numbers of the base model of one kind in one place, and `trained` ones that learn there.

    An adapter's trained numbers come beside the model's own, so they are no part of `total`.
    """

    part: str
    place: str
    kind: Kind
    total: int
    trained: int


Counts = Counter[tuple[str, str, Kind]]


def count(modules: Mapping[str, torch.nn.Module], trained_only: bool = False) -> Counts:
    """Count the numbers of a model by part, place and kind; those used in several places are shared out."""
    counts: Counts = Counter()
    for part, module in modules.items():
        if part == VAE:  # no method trains it
            continue
        for parameter, places in _uses(module):
            if parameter.requires_grad or not trained_only:
                each, rest = divmod(parameter.numel(), len(places))
                counts.update({(part, *place): each * n for place, n in Counter(places).items()})
                counts[part, *places[0]] += rest
    return counts


def blocks(base: Counts, trained: Counts) -> tuple[Block, ...]:
    """Join both counts, in the order in which a picture passes through them."""
    keys = sorted(base.keys() | trained.keys(), key=lambda key: (key[0], *_rank(key[1]), KINDS.index(key[2])))
    return tuple(Block(*key, base[key], trained[key]) for key in keys)


def where(name: str) -> tuple[str, Kind]:
    """Return the place and kind of a parameter: ("down 1", "attention")."""
    found = ((words, _find(pattern, name)) for pattern, words in _PLACES)
    place = next((words.format(*match.groups()) for words, match in found if match), "ends")
    return place, next((kind for pattern, kind in _KINDS if _find(pattern, name)), "others")


def totals(found: Iterable[Block]) -> Iterator[tuple[Kind, int, int]]:
    """Yield (kind, total, trained) of the kinds there are."""
    listed = list(found)
    for kind in KINDS:
        if of_kind := [b for b in listed if b.kind == kind]:
            yield kind, sum(b.total for b in of_kind), sum(b.trained for b in of_kind)


def _uses(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Parameter, list[tuple[str, Kind]]]]:
    """Yield every parameter with the places that use it: where it lies, or where a hook takes it."""
    hooked = [
        (parameter, where(f"{path}."))
        for path, layer in module.named_modules()
        for network in _hooked(layer)
        for parameter in network.parameters()
    ]
    uses: dict[int, tuple[torch.nn.Parameter, list[tuple[str, Kind]]]] = {}
    for parameter, place in hooked:
        uses.setdefault(id(parameter), (parameter, []))[1].append(place)
    for name, parameter in module.named_parameters():
        uses.setdefault(id(parameter), (parameter, [where(name)]))
    yield from uses.values()


def _hooked(layer: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the networks that a layer's input passes through first."""
    given = [thing for hook in layer._forward_pre_hooks.values() for thing in getattr(hook, "args", ())]
    return [thing for thing in given if callable(getattr(thing, "parameters", None))]


def _find(pattern: str, name: str) -> re.Match[str] | None:
    return re.search(rf"(?:^|\.){pattern}", name)


def _rank(place: str) -> tuple[int, int]:
    word, _, number = place.partition(" ")
    return _ORDER.index(word), int(number or 0)
