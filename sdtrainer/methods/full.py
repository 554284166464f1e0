"""Full and partial fine-tuning: the model's own weights are trained, all of them or chosen ones.

Owns the settings, the choice of weights by name, and the export of the whole model as one file or as a
diffusers folder. DreamBooth (Ruiz et al. 2022, https://arxiv.org/abs/2208.12242) is this method with prior
preservation; training norms and biases alone follows BitFit (Ben Zaken et al. 2021,
https://arxiv.org/abs/2106.10199).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..seams import (
    BYTES,
    DENOISER,
    Card,
    ExportOrder,
    Facts,
    LearningRates,
    Method,
    ParamGroup,
    Parts,
    Precision,
)
from ..section import Section, UserError, knob
from . import targets

if TYPE_CHECKING:
    import torch

Layers = Literal["everything", "attention", "cross-attention", "norms and biases", "own list"]

_NORMS_AND_BIASES = r"(.*\.)?\w*norm\w*\.weight|(.*\.)?bias"
_DENOISER_NAMES: Mapping[str, str] = {
    "everything": r".*",
    "attention": r".*\.attn[12]?\..*",
    "cross-attention": r".*\.attn2\..*",
    "norms and biases": _NORMS_AND_BIASES,
}
_ENCODER_NAMES: Mapping[str, str] = {
    "everything": r".*",
    "attention": r"(.*\.)?self_attn\..*",
    "cross-attention": r"(.*\.)?self_attn\..*",
    "norms and biases": _NORMS_AND_BIASES,
}
"""Regular expressions that a parameter's name must match in full."""

_HEADER_BYTES = 160
"""What a tensor's name, type, shape and place take in the header, about."""


class FullSection(Section):
    """The weights of the model itself, all of them or some."""

    kind: Literal["full"] = "full"
    layers: Layers = knob(
        "everything",
        "Weights to train",
        "Everything learns most and needs most memory. Attention is about a sixth of the model, "
        "cross-attention (where words meet the picture) a twentieth; in the text encoder both mean its "
        "attention. Norms and biases are a few thousandths: take about a hundred times the learning rate. "
        "'own list' uses the patterns below.",
        level="basic",
    )
    own_layers: list[str] = knob(
        [],
        "Own list of weights",
        "Patterns of layer or weight names for 'own list': '*' stands for any text, as in *attn2.to_k or "
        "*norm*.weight. Names beginning with text_encoder. choose from the text encoder.",
        lines=3,
    )
    blocks: list[str] = knob(
        ["down", "mid", "up"],
        "Blocks to train",
        "Only weights inside these blocks of the denoiser are trained: down, mid, up, or a single one "
        "such as up.1. The way down and the middle shape the composition, the way up colours and "
        "surfaces. Weights outside of all blocks stay chosen.",
        lines=3,
    )
    train_text_encoder: bool = knob(
        False,
        "Train the text encoder too",
        "Also teaches the part that reads the prompt. A subject becomes more like itself, but the model "
        "forgets more and needs more memory; text can then not be cached.",
        level="basic",
    )
    lr_factors: list[str] = knob(
        [],
        "Learning rates of parts",
        "Lines such as 'down_blocks*: 0.5' or '*attn2*: 2' multiply the learning rate of the weights that "
        "fit the pattern. The first line that fits counts.",
        lines=3,
    )


