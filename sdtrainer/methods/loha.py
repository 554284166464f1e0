"""LoHa: delta W = (B1 A1) * (B2 A2) * alpha / r, a product by elements of two LoRAs (Hyeon-Woo et al. 2021,
FedPara, https://arxiv.org/abs/2108.06098, proposition 1): rank up to r^2 for twice the numbers of rank r.
"""

from __future__ import annotations

from typing import Any, Literal

from ..seams import Card, Parts, Precision
from ..section import knob
from .adapter import NAME, PeftChoice, layers
from .lycoris_adapter import LycorisAdapter, LycorisSection

FEW_OUTPUTS = 16


class LohaSection(LycorisSection):
    """Two pairs of thin matrices beside each chosen layer, multiplied element by element."""

    kind: Literal["loha"] = "loha"
    rank: int = knob(
        8,
        "Rank",
        "How much each layer may learn: the adapter reaches rank x rank, so 4-8 suits a subject and 8-16 a "
        "style. Above 32 training easily falls apart.",
        level="basic",
        ge=1,
        le=128,
    )
    alpha: float = knob(
        4.0,
        "Alpha",
        "Strength: what is learnt is multiplied by alpha / rank. Half the rank is a good start.",
        level="basic",
        gt=0,
        le=1024,
    )
    tucker: bool = knob(
        False,
        "Tucker convolutions",
        "Divides 3x3 convolutions into smaller pieces: a smaller file for the same rank. Their products are "
        "so small that the file is then always stored as fp32.",
    )


class Loha(LycorisAdapter):
    kind = "loha"
    title = "LoHa"
    Section = LohaSection
    card = Card(
        about="Multiplies two small LoRAs element by element, and so reaches a high rank with few numbers. "
        "Finer than a LoRA of the same size on styles and many concepts at once, slower to train.",
        pros=("high rank in a small file", "good at styles and several concepts", "mixes well"),
        cons=("slower to train than LoRA", "unstable at high ranks", "not read by diffusers"),
        uses=("a style", "several concepts in one file", "a character with outfits"),
        size="7-55 MB",
    )
    told_by = ("hada_w1_a",)

    def peft_config(self, section: LohaSection, chosen: PeftChoice) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(
            r=section.rank,
            alpha=section.alpha,  # type: ignore[arg-type]
            rank_pattern=chosen.rank_pattern,
            alpha_pattern=chosen.alpha_pattern,
            rank_dropout=section.dropout,
            use_effective_conv2d=section.tucker,
            target_modules=chosen.paths,
        )

    def start(self, parts: Parts, section: LohaSection) -> None:
        """Begin as LyCORIS does (lycoris/modules/loha.py): its learning rates, which are everyone's, are made
        for that. peft's smaller numbers learn about a hundred times slower.
        """
        for module in parts.modules.values():
            for _, layer in layers(module):
                _initialise(layer)

    def precision(self, section: LohaSection, wanted: Precision) -> Precision:
        return "fp32" if section.tucker else wanted


METHOD = Loha()


def _initialise(layer: Any) -> None:
    import torch

    stds = {"hada_w1_a": 0.1, "hada_w1_b": 1.0, "hada_w2_b": 1.0, "hada_t1": 0.1, "hada_t2": 0.1}
    for name, std in stds.items():
        held = getattr(layer, name)
        if NAME in held:
            torch.nn.init.normal_(held[NAME], std=std)
    torch.nn.init.zeros_(layer.hada_w2_a[NAME])
    if layer.get_base_layer().weight.shape[0] < FEW_OUTPUTS:
        layer.rank_dropout[NAME] = 0.0  # peft divides by the part that is kept, which may be none of so few
