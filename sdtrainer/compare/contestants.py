"""The contestants: a row for each way of fine-tuning, with its settings and three learning rates to choose
from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..section import UserError

ALL = "all"


@dataclass(frozen=True)
class Contestant:
    """`settings` are laid over those that all share; `rates` are learning rates, the usual one in the middle.

    `is_whole`: its file is a whole model, which cannot be put on another base.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    rates: tuple[float, float, float]
    is_whole: bool = False


_CONVOLUTIONS = {"method.targets": "with convolutions"}
_LORA = {"method.kind": "lora", **_CONVOLUTIONS}
_FULL = {"method.kind": "full"}
_PRIOR = {
    "prior.class_prompt": "a robot",
    "prior.images": 48,
    "prior.steps": 10,
    "prior.guidance": 4.0,
}
_WORD = {"method.kind": "textual_inversion", "method.tokens": ["zib"], "method.vectors": 4}
"""The captions' own word is the one that is learnt: prompts are the same for all."""
_BEGINNING = {"method.init": ["robot"]}
_NORM = {"method.norm_weight": 10.0}

CONTESTANTS: tuple[Contestant, ...] = (
    Contestant("lora", "LoRA", _LORA, (2e-4, 6e-4, 1.8e-3)),
    Contestant("loha", "LoHa", {"method.kind": "loha", **_CONVOLUTIONS}, (1e-3, 3e-3, 9e-3)),
    Contestant("lokr", "LoKr", {"method.kind": "lokr", **_CONVOLUTIONS}, (6e-4, 1.8e-3, 5.4e-3)),
    Contestant("textual_inversion", "Textual inversion", _WORD | _BEGINNING | _NORM, (3e-3, 1e-2, 3e-2)),
    Contestant(
        "textual_inversion_random",
        "Textual inversion, begun from random numbers",
        _WORD | _NORM | {"method.init": ["random"]},
        (3e-3, 1e-2, 3e-2),
    ),
    Contestant(
        "textual_inversion_free",
        "Textual inversion, lengths left free",
        _WORD | _BEGINNING,
        (3e-3, 1e-2, 3e-2),
    ),
    Contestant("hypernetwork", "Hypernetwork", {"method.kind": "hypernetwork"}, (3e-4, 1e-3, 3e-3)),
    Contestant(
        "cross_attention",
        "Partial fine-tuning (cross-attention)",
        _FULL | {"method.layers": "cross-attention"},
        (3e-4, 1e-3, 3e-3),
        is_whole=True,
    ),
    Contestant("full", "Full fine-tuning", _FULL, (3e-5, 1e-4, 3e-4), is_whole=True),
    Contestant(
        "dreambooth",
        "DreamBooth (full, with class images)",
        _FULL | _PRIOR,
        (3e-5, 1e-4, 3e-4),
        is_whole=True,
    ),
    Contestant("lora_prior", "LoRA with class images", _LORA | _PRIOR, (2e-4, 6e-4, 1.8e-3)),
)


def choose(words: str) -> tuple[Contestant, ...]:
    """Return the contestants named in "lora,full", or all; each once, in the order of the table.

    Raises:
        UserError: one is not known; the choices are named.
    """
    known = {row.name: row for row in CONTESTANTS}
    names = list(known) if words.strip() == ALL else [word.strip() for word in words.split(",")]
    for name in names:
        if name not in known:
            raise UserError(
                f"There is no method '{name}' to compare.", f"Choose {ALL} or {', '.join(known)}."
            )
    return tuple(row for row in known.values() if row.name in names)
