"""LoRA: h = W x + B A x * alpha / r, with A and B of small rank r (Hu et al. 2021,
https://arxiv.org/abs/2106.09685, eq. 3).

Owns its settings and what they add to it: the rank-stabilised scale alpha / sqrt(r) (Kalajdzievski 2023,
https://arxiv.org/abs/2312.03732, theorem 3.2), DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq.
5) and LoRA+ (Hayou et al. 2024, https://arxiv.org/abs/2402.12354: B learns faster than A).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from ..formats import diffusers_names, kohya
from ..formats.naming import naming_of
from ..seams import GOALS, Card, Facts, LearningRates, ParamGroup, Parts
from ..section import knob
from . import lora_start
from .adapter import NAME, Adapter, PeftChoice, by_part
from .targets import MAX_RANK, AdapterSection

if TYPE_CHECKING:
    import torch


class LoraSection(AdapterSection):
    """Two thin matrices beside each chosen layer."""

    kind: Literal["lora"] = "lora"
    rank: int = knob(
        16,
        "Rank",
        "How much each layer may learn. 4-8 for a simple subject, 16-32 for most, 64 and more for styles "
        "with much detail. Too low misses detail; too high makes a large file and learns the pictures by "
        "heart.",
        level="basic",
        ge=1,
        le=MAX_RANK,
    )
    alpha: float = knob(
        16.0,
        "Alpha",
        "Strength: what is learnt is multiplied by alpha / rank. Equal to rank is a good start; halving it "
        "acts like halving the learning rate.",
        level="basic",
        gt=0,
        le=4096,
    )
    rank_stabilised: bool = knob(
        False,
        "Rank-stabilised",
        "Multiplies by alpha / sqrt(rank) instead, so that high ranks learn as fast as low ones. Choose a "
        "smaller alpha then: with rank 64, alpha 8 has the strength of 64 without this.",
    )
    dora: bool = knob(
        False,
        "DoRA",
        "Trains direction and size of each layer's weights apart. Often closer to full fine-tuning at low "
        "ranks, but slower. diffusers draws it as trained, from a diffusers file; ComfyUI and Forge nearly "
        "so, A1111 wrongly. Merged into a model, under Tools, it is exact everywhere.",
    )
    lr_ratio_b: float = knob(
        1.0,
        "Faster second matrix (LoRA+)",
        "The second of the two matrices learns this many times faster than the first. 1 is ordinary LoRA; "
        "up to 16 reaches the goal in fewer steps, with a lower learning rate. Optimizers that find the rate "
        "themselves, such as Prodigy, pay no heed to it.",
        ge=1,
        le=64,
    )
    dropout: float = knob(
        0.0,
        "Dropout",
        "Part of the adapter's input that is left out at random while training. 0 is usual; 0.1 can help "
        "against learning by heart when there are few images.",
        ge=0,
        le=0.9,
    )
    init_from: str = knob(
        "",
        "Go on from a LoRA file",
        "A LoRA file to start from instead of from nothing, yours or another's. Rank, DoRA and layers must "
        "be those of the file.",
        is_path=True,
    )


class Lora(Adapter):
    kind = "lora"
    title = "LoRA"
    Section = LoraSection
    card = Card(
        about="Puts two thin matrices beside each chosen layer and trains only these. Little memory, a small "
        "file that every program loads, and quality near full fine-tuning: the right choice unless you know "
        "a reason against it.",
        pros=("small file", "little memory", "read by every program", "can be mixed and merged"),
        cons=("a high rank learns pictures by heart", "a low rank misses fine detail"),
        uses=("a person, pet or object", "a style", "a character with outfits"),
        size="10-160 MB",
    )
    formats = ("webui", "diffusers")
    lrs = dict.fromkeys(GOALS, LearningRates(1e-4, 5e-5))
    told_by = ("lora_down", "diff", "w_norm")

    def suits(self, section: LoraSection, facts: Facts) -> None:
        super().suits(section, facts)
        if section.init_from:
            lora_start.check(section, facts)

    def reads_base(self, section: LoraSection) -> bool:
        return section.dora

    def kinds(self, section: LoraSection) -> tuple[type, ...]:
        import torch

        return super().kinds(section) + (() if section.dora else (torch.nn.Embedding,))

    def peft_config(self, section: LoraSection, chosen: PeftChoice) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=section.rank,
            lora_alpha=section.alpha,  # type: ignore[arg-type]
            rank_pattern=chosen.rank_pattern,
            alpha_pattern=chosen.alpha_pattern,
            lora_dropout=section.dropout,
            target_modules=chosen.paths,
            use_rslora=section.rank_stabilised,
            use_dora=section.dora,
        )

    def start(self, parts: Parts, section: LoraSection) -> None:
        if section.init_from:
            lora_start.take_over(section.init_from, parts)

    def groups(self, section: LoraSection, name: str, module: torch.nn.Module, lr: float) -> list[ParamGroup]:
        if section.lr_ratio_b == 1:
            return super().groups(section, name, module, lr)
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        ups = [p for n, p in trained.items() if ".lora_B." in n or ".lora_embedding_B." in n]
        others = [p for n, p in trained.items() if not any(p is up for up in ups)]
        return [ParamGroup(name, others, lr), ParamGroup(f"{name} up", ups, lr * section.lr_ratio_b)]

    def state(
        self, parts: Parts, section: LoraSection, layout: str
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Of a transformer all programs read diffusers' names; only DoRA's magnitudes ComfyUI knows by
        kohya's alone.
        """
        alpha = self.provenance(section)["alpha"]
        adapters = {
            part: {path: tensors(layer, alpha) for path, layer in attached.items()}
            for part, attached in by_part(parts).items()
        }
        if layout == "webui" and (parts.facts.has_unet or section.dora):
            return kohya.to_kohya(adapters, naming_of(parts.facts)), {}
        return diffusers_names.to_diffusers(adapters)

    def provenance(self, section: LoraSection) -> dict[str, Any]:
        alpha = section.alpha * (math.sqrt(section.rank) if section.rank_stabilised else 1)
        args: dict[str, Any] = {"targets": section.targets}
        if section.targets == "with convolutions":
            args |= {"conv_dim": section.rank, "conv_alpha": alpha}
        if section.dora:
            args["dora_wd"] = True
        if section.lr_ratio_b != 1:
            args["loraplus_lr_ratio"] = section.lr_ratio_b
        return {"rank": section.rank, "alpha": alpha, "network_args": args}


METHOD = Lora()


def tensors(layer: Any, alpha: float) -> kohya.LoraTensors:
    """Return the adapter of a peft layer, detached.

    Readers multiply by alpha / rank. What differs from that, where a layer has another rank, goes into the
    second matrix: diffusers' reader of the kohya layout knows one alpha for all attention layers (0.42.1).
    """
    down, up = lora_start.matrices(layer)
    own = layer.scaling[NAME] * down.shape[0]
    if not math.isclose(own, alpha):
        up = up * (own / alpha)
    dora_scale = None
    if NAME in layer.lora_magnitude_vector:
        dora_scale = layer.lora_magnitude_vector[NAME].weight.detach().reshape(-1, *[1] * (down.ndim - 1))
    return kohya.LoraTensors(down, up, alpha, dora_scale)
