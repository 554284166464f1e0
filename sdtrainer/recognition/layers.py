"""An adapter file layer by layer: where each lies in the model, how large a change it makes, and which are
broken.

Reads the tensors of one layer at a time. How large a change is: |delta W| by Frobenius' norm; `relative` is
that over the root of the number of weights, the usual size of one number of delta W; `gain` is |delta W| over
the root of its rows: by how much an input of mean square 1 is changed. The layers of a trained model have
gains around 1, so that a change far above that overrides the layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..formats import adapter_file, lycoris
from ..formats.safetensors_file import read_header
from .adapters import part_of, target_of

if TYPE_CHECKING:
    import torch

State = Literal["fine", "dead", "too large", "not numbers"]
TOO_LARGE = 4.0
"""A gain above which a layer overrides the model; those of usual adapters are below 0.5."""

_PLACES: tuple[tuple[str, str], ...] = (
    (r"down_blocks_(\d+)", "down {}"),
    (r"up_blocks_(\d+)", "up {}"),
    (r"mid_block|middle_block", "middle"),
    (r"input_blocks_(\d+)", "in {}"),
    (r"output_blocks_(\d+)", "out {}"),
    (r"joint_blocks_(\d+)", "block {}"),
    (r"layers_(\d+)", "layer {}"),
    (r"transformer_blocks_(\d+)", "block {}"),
    (r"token_embedding", "words"),
    (r"", "ends"),
)
"""Where a layer lies, by a piece of its name with _ for every dot; the first that fits counts."""
_ORDER = ("ends", "words", "layer", "in", "down", "middle", "up", "out", "block")


@dataclass(frozen=True)
class Layer:
    """One changed layer. `alpha` is as the file has it; `rank` is 0 where it has none."""

    name: str
    part: str
    place: str
    kind: str
    rank: int
    alpha: float
    norm: float
    relative: float
    gain: float
    state: State


def names_of(path: Path) -> list[str]:
    """Return the names of the layers that an adapter file changes. Reads its header."""
    return list(_layers(path))


def measure(path: Path) -> Iterator[Layer]:
    """Yield the layers in the file's order, one by one. Only .safetensors."""
    from safetensors import safe_open

    metadata = read_header(path).metadata
    with safe_open(path, framework="pt") as file:
        for name, words in _layers(path).items():
            tensors = {word: file.get_tensor(key) for word, key in words.items()}
            part, _, inside = name.partition(".")
            alone = adapter_file.with_header_alphas({part: {inside: tensors}}, metadata)
            yield _layer(name, alone[part][inside])


def in_order(layers: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the places of layers in the order in which a picture or a prompt passes through them."""
    return sorted({str(layer["place"]) for layer in layers}, key=_rank)


def _layers(path: Path) -> dict[str, dict[str, str]]:
    """The file's key by layer and word."""
    keys = {key: key for key in read_header(path).tensors}
    return {name: words for name, words in adapter_file.by_name(keys).items() if "" not in words}


def _layer(name: str, tensors: Mapping[str, torch.Tensor]) -> Layer:
    rows, columns = lycoris.extent(tensors)
    rank = lycoris.rank(tensors)
    try:
        norm = lycoris.norm(tensors)
    except ValueError:  # a bias alone
        norm = _length(tensors)
        rows, columns = rows or 1, columns or 1
    gain = norm / math.sqrt(max(1, rows))
    return Layer(
        name,
        part_of(name),
        _place(name),
        target_of(name),
        rank,
        float(tensors["alpha"]) if "alpha" in tensors else float(rank),
        norm,
        norm / math.sqrt(max(1, rows * columns)),
        gain,
        _state(tensors, norm, gain),
    )


def _state(tensors: Mapping[str, torch.Tensor], norm: float, gain: float) -> State:
    if not math.isfinite(norm) or not all(bool(t.isfinite().all()) for t in tensors.values()):
        return "not numbers"
    if norm == 0:
        return "dead"
    return "too large" if gain > TOO_LARGE else "fine"


def _length(tensors: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def _place(name: str) -> str:
    plain = name.replace(".", "_")
    found = ((words, re.search(pattern, plain)) for pattern, words in _PLACES)
    return next(words.format(*match.groups()) for words, match in found if match)


def _rank(place: str) -> tuple[int, int]:
    word, _, number = place.partition(" ")
    return _ORDER.index(word), int(number or 0)
