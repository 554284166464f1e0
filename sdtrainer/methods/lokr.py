"""LoKr: delta W = W1 (x) W2 * alpha / r, a Kronecker product (Yeh et al. 2023, https://arxiv.org/abs/2309.14859,
section 3.2): W1 is small, and W2 whole or a product of rank r.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..formats import lycoris
from ..seams import Card, Facts
from ..section import UserError, knob
from . import lycoris_adapter
from .adapter import NAME, PeftChoice
from .lycoris_adapter import LycorisAdapter, LycorisSection

if TYPE_CHECKING:
    import torch

WHOLE = 100_000
"""The rank that stands for whole factors, in files too. Scale is then 1."""


class LokrSection(LycorisSection):
    """A small matrix times a larger one beside each chosen layer."""

    kind: Literal["lokr"] = "lokr"
    factor: int = knob(
        8,
        "Factor",
        "The side of the small first factor: 4 makes a large file that learns much, 16 a small one. -1 "
        "divides each layer as evenly as possible, for the smallest file.",
        level="basic",
        ge=-1,
        le=64,
    )
    full_w2: bool = knob(
        True,
        "Whole second factor",
        "Keeps the second factor whole instead of dividing it again. Learns best, and every program reads "
        "it; rank and alpha have no effect then.",
        level="basic",
    )
    rank: int = knob(
        8,
        "Rank",
        "How much the second factor may learn where it is not whole. A rank of half its side or more makes "
        "it whole.",
        ge=1,
        le=1024,
    )
    alpha: float = knob(
        8.0,
        "Alpha",
        "Strength: what is learnt is multiplied by alpha / rank, where the second factor is not whole.",
        gt=0,
        le=4096,
    )
    decompose_both: bool = knob(
        False,
        "Divide both factors",
        "Divides the first factor by rank too, where it is large enough: an even smaller file. Older "
        "versions of A1111 do not read such files.",
    )
    tucker: bool = knob(
        False,
        "Tucker convolutions",
        "Divides 3x3 convolutions into smaller pieces: fewer numbers to train. In the file each is made into "
        "an ordinary pair of factors, which every program reads.",
    )


class Lokr(LycorisAdapter):
    kind = "lokr"
    title = "LoKr"
    Section = LokrSection
    card = Card(
        about="Repeats one matrix in the pattern of a smaller one (a Kronecker product). Tiny files, or "
        "with a whole second factor much capacity: the nearest to full fine-tuning among the adapters.",
        pros=("very small to medium files", "learns fast", "much capacity with a whole second factor"),
        cons=(
            "carries over badly to other base models",
            "mixes badly with other files",
            "not read by diffusers",
        ),
        uses=("a person, pet or object", "a character", "a style in a very small file"),
        size="1-35 MB",
    )
    told_by = ("lokr_w1", "lokr_w1_a")

    def suits(self, section: LokrSection, facts: Facts) -> None:
        super().suits(section, facts)
        if section.factor in (0, 1):
            raise UserError(
                f"Factor is {section.factor}, which divides nothing.",
                "Choose -1 or a number from 2 to 64.",
                "method.factor",
            )
        for name, title in {"decompose_both": "Divide both factors", "rank_patterns": "Other ranks",
                            "tucker": "Tucker convolutions"}.items():  # fmt: skip
            if section.full_w2 and getattr(section, name):
                raise UserError(
                    f"{title}: this has no effect with a whole second factor.",
                    "Switch 'Whole second factor' off, or leave this out.",
                    f"method.{name}",
                )

    def peft_config(self, section: LokrSection, chosen: PeftChoice) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(
            r=WHOLE if section.full_w2 else section.rank,
            alpha=WHOLE if section.full_w2 else section.alpha,  # type: ignore[arg-type]
            rank_pattern=chosen.rank_pattern,
            alpha_pattern=chosen.alpha_pattern,
            rank_dropout=section.dropout,
            decompose_both=section.decompose_both,
            decompose_factor=section.factor,
            use_effective_conv2d=section.tucker,
            init_weights="lycoris",
            target_modules=chosen.paths,
        )

    def tensors(self, layer: Any) -> dict[str, torch.Tensor]:
        """Where both factors are whole peft multiplies by alpha / rank and no reader does: fold it in. Tucker
        cores are multiplied out: ComfyUI leaves such layers as they are, and Forge fails (0.3.75, 2025-11).
        """
        import torch

        stored, scaling = lycoris.without_core(lycoris_adapter.weights(layer)), layer.scaling[NAME]
        if rank := lycoris.rank(stored):
            return stored | {"alpha": torch.tensor(scaling * rank)}
        folded = stored["lokr_w1"] * scaling
        return stored | {"lokr_w1": folded, "alpha": torch.tensor(float(layer.r[NAME]))}

    def provenance(self, section: LokrSection) -> dict[str, Any]:
        told = super().provenance(section)
        args = {"factor": section.factor, "decompose_both": section.decompose_both}
        if section.full_w2:
            told |= {"rank": WHOLE, "alpha": float(WHOLE)}
            args["full_matrix"] = True
        return told | {"network_args": told["network_args"] | args}


METHOD = Lokr()
