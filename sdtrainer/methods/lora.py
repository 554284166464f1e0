"""LoRA: h = W x + B A x * alpha / r, with A and B of small rank r (Hu et al. 2021,
https://arxiv.org/abs/2106.09685, eq. 3).

Owns the settings, the attachment through peft and the export to the kohya/A1111 and diffusers layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..seams import (
    DENOISER,
    GOALS,
    Card,
    ExportOrder,
    Facts,
    LearningRates,
    Method,
    ParamGroup,
    Parts,
    Precision,
)
from ..section import knob
from . import adapter

if TYPE_CHECKING:
    import torch

    from ..formats.kohya import LoraTensors

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class LoraSection(adapter.AdapterSection):
    """Two thin matrices beside each chosen layer."""

    kind: Literal["lora"] = "lora"
    rank: int = knob(
        16,
        "Rank",
        "How much each layer may learn. 4-8 for a simple subject, 16-32 for most, 64 and more for styles "
        "with much "
        "detail. Too low misses detail; too high makes a large file and learns the pictures by heart.",
        level="basic",
        ge=1,
        le=1024,
    )
    alpha: float = knob(
        16.0,
        "Alpha",
        "Strength: what is learnt is multiplied by alpha / rank. Equal to rank is a good start; halving it "
        "acts like "
        "halving the learning rate.",
        level="basic",
        gt=0,
        le=4096,
    )
    dropout: float = knob(
        0.0,
        "Dropout",
        "Part of the adapter's input that is left out at random while training. 0 is usual; 0.1 can help "
        "against "
        "learning by heart when there are few images.",
        ge=0,
        le=0.9,
    )


class Lora(Method):
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

    def suits(self, section: LoraSection, facts: Facts) -> None:
        adapter.check_targets(section)

    def trains(self, section: LoraSection, facts: Facts) -> tuple[str, ...]:
        return adapter.trained_parts(section, facts)

    def attach(self, parts: Parts, section: LoraSection, lrs: LearningRates) -> list[ParamGroup]:
        from peft import LoraConfig

        def config(paths: list[str]) -> LoraConfig:
            return LoraConfig(
                r=section.rank,
                lora_alpha=section.alpha,
                lora_dropout=section.dropout,
                target_modules=paths,
                init_lora_weights=True,
            )

        return adapter.inject(parts, section, config, lrs)

    def detach(self, parts: Parts, section: LoraSection) -> None:
        adapter.remove(parts)

    def outputs(self, section: LoraSection, name: str, formats: Sequence[str]) -> tuple[str, ...]:
        return adapter.outputs(name, formats)

    def exported_bytes(self, parts: Parts, section: LoraSection, precision: Precision) -> int:
        modules = [
            m for part in self.trains(section, parts.facts) for m in adapter.layers(parts.modules[part])
        ]
        weights = sum(t.numel() for _, layer in modules for t in _down_up(layer))
        return weights * _BYTES[precision] + len(modules) * (_BYTES[precision] + 3 * 96)

    def provenance(self, section: LoraSection) -> dict[str, Any]:
        return {"rank": section.rank, "alpha": section.alpha, "network_args": {"targets": section.targets}}

    def export(self, parts: Parts, section: LoraSection, order: ExportOrder) -> list[Path]:
        from ..formats import diffusers_names, kohya, safetensors_file

        trained = self.trains(section, parts.facts)
        adapters = {_PART_NAMES.get(part, part): tensors(parts.modules[part], section) for part in trained}
        written = []
        for layout, name in zip(order.formats, self.outputs(section, order.name, order.formats), strict=True):
            if layout == "webui":
                state, metadata = kohya.to_kohya(adapters), {}
            else:
                state, metadata = diffusers_names.to_diffusers(adapters)
            path = order.folder / name
            safetensors_file.write(path, state, dict(order.metadata) | metadata, order.precision)
            written.append(path)
        return written

    def reads(self, file: Path) -> bool:
        return adapter.has_keys(file, (".lora_down.weight", ".lora_A.weight"))

    def put_on(self, parts: Parts, file: Path, strength: float) -> None:
        from safetensors.torch import load_file

        from ..formats import kohya

        state = load_file(file)
        paths = {
            _PART_NAMES.get(part, part): [path for path, _ in module.named_modules()]
            for part, module in parts.modules.items()
        }
        for part, adapters in kohya.from_kohya(state, paths).items():
            module = parts.modules[{"unet": DENOISER}.get(part, part)]
            deltas = {path: _delta(lora) for path, lora in adapters.items()}
            adapter.add(module, deltas, strength)


METHOD = Lora()
_PART_NAMES = {DENOISER: "unet"}


def tensors(module: torch.nn.Module, section: LoraSection) -> dict[str, LoraTensors]:
    """Return the adapters of a module as (down, up, alpha) by path, detached, in their own precision."""
    from ..formats.kohya import LoraTensors

    found = {}
    for path, layer in adapter.layers(module):
        down, up = _down_up(layer)
        found[path] = LoraTensors(down=down, up=up, alpha=float(section.alpha))
    return found


def _down_up(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """down (r, in[, k, k]) and up (out, r[, 1, 1]) with delta W = up @ down * alpha / r, for W as the layer
    stores it.
    """
    if (
        adapter.NAME in layer.lora_embedding_A
    ):  # peft keeps A (r, words) and B (width, r) for W (words, width)
        a, b = layer.lora_embedding_A[adapter.NAME], layer.lora_embedding_B[adapter.NAME]
        return b.detach().T.contiguous(), a.detach().T.contiguous()
    return layer.lora_A[adapter.NAME].weight.detach(), layer.lora_B[adapter.NAME].weight.detach()


def _delta(lora: LoraTensors) -> torch.Tensor:
    up, down = lora.up.float().flatten(1), lora.down.float().flatten(1)
    return (up @ down).reshape(up.shape[0], *lora.down.shape[1:]) * (lora.alpha / lora.rank)
