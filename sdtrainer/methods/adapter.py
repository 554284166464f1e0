"""What LoRA, LoHa and LoKr share: putting an adapter on layers through peft, taking it off, sizing and
writing its file, and merging a file into a model.

Knows nothing of one method's mathematics. A method is an `Adapter` that says which peft config it wants and
what its tensors are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import adapter_file, lycoris
from ..formats.naming import naming_of, part_name
from ..formats.safetensors_file import read_header, write
from ..seams import BYTES, DENOISER, ExportOrder, Facts, LearningRates, Method, ParamGroup, Parts, Precision
from . import targets
from .targets import AdapterSection

if TYPE_CHECKING:
    import torch

NAME = "default"

_ENDINGS = {"webui": ".safetensors", "diffusers": "-diffusers.safetensors"}


class Adapter(Method):
    """The Method seam, but for title, card and what is particular to one method."""

    told_by: tuple[str, ...]
    """The words of formats/lycoris.py by which a file is known to be of this method."""

    def peft_config(self, section: Any, chosen: PeftChoice) -> Any:
        """Return peft's config for one part."""
        raise NotImplementedError

    def kinds(self, section: Any) -> tuple[type, ...]:
        """Return the classes of layers that can have this adapter."""
        import torch

        return (torch.nn.Linear, torch.nn.Conv2d)

    def state(
        self, parts: Parts, section: Any, layout: str
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Return the tensors of the file and entries for its header."""
        raise NotImplementedError

    def suits(self, section: Any, facts: Facts) -> None:
        targets.check(section, facts)

    def trains(self, section: Any, facts: Facts) -> tuple[str, ...]:
        return targets.parts_of(section, facts)

    def attach(self, parts: Parts, section: Any, lrs: LearningRates) -> list[ParamGroup]:
        from peft import inject_adapter_in_model

        trainable = {name: parts.modules[name] for name in (DENOISER, *parts.facts.learning_encoders)}
        ranks = targets.ranks(trainable, section, self.kinds(section))
        groups = []
        for part, by_path in ranks.items():
            module = parts.modules[part]
            config = self.peft_config(section, PeftChoice(section, by_path))
            inject_adapter_in_model(config, module, adapter_name=NAME)
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            attached = {path for path, _ in layers(module)}
            assert attached == by_path.keys(), "peft attached to other layers than asked for"
            lr = lrs.denoiser if part == DENOISER else lrs.text_encoder
            groups += self.groups(section, part.replace("_", " "), module, lr)
        self.start(parts, section)
        return groups

    def start(self, parts: Parts, section: Any) -> None:
        """Set the adapters' first values where peft's own are not what is wanted."""

    def groups(self, section: Any, name: str, module: torch.nn.Module, lr: float) -> list[ParamGroup]:
        """Return the trained parameters of one part by learning rate."""
        return [ParamGroup(name, [p for p in module.parameters() if p.requires_grad], lr)]

    def detach(self, parts: Parts, section: Any) -> None:
        for module in parts.modules.values():
            for path, layer in list(layers(module)):
                parent, _, name = path.rpartition(".")
                setattr(module.get_submodule(parent), name, layer.get_base_layer())
            vars(module).pop("peft_config", None)

    def outputs(self, section: Any, name: str, formats: Sequence[str]) -> tuple[str, ...]:
        return tuple(name + _ENDINGS[layout] for layout in formats)

    def precision(self, section: Any, wanted: Precision) -> Precision:
        """Return what the file is stored as."""
        return wanted

    def exported_bytes(self, parts: Parts, section: Any, precision: Precision) -> int:
        size = BYTES[self.precision(section, precision)]
        state, _ = self.state(parts, section, "webui")
        return sum(t.numel() * (size if t.ndim else 4) for t in state.values())

    def export(self, parts: Parts, section: Any, order: ExportOrder) -> list[Path]:
        written = []
        for layout, name in zip(order.formats, self.outputs(section, order.name, order.formats), strict=True):
            state, header = self.state(parts, section, layout)
            path = order.folder / name
            write(path, state, dict(order.metadata) | header, self.precision(section, order.precision))
            written.append(path)
        return written

    def reads(self, file: Path) -> bool:
        if file.suffix != ".safetensors" or not file.is_file():
            return False
        return any(adapter_file.split(name)[1] in self.told_by for name in read_header(file).tensors)

    def put_on(self, parts: Parts, file: Path, strength: float) -> None:
        merge(parts, file, strength)


class PeftChoice:
    """The layers of one part in peft's words. Patterns are whole paths, so that none fits another's layer."""

    def __init__(self, section: AdapterSection, ranks: Mapping[str, int]) -> None:
        import re

        self.paths = list(ranks)
        other = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != section.rank}
        self.rank_pattern = other
        self.alpha_pattern = {path: section.alpha * rank / section.rank for path, rank in other.items()}


def layers(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (path, peft layer) of every layer that carries an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield path, layer


def by_part(parts: Parts) -> dict[str, dict[str, Any]]:
    """Return the peft layers by the file's word for the part, and path."""
    found = {part_name(part, parts.facts): dict(layers(module)) for part, module in parts.modules.items()}
    return {part: attached for part, attached in found.items() if attached}


def merge(parts: Parts, file: Path, strength: float) -> None:
    """Add strength x delta of any adapter file to the weights of a model; all of it or, on error, nothing.

    Raises:
        UserError: naming what does not fit this model.
    """
    from safetensors.torch import load_file

    found = read_layers(parts, load_file(file), read_header(file).metadata)
    modules = {part_name(part, parts.facts): module for part, module in parts.modules.items()}
    for part, by_path in found.items():
        for path, tensors in by_path.items():
            _add(modules[part].get_submodule(path), tensors, strength)


def read_layers(
    parts: Parts, entries: Mapping[str, Any], metadata: Mapping[str, str]
) -> adapter_file.Layers[Any]:
    """Return the tensors of an adapter file, deferred or not, by the file's word for the part, and path.

    Modules on the meta device will do.

    Raises:
        UserError: naming what does not fit this model.
    """
    modules = {part_name(part, parts.facts): module for part, module in parts.modules.items()}
    found = adapter_file.read(entries, paths(parts), naming_of(parts.facts))
    found = adapter_file.with_header_alphas(found, metadata)
    wrong = [
        f"{part}.{path}"
        for part, by_path in found.items()
        for path, tensors in by_path.items()
        if not _fits(tensors, modules[part].get_submodule(path))
    ]
    if wrong:
        raise adapter_file.misfit(wrong)
    return found


def paths(parts: Parts) -> dict[str, list[str]]:
    """Return the module paths of the trainable parts, by the file's word for the part."""
    names = [name for name in (DENOISER, *parts.facts.learning_encoders) if name in parts.modules]
    return {
        part_name(part, parts.facts): [path for path, _ in parts.modules[part].named_modules()]
        for part in names
    }


def _fits(tensors: Mapping[str, Any], layer: torch.nn.Module) -> bool:
    """Compute with shapes alone, on the meta device; alpha is a number."""
    from ..formats.deferred import empty, now

    meta = {word: now(t) if t.shape.numel() == 1 else empty(t) for word, t in tensors.items()}
    try:
        weight, bias = layer.weight.to("meta"), getattr(layer, "bias", None)
        lycoris.changes(meta, weight, None if bias is None else bias.to("meta"))
    except (ValueError, AttributeError):
        return False
    return True


def _add(layer: torch.nn.Module, tensors: lycoris.Tensors, strength: float) -> None:
    import torch

    with torch.no_grad():
        here = {word: tensor.to(layer.weight.device) for word, tensor in tensors.items()}
        for name, change in lycoris.changes(here, layer.weight, layer.bias).items():
            parameter = getattr(layer, name)
            parameter.copy_(parameter.float() + strength * change)