class Full(Method):
    kind = "full"
    title = "Full fine-tuning"
    Section = FullSection
    card = Card(
        about="Trains the model's own weights and gives back a whole model. Nothing learns more or mixes "
        "better with what the model knows, at the price of a large file and of much memory; training only "
        "some of the weights takes less.",
        pros=(
            "highest likeness and range",
            "a complete model, used without extras",
            "can be trained on, merged, or taken as a base",
        ),
        cons=(
            "16 to 24 GB of memory for all of SD 1.5",
            "a file as large as the model",
            "forgets other things if trained for long",
        ),
        uses=("DreamBooth: a subject as true as can be", "a style or domain from many pictures"),
        size="2 GB",
    )
    formats = ("webui", "diffusers")
    keeps_base = False
    lrs: Mapping[Any, LearningRates] = {  # diffusers' DreamBooth and text-to-image scripts; OneTrainer
        "subject": LearningRates(5e-6, 2.5e-6),
        "style": LearningRates(1e-5, 5e-6),
        "concept": LearningRates(3e-6, 1.5e-6),
    }

    def suits(self, section: FullSection, facts: Facts) -> None:
        if section.layers == "own list" and not any(line.strip() for line in section.own_layers):
            raise UserError(
                "Own list of weights: it is empty.",
                "Add a pattern such as *attn2.to_k, or choose other weights to train.",
                "method.own_layers",
            )
        targets.check_blocks(section.blocks, facts)
        if not facts.has_unet and section.layers == "cross-attention":
            raise UserError(
                f"Weights to train: {facts.title} has no cross-attention; words and picture share all of it.",
                "Choose attention.",
                "method.layers",
            )
        _factors(section)

    def trains(self, section: FullSection, facts: Facts) -> tuple[str, ...]:
        return tuple(part for part in (DENOISER, *facts.learning_encoders) if _speaks_of(section, part))

    def attach(self, parts: Parts, section: FullSection, lrs: LearningRates) -> list[ParamGroup]:
        chosen, factors = choose(parts, section), _factors(section)
        for pattern, _ in factors:
            if not any(_fits(pattern, part, name) for part, names in chosen.items() for name in names):
                raise UserError(
                    f"Learning rates of parts: no trained weight matches '{pattern}'.",
                    "Mend or remove the line.",
                    "method.lr_factors",
                )
        rates: dict[str, float] = {}
        groups: dict[str, list[torch.nn.Parameter]] = {}
        for part, names in chosen.items():
            weights = dict(parts.modules[part].named_parameters())
            rate = lrs.denoiser if part == DENOISER else lrs.text_encoder
            for name in names:
                pattern, factor = next((f for f in factors if _fits(f[0], part, name)), ("", 1.0))
                title = f"{part.replace('_', ' ')} {pattern.removeprefix(f'{part}.')}".strip()
                rates.setdefault(title, rate * factor)
                groups.setdefault(title, []).append(_trainable(weights[name]))
        return [ParamGroup(title, parameters, rates[title]) for title, parameters in groups.items()]

    def detach(self, parts: Parts, section: FullSection) -> None:
        """What was learnt stays: there is no second copy of the weights to go back to."""
        for module in parts.modules.values():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(parameter.loaded_dtype)
                    parameter.requires_grad_(False)

    def outputs(self, section: FullSection, name: str, formats: Sequence[str]) -> tuple[str, ...]:
        endings = {"webui": ".safetensors", "diffusers": "-diffusers"}
        return tuple(name + endings[layout] for layout in formats)

    def exported_bytes(self, parts: Parts, section: FullSection, precision: Precision) -> int:
        from ..formats import whole_model

        state = whole_model.to_file(whole_model.states_of(parts), parts.facts.config)
        unheld, width = whole_model.unheld_of(parts.facts), BYTES[precision]
        return sum(
            _HEADER_BYTES + t.numel() * (width if t.is_floating_point() else t.element_size())
            for name, t in state.items()
            if name not in unheld
        ) + sum(_HEADER_BYTES + t.numel() * t.element_size() for t in unheld.values())

    def provenance(self, section: FullSection) -> dict[str, Any]:
        return {}

    def export(self, parts: Parts, section: FullSection, order: ExportOrder) -> list[Path]:
        from ..formats import whole_model

        writers = {"webui": whole_model.write_file, "diffusers": whole_model.write_folder}
        model = whole_model.take(parts)
        paths = [order.folder / name for name in self.outputs(section, order.name, order.formats)]
        for layout, path in zip(order.formats, paths, strict=True):
            writers[layout](path, model, order.metadata, order.precision)
        return paths

    def reads(self, file: Path) -> bool:
        from ..formats import whole_model

        return whole_model.is_whole(file)

    def put_on(self, parts: Parts, file: Path, strength: float) -> None:
        from ..formats import whole_model

        whole_model.lay(whole_model.read_states(file, parts.facts.config), parts, strength)


METHOD = Full()


def choose(parts: Parts, section: FullSection) -> dict[str, list[str]]:
    """Return the names of the weights to train, by part.

    Raises:
        UserError: a pattern or block matches nothing, or nothing is left.
    """
    names = {
        part: [name for name, _ in parts.modules[part].named_parameters()]
        for part in (DENOISER, *parts.facts.learning_encoders)
    }
    if section.layers == "own list":
        _check_patterns(section, names)
    chosen = {part: [n for n in own if _is_chosen(section, part, n)] for part, own in names.items()}
    chosen[DENOISER] = targets.in_blocks(chosen[DENOISER], section.blocks)
    if not any(chosen.values()):
        raise UserError(
            "Weights to train: none is left.", "Choose more weights or more blocks.", "method.layers"
        )
    return {part: own for part, own in chosen.items() if own}


def _check_patterns(section: FullSection, names: Mapping[str, Sequence[str]]) -> None:
    for pattern in filter(str.strip, section.own_layers):
        if not any(_fits(pattern, part, name) for part, own in names.items() for name in own):
            example = names[DENOISER][len(names[DENOISER]) // 2]
            raise UserError(
                f"Own list of weights: none matches '{pattern}'.",
                f"Names look like {example}; mend or remove the pattern.",
                "method.own_layers",
            )


def _is_chosen(section: FullSection, part: str, name: str) -> bool:
    if section.layers == "own list":
        return any(_fits(pattern, part, name) for pattern in section.own_layers)
    if part == DENOISER:
        return re.fullmatch(_DENOISER_NAMES[section.layers], name) is not None
    return section.train_text_encoder and re.fullmatch(_ENCODER_NAMES[section.layers], name) is not None


def _speaks_of(section: FullSection, part: str) -> bool:
    if section.layers == "own list":
        return any(targets.belongs(pattern, part) for pattern in section.own_layers)
    return part == DENOISER or section.train_text_encoder


def _fits(pattern: str, part: str, name: str) -> bool:
    """Whether a pattern means this weight or the layer that it belongs to."""
    return targets.fits(pattern, part, name) or targets.fits(pattern, part, name.rpartition(".")[0])


def _factors(section: FullSection) -> list[tuple[str, float]]:
    """The lines of `lr_factors` as (pattern, factor)."""
    factors = []
    for line in filter(str.strip, section.lr_factors):
        pattern, _, number = (word.strip() for word in line.rpartition(":"))
        if not pattern or not re.fullmatch(r"\d{1,4}(\.\d{1,6})?", number) or float(number) == 0:
            raise UserError(
                f"Learning rates of parts: '{line}' is no pattern with a factor above 0.",
                "Write it as in *attn2*: 0.5.",
                "method.lr_factors",
            )
        factors.append((pattern, float(number)))
    return factors


def _trainable(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """The same parameter; it knows what it was, whatever the trainer keeps it as."""
    parameter.loaded_dtype = parameter.dtype  # type: ignore[attr-defined]
    return parameter.requires_grad_(True)
