"""Hypernetworks: x + linear(x) on the way to the keys and values of every attention, as A1111 has them.

Owns the settings, the attachment and the export. The networks live in hypernetwork_layers.py, the file in
formats/hypernetwork.py. The idea is NovelAI's: "NovelAI Improvements on Stable Diffusion", 2022,
https://blog.novelai.net/novelai-improvements-on-stable-diffusion-e10d38db82ac.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from ..formats import hypernetwork as layout
from ..formats.hypernetwork import Activation, Architecture, WeightInit
from ..seams import (
    BYTES,
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
from ..section import Section, UserError, knob

if TYPE_CHECKING:
    from .hypernetwork_layers import Networks


def _factors(text: str) -> str:
    """Read "1, 2, 1", with or without brackets, and write it evenly."""
    try:
        found = [float(word) for word in text.strip(" []()").split(",")]
    except ValueError:
        raise ValueError("numbers with commas between them, as in 1, 2, 1") from None
    if len(found) < 2 or (found[0], found[-1]) != (1, 1):
        raise ValueError("two or more numbers, the first and the last 1, as in 1, 2, 1")
    if not all(0.1 <= factor <= 16 for factor in found) or len(found) > 12:
        raise ValueError("at most 12 numbers from 0.1 to 16, as in 1, 2, 1")
    return ", ".join(f"{factor:.10g}" for factor in found)


def _text(value: Any) -> Any:
    return re.sub(r"\s+", " ", str(value)) if isinstance(value, list) else value


LayerStructure = Annotated[str, BeforeValidator(_text), AfterValidator(_factors)]


class HypernetworkSection(Section):
    """Small networks that change what each attention layer is told."""

    kind: Literal["hypernetwork"] = "hypernetwork"
    layer_structure: LayerStructure = knob(
        "1, 2, 1",
        "Layer structure",
        "How wide each network is on its way, as multiples of what goes in; the first and the last are 1. "
        "1, 2, 1 suits most; 1, 2, 2, 1 or 1, 3, 1 learn more and make larger files.",
        level="basic",
    )
    activation: Activation = knob(
        "linear",
        "Activation",
        "What stands between the layers. linear is nothing at all and the safest; relu, swish and softsign "
        "learn finer detail. ComfyUI reads linear, relu, leakyrelu, elu, swish, tanh, sigmoid, softsign and "
        "mish; the others work in A1111 alone.",
        level="basic",
    )
    activate_output: bool = knob(
        False,
        "Activate the last layer",
        "Also puts the activation behind the last layer. Usually off: what is added could then not be "
        "negative with relu, for one.",
    )
    layer_norm: bool = knob(
        False,
        "Layer norm",
        "Evens out what comes out of each layer: steadier, but slower to learn. ComfyUI reads such a file "
        "rightly only if the activation is linear or the last layer is activated; A1111 always.",
    )
    dropout: float = knob(
        0.0,
        "Dropout",
        "Part of each inner layer's output that is left out at random while training. 0 is usual; 0.3 can "
        "help against learning by heart with wide networks.",
        ge=0,
        le=0.9,
    )
    last_layer_dropout: bool = knob(
        True,
        "Dropout before the last layer",
        "Off: dropout stays away from what goes into the last layer; there must then be two inner layers or "
        "more, as in 1, 2, 2, 1.",
    )
    weight_init: WeightInit = knob(
        "Normal",
        "Initial weights",
        "The random numbers to begin with. Normal is A1111's own and begins near the base model, not on it: "
        "about a tenth is added to what goes in. The others begin far from it and need longer: Xavier suits "
        "linear, tanh and sigmoid, Kaiming the relu kind.",
    )
    widths: Literal["all", "text", "image"] = knob(
        "all",
        "Where networks are put",
        "text: where the picture looks at the prompt (768 wide in Stable Diffusion 1, 1024 in 2). image: "
        "where it looks at itself (320, 640 and 1280). all is A1111's own choice; text alone makes a file "
        "of a fifth of the size.",
    )
    init_from: str = knob(
        "",
        "Continue from a file",
        "A hypernetwork (.pt) to go on from, yours or another's, instead of random numbers. It must be built "
        "as the settings above say.",
        is_path=True,
    )


class HypernetworkMethod(Method):
    kind = "hypernetwork"
    title = "Hypernetwork"
    Section = HypernetworkSection
    card = Card(
        about="Puts small networks in front of the attention layers and trains only these. An older way, "
        "kept for A1111: it changes the style of everything that is drawn, but learns slowly, and LoRA does "
        "most things better with a smaller file.",
        pros=("strong on styles", "the base model stays as it is", "its strength is chosen in the prompt"),
        cons=("slow to learn", "large file", "no diffusers, no Forge", "weak on a single subject"),
        uses=("a style in A1111", "going on from an older hypernetwork"),
        size="10-90 MB",
    )
    formats = ("webui",)
    lrs = dict.fromkeys(GOALS, LearningRates(1e-5, 1e-5))
    starts_as_base = False

    def suits(self, section: HypernetworkSection, facts: Facts) -> None:
        if facts.family != "sd":
            raise UserError(
                f"Method: a hypernetwork needs Stable Diffusion 1 or 2, and the base is {facts.title}.",
                "Choose another method, such as LoRA, or another base model.",
                "method.kind",
            )
        if section.dropout and not any(architecture_of(section).dropout):
            raise UserError(
                f"Dropout is {section.dropout:g}, but Layer structure {section.layer_structure} has no place "
                "for it.",
                "Switch on Dropout before the last layer with at least one inner layer, or set Dropout to 0.",
                "method.dropout",
            )
        if section.init_from:
            _check_same_build(section)

    def trains(self, section: HypernetworkSection, facts: Facts) -> tuple[str, ...]:
        return (DENOISER,)

    def attach(self, parts: Parts, section: HypernetworkSection, lrs: LearningRates) -> list[ParamGroup]:
        """Put new networks into the denoiser. They begin near the base model, not on it: `weight_init`."""
        from . import hypernetwork_layers as layers

        architecture, init = architecture_of(section), section.weight_init
        pairs = {
            width: tuple(layers.new(architecture, width, init) for _ in ("keys", "values"))
            for width in _widths(parts, section)
        }
        if section.init_from:
            _begin_from(pairs, Path(section.init_from).expanduser())
        networks = layers.Networks(pairs)
        layers.put_before(parts.denoiser, networks)
        return [ParamGroup(DENOISER, list(networks.parameters()), lrs.denoiser)]

    def detach(self, parts: Parts, section: HypernetworkSection) -> None:
        from . import hypernetwork_layers as layers

        layers.take_away(parts.denoiser)

    def outputs(self, section: HypernetworkSection, name: str, formats: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{name}.pt" for _ in formats)

    def exported_bytes(self, parts: Parts, section: HypernetworkSection, precision: Precision) -> int:
        tensors = list(_attached(parts).parameters())
        return sum(t.numel() for t in tensors) * BYTES[precision] + 140 * len(tensors) + 400

    def provenance(self, section: HypernetworkSection) -> dict[str, Any]:
        told = ("layer_structure", "activation", "activate_output", "layer_norm", "dropout", "weight_init")
        return {"network_args": {name: getattr(section, name) for name in told}}

    def export(self, parts: Parts, section: HypernetworkSection, order: ExportOrder) -> list[Path]:
        (name,) = self.outputs(section, order.name, order.formats)
        networks = {
            width: (pair[0].state_dict(), pair[1].state_dict())
            for width, pair in _attached(parts).by_width().items()
        }
        content = layout.Hypernetwork(architecture_of(section), networks)
        path = order.folder / name
        layout.write(path, content, section.weight_init, order.precision, _words(order))
        return [path]

    def reads(self, file: Path) -> bool:
        return layout.is_hypernetwork(file)

    def put_on(self, parts: Parts, file: Path, strength: float) -> None:
        from . import hypernetwork_layers as layers

        pairs = _pairs_of(file, layout.read(file), strength)
        own = layers.text_and_image_widths(parts.denoiser, parts.facts.text_width)
        fitting = set(pairs) & {width for widths in own for width in widths}
        if not fitting or (set(pairs) - fitting and parts.facts.text_width not in pairs):
            raise UserError(
                f"{file.name} is for contexts {_listed(pairs)} wide; those of {parts.facts.title} are "
                f"{_listed(own[0] + own[1])}.",
                "Choose a hypernetwork that was made for this kind of base model.",
            )
        taken = [name for name, _ in parts.denoiser.named_children() if name.startswith(layers.NAME)]
        networks = layers.Networks({width: pairs[width] for width in sorted(fitting)}).requires_grad_(False)
        layers.put_before(parts.denoiser, networks, f"{layers.NAME}_{len(taken)}")


METHOD = HypernetworkMethod()


def architecture_of(section: HypernetworkSection) -> Architecture:
    """Return how the settings build each network."""
    factors = tuple(float(word) for word in section.layer_structure.split(","))
    return Architecture(
        factors=factors,
        activation=section.activation,
        activate_output=section.activate_output,
        layer_norm=section.layer_norm,
        dropout=layout.dropout_places(factors, section.dropout, section.last_layer_dropout),
    )


def _attached(parts: Parts) -> Networks:
    from . import hypernetwork_layers as layers

    networks = parts.denoiser.get_submodule(layers.NAME)
    assert isinstance(networks, layers.Networks)
    return networks


def _widths(parts: Parts, section: HypernetworkSection) -> list[int]:
    from . import hypernetwork_layers as layers

    text, image = layers.text_and_image_widths(parts.denoiser, parts.facts.text_width)
    return sorted(set({"all": text + image, "text": text, "image": image}[section.widths]))


def _words(order: ExportOrder) -> dict[str, Any]:
    """What A1111 shows of a file, and our own settings, which others pass over."""
    told = order.metadata
    return {
        "name": order.name,
        "step": int(told.get("ss_steps", 0)),
        "sd_checkpoint": None,
        "sd_checkpoint_name": told.get("ss_sd_model_name"),
        "optional_info": told.get("modelspec.description"),
        **{key: text for key, text in told.items() if key.startswith("sdtrainer_")},
    }


# -- files to begin from, or to draw with -----------------------------------------------------------


def _check_same_build(section: HypernetworkSection) -> None:
    """Raise UserError unless the file to begin from is built as the settings say. Dropout may differ."""
    path = Path(section.init_from).expanduser()
    if not path.is_file():
        raise UserError(
            f"Continue from a file: there is no file '{path}'.", "Check the path.", "method.init_from"
        )
    theirs, ours = _build_of(path, path.stat().st_mtime_ns), architecture_of(section)
    for name, field in _BUILD.items():
        if getattr(theirs, name) != getattr(ours, name):
            there = getattr(theirs, name)
            value = _listed(there) if name == "factors" else there
            title = HypernetworkSection.model_fields[field].title
            raise UserError(
                f"Continue from a file: {path.name} has {value} for {title}, and the settings do not.",
                f"Set {title} to {value}, or choose another file.",
                f"method.{field}",
            )


_BUILD = {
    "factors": "layer_structure",
    "activation": "activation",
    "activate_output": "activate_output",
    "layer_norm": "layer_norm",
}


@lru_cache(maxsize=4)
def _build_of(path: Path, changed_ns: int) -> Architecture:
    """The page asks at every edit; the file is read again when it has changed."""
    return layout.read(path).architecture


def _begin_from(pairs: Mapping[int, tuple[Any, ...]], path: Path) -> None:
    """Copy the weights of a file into networks that are built alike."""
    import torch

    theirs = _pairs_of(path, layout.read(path), strength=1.0)
    if pairs.keys() - theirs.keys():
        raise UserError(
            f"Continue from a file: {path.name} is for contexts {_listed(theirs)} wide, and {_listed(pairs)} "
            "are to be trained.",
            "Choose others at Where networks are put, or another file.",
            "method.init_from",
        )
    with torch.no_grad():
        for width, pair in pairs.items():
            for mine, its in zip(pair, theirs[width], strict=True):
                for new, old in zip(mine.parameters(), its.parameters(), strict=True):
                    new.copy_(old)


def _pairs_of(file: Path, found: layout.Hypernetwork, strength: float) -> dict[int, tuple[Any, ...]]:
    from . import hypernetwork_layers as layers

    try:
        return {
            width: tuple(layers.loaded(found.architecture, width, state, strength) for state in pair)
            for width, pair in found.networks.items()
        }
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"{file.name} holds other networks than it says it does.",
            "Download or copy the file again, or choose another.",
        ) from error


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:.10g}" for number in numbers)
