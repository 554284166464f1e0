"""Adapter files for Stable Diffusion 3 under the names of its original layout, as sd-scripts trains it.

There query, key and value are one layer, whose rows are theirs in this order: each third of the rows of what
comes last (`lora_up` and the like) with all of what comes before it gives the change of one of them, exactly.
Where the last norms have shift before scale, halves of the rows change places. Shapes: R rank, D width;
lora_down (R, D), lora_up (3 D, R).

Source of the names: networks/lora_sd3.py in kohya-ss/sd-scripts; of the layers, mmdit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import mmdit

Words = Mapping[str, Any]
"""The tensors of one layer, deferred or not, by the words of lycoris.py."""

_STARTS = ("lora_unet_", "lycoris_", "diffusion_model.")
"""How files begin the name of a layer; all but the last write `_` for `.`."""
_BY_ROW = frozenset({"lora_up", "hada_w1_a", "hada_w2_a", "diff", "diff_b", "dora_scale"})
"""What has a row for each row of the weight."""
_SHARED = frozenset({"lora_down", "alpha", "hada_w1_b", "hada_w2_b"})


def translated(layers: Mapping[str, Words], config: Mapping[str, Any]) -> dict[str, Words]:
    """Return the layers of a file by name, those with names of the original layout under diffusers'.

    What cannot be divided (Kronecker and Tucker products, magnitudes by column) keeps its name.
    """
    known = _known(config)
    found: dict[str, Words] = {}
    for name, words in layers.items():
        paths, is_turned = known.get(name, ((), False))
        needs_rows = is_turned or len(paths) > 1
        if not paths or (needs_rows and not _can_be_divided(words)):
            found[name] = words
            continue
        pieces = _turned(words) if is_turned else _divided(words, len(paths))
        found |= {f"transformer.{path}": piece for path, piece in zip(paths, pieces, strict=True)}
    return found


def _known(config: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], bool]]:
    """By name in the file: the paths of the layers in diffusers, and whether their halves change places."""
    found = {}
    for ours, theirs in mmdit.names_of(config).items():
        layer = mmdit.thirds(ours), ours in mmdit.turned(config)
        for start in _STARTS:
            inside = theirs if start.endswith(".") else theirs.replace(".", "_")
            found[start + inside] = layer
    return found


def _can_be_divided(words: Words) -> bool:
    rows = {words[word].shape[0] for word in words.keys() & _BY_ROW}
    return words.keys() <= _BY_ROW | _SHARED and len(rows) == 1 and rows.pop() > 1


def _divided(words: Words, count: int) -> list[Words]:
    if count == 1:
        return [words]
    pieces = {word: tensor.chunk(count) for word, tensor in words.items() if word in _BY_ROW}
    return [{**words, **{word: piece[n] for word, piece in pieces.items()}} for n in range(count)]


def _turned(words: Words) -> list[Words]:
    import torch

    rows = {word: torch.cat(t.chunk(2)[::-1]) for word, t in words.items() if word in _BY_ROW}
    return [{**words, **rows}]
