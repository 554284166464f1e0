"""What LoHa and LoKr share: their common settings, and the LyCORIS file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..formats import lycoris
from ..formats.naming import naming_of
from ..seams import GOALS, Facts, LearningRates, Parts
from ..section import UserError, knob
from . import targets
from .adapter import NAME, Adapter, by_part
from .targets import AdapterSection

if TYPE_CHECKING:
    import torch


class LycorisSection(AdapterSection):
    """Settings of LoHa and LoKr."""

    dropout: float = knob(
        0.0,
        "Dropout",
        "Part of each layer's outputs whose adapter is left out at random while training. 0 is usual; 0.1 "
        "can help against learning by heart when there are few images.",
        ge=0,
        le=0.5,
    )


class LycorisAdapter(Adapter):
    formats = ("webui",)  # diffusers' pipelines for Stable Diffusion read neither
    lrs = dict.fromkeys(GOALS, LearningRates(2e-4, 2e-4))

    def suits(self, section: Any, facts: Facts) -> None:
        super().suits(section, facts)
        if section.tucker and section.targets not in ("with convolutions", "own list"):
            raise UserError(
                f"Tucker convolutions: '{section.targets}' has no convolutions that this could divide.",
                "Switch it off, or choose 'with convolutions' as the layers to train.",
                "method.tucker",
            )

    def state(
        self, parts: Parts, section: Any, layout: str
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        adapters = {
            part: {path: self.tensors(layer) for path, layer in attached.items()}
            for part, attached in by_part(parts).items()
        }
        return lycoris.to_lycoris(adapters, naming_of(parts.facts)), {}

    def tensors(self, layer: Any) -> dict[str, torch.Tensor]:
        """Return the tensors of the file for one peft layer, by LyCORIS' word."""
        import torch

        stored = weights(layer)
        return stored | {"alpha": torch.tensor(layer.scaling[NAME] * lycoris.rank(stored))}

    def provenance(self, section: Any) -> dict[str, Any]:
        args = {"algo": self.kind, "preset": targets.LYCORIS_PRESETS.get(section.targets, section.targets)}
        if section.targets == "with convolutions":
            args |= {"conv_dim": section.rank, "conv_alpha": section.alpha}
        args |= {"use_tucker": section.tucker, "rank_dropout": section.dropout}
        return {"rank": section.rank, "alpha": section.alpha, "network_args": args}


def weights(layer: Any) -> Mapping[str, torch.Tensor]:
    """Return a peft layer's trained tensors by name; peft's names and shapes are LyCORIS'."""
    named = {word: getattr(layer, word) for word in layer.adapter_layer_names}
    return {word: held[NAME].detach() for word, held in named.items() if NAME in held}
