"""The hypernetwork file of A1111 (.pt): how its networks are built, and what they are called inside.

Each whole number among the keys is the width of a context and holds two state dicts, one network for the keys
of an attention and one for its values. A tensor is called `linear.<i>.weight`, where i counts linear layers,
activations, layer norms and dropouts alike, so the text beside it that says how a network is built must be
right. A1111 and ComfyUI pass over text keys that they do not know. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..section import UserError
from . import legacy_pt, safetensors_file

if TYPE_CHECKING:
    import torch

    from ..seams import Precision

    State = Mapping[str, torch.Tensor]

WeightInit = Literal["Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"]
Activation = Literal[
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish",
    "celu", "gelu", "hardshrink", "hardsigmoid", "hardtanh", "logsigmoid", "prelu", "relu6", "rrelu", "selu",
    "silu", "softplus", "softshrink", "tanhshrink",
]  # fmt: skip
"""By the names of A1111, those first that ComfyUI knows too (0.3.64). Left out is what A1111 lists but cannot
work: glu and threshold fail there, and the softmax kind would mix the pictures of a batch."""

CLASSES: Mapping[str, str] = {
    "relu": "ReLU", "leakyrelu": "LeakyReLU", "elu": "ELU", "swish": "Hardswish", "hardswish": "Hardswish",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "softsign": "Softsign", "mish": "Mish", "celu": "CELU",
    "gelu": "GELU", "hardshrink": "Hardshrink", "hardsigmoid": "Hardsigmoid", "hardtanh": "Hardtanh",
    "logsigmoid": "LogSigmoid", "prelu": "PReLU", "relu6": "ReLU6", "rrelu": "RReLU", "selu": "SELU",
    "silu": "SiLU", "softplus": "Softplus", "softshrink": "Softshrink", "tanhshrink": "Tanhshrink",
}  # fmt: skip
"""The class of torch.nn behind each name; linear has none, and takes no place in the count."""

_OLD_DROPOUT = 0.3
"""What files without `dropout_structure` mean by `use_dropout`."""
_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}


@dataclass(frozen=True)
class Architecture:
    """How each network of a file is built.

    `factors` are the widths on the way through, as multiples of the context's: the first and the last are 1.
    `dropout` is the chance behind the layer that leads to each factor: the first and the last are 0.
    """

    factors: tuple[float, ...] = (1.0, 2.0, 1.0)
    activation: str = "linear"
    activate_output: bool = False
    layer_norm: bool = False
    dropout: tuple[float, ...] = (0.0, 0.0, 0.0)

    def layers(self, width: int) -> list[tuple[Any, ...]]:
        """Return the layers of the network for contexts of this width: (class of torch.nn, *arguments)."""
        found: list[tuple[Any, ...]] = []
        for place, (before, after) in enumerate(pairwise(int(width * factor) for factor in self.factors), 1):
            is_last = place == len(self.factors) - 1
            found.append(("Linear", before, after))
            if self.activation != "linear" and (self.activate_output or not is_last):
                found.append((CLASSES[self.activation],))
            if self.layer_norm:
                found.append(("LayerNorm", after))
            if self.dropout[place]:
                found.append(("Dropout", self.dropout[place]))
        return found


@dataclass(frozen=True)
class Hypernetwork:
    """What a file holds: for each width of context the networks for keys and for values."""

    architecture: Architecture
    networks: Mapping[int, tuple[State, State]]


def dropout_places(factors: tuple[float, ...], chance: float, before_last: bool) -> tuple[float, ...]:
    """Return `dropout` for a network: behind every layer but the last, and the last but one only if asked."""
    between = [chance] * max(len(factors) - 3, 0)
    return (0.0, *between, *((chance if before_last else 0.0,) if len(factors) > 2 else ()), 0.0)


def is_hypernetwork(path: Path) -> bool:
    """Return whether this is a hypernetwork, from the names and kinds of what it holds.

    Raises: UserError naming a .pt file that cannot be read.
    """
    return path.suffix == ".pt" and path.is_file() and bool(networks_in(legacy_pt.read(path)))


def read(path: Path) -> Hypernetwork:
    """Read a file of ours or of A1111's; what an older one leaves unsaid is taken as A1111 takes it.

    Raises: UserError naming the file if it is none, or is built in a way that is not known here.
    """
    content = legacy_pt.read(path)
    pairs = networks_in(content)
    if not pairs:
        raise UserError(f"{path.name} is no hypernetwork.", "Choose a hypernetwork, as A1111 makes them.")
    try:
        architecture = _architecture(content)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path.name} does not say rightly how it is built ({error}).", "Choose another hypernetwork."
        ) from error
    return Hypernetwork(architecture, pairs)


def write(
    path: Path, hypernetwork: Hypernetwork, weight_init: str, precision: Precision, about: Mapping[str, Any]
) -> None:
    """Write a file, whole or not at all. `about` is further plain values by name: name, step, sd_checkpoint.

    Raises: UserError if a value is too large for the precision or no number, or if the disk refuses.
    """
    built = hypernetwork.architecture
    networks: dict[str | int, Any] = {
        width: tuple(_stored(state, precision) for state in pair)
        for width, pair in hypernetwork.networks.items()
    }
    words = {
        "layer_structure": list(built.factors),
        "activation_func": built.activation,
        "activate_output": built.activate_output,  # A1111 and ComfyUI take its absence differently
        "is_layer_norm": built.layer_norm,
        "weight_initialization": weight_init,
        "dropout_structure": list(built.dropout),
        "last_layer_dropout": len(built.dropout) > 2 and built.dropout[-2] > 0,
        # A1111 goes by dropout_structure; ComfyUI, told of dropout here, would drop while drawing too
        "use_dropout": False,
    }
    legacy_pt.write(path, networks | words | dict(about))


def networks_in(content: Mapping[Any, Any]) -> dict[int, tuple[State, State]]:
    """Return the networks of a file by the width of their context; none if it is no hypernetwork."""
    return {
        key: (_named(value[0]), _named(value[1]))
        for key, value in content.items()
        if type(key) is int and isinstance(value, tuple | list) and len(value) == 2
        if all(isinstance(state, Mapping) and state for state in value)
    }


def _named(state: Mapping[str, Any]) -> State:
    """The first hypernetworks of all had two layers without a number of their own."""
    parts = ((str(name).partition("."), tensor) for name, tensor in state.items())
    return {"".join((_OLD_NAMES.get(head, head), dot, rest)): tensor for (head, dot, rest), tensor in parts}


def _architecture(content: Mapping[Any, Any]) -> Architecture:
    factors = tuple(float(factor) for factor in content.get("layer_structure") or (1, 2, 1))
    activation = str(content.get("activation_func") or "linear")
    if activation not in (*get_args(Activation), *CLASSES):
        raise ValueError(f"activation {activation} is not known")
    if len(factors) < 2 or (factors[0], factors[-1]) != (1.0, 1.0) or min(factors) <= 0:
        raise ValueError(f"layer structure {factors}")
    chance = _OLD_DROPOUT if content.get("use_dropout") else 0.0
    dropout = content.get("dropout_structure")
    if dropout is None:
        dropout = dropout_places(factors, chance, bool(content.get("last_layer_dropout")))
    if len(dropout) != len(factors) or not all(0 <= chance < 1 for chance in dropout):
        raise ValueError(f"dropout {dropout}")
    return Architecture(
        factors=factors,
        activation=activation,
        activate_output=bool(content.get("activate_output", True)),
        layer_norm=bool(content.get("is_layer_norm")),
        dropout=tuple(float(chance) for chance in dropout),
    )


def _stored(state: State, precision: Precision) -> State:
    return {name: safetensors_file.as_stored(name, tensor, precision) for name, tensor in state.items()}
