"""mix: several adapters become one file that does what all of them did at their weights.

LoRAs of ranks r1, r2 ... are one of rank r1 + r2 + ... without any loss: the factors side by side. Other
kinds are taken as dW and decomposed: into a product if their own rank allows it, else kept whole as `diff`.
With a rank given the sum is brought down to it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import files
from ..events import Event, PhaseBegan, Progress, Saved
from ..formats.adapter_file import Layers
from ..recognition.bases import BASES
from ..section import Section, UserError, knob
from ..workspace import Workspace
from . import adapters, headers, layouts, models, products, ranks
from .adapters import AdapterFile
from .layouts import Layout
from .models import Model
from .outputs import (
    Stored,
    kept_of,
    overwrite_knob,
    precision_knob,
    precision_of,
    progress,
    size,
    target,
    to_knob,
)
from .ranks import Wanted

if TYPE_CHECKING:
    import torch

_BASE_HELP = (
    "Needed for DoRA, whose change depends on the base model's weights, and for models of unusual structure, "
    "if the first file does not name its own."
)
_ABOUT_THE_BASE = (
    "ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.prediction_type",
    "modelspec.resolution", "ss_clip_skip",
)  # fmt: skip
"""What the first file's header says of the base model is true of the mix."""


class Settings(Section):
    """Puts several adapters into one file."""

    adapters: list[str] = knob(
        [],
        "Adapters",
        "The files to mix: LoRA, LoHa, LoKr or DoRA, of any ranks and from any trainer, all for the same "
        "kind of base model.",
        level="basic",
        is_path=True,
    )
    weights: list[float] = knob(
        [],
        "Weights",
        "How much of each, in their order; a negative one takes away. Empty: 1 for each.",
        level="basic",
    )
    rank: int = ranks.rank_knob(
        0,
        "0 keeps everything: the file is as large as all of them together. A number brings it down to that "
        "rank, and the result says what it costs.",
    )
    energy: float = ranks.energy_knob()
    threshold: float = ranks.threshold_knob()
    min_rank: int = ranks.min_rank_knob()
    base: str = knob("", "Base model", _BASE_HELP, is_path=True)
    layout: Layout = layouts.layout_knob()
    precision: Stored = precision_knob("fp16")
    to: str = to_knob()
    overwrite: bool = overwrite_knob()


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    yield PhaseBegan("work", "Looking at the files")
    base, opened, weights = _opened(settings)
    wanted = _wanted(settings)
    name = "-and-".join(file.name for file in opened)[:120]
    ending = "" if settings.layout == "peft" else ".safetensors"
    path = target(settings, workspace, name + ending, [file.path for file in opened])
    _check_layout(settings, opened, wanted)
    by_layer: dict[tuple[str, str], list[Change]] = {}
    for file, weight in zip(opened, weights, strict=True):
        for part, place, words in file.each():
            by_layer.setdefault((part, place), []).append((words, weight))
    yield PhaseBegan("work", "Mixing the layers")
    mixing = _Mixing(base, opened[0], wanted, _alpha(by_layer, wanted))
    for number, ((part, place), changes) in enumerate(by_layer.items(), 1):
        mixing.add(part, place, changes)
        yield Progress(number, len(by_layer), "layers")
    yield PhaseBegan("work", f"Writing {path.name}")
    facts = opened[0].blueprint.facts
    header = headers.new(facts, path.stem, "", mixing.rank, mixing.alpha) | _said(opened)
    for file, weight in zip(opened, weights, strict=True):
        header = headers.with_history(header, {"mixed": file.name, "weight": weight})
    yield from progress(
        layouts.writing(path, mixing.layers, facts, settings.layout, header, precision_of(settings)), 0
    )
    num_bytes = files.size_of(path)
    yield Saved(0, "export", str(path), num_bytes)
    return {
        "path": str(path),
        "bytes": num_bytes,
        "is_exact": wanted is None,
        "error": math.sqrt(mixing.lost / mixing.total) if mixing.total else 0.0,
        "whole": mixing.whole,
        "layers": mixing.rows,
    }


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    yield f"{len(answer['layers']):,} layers, {size(answer['bytes'])}."
    if answer["is_exact"]:
        yield "Nothing is lost but the rounding to the file's precision."
    else:
        yield kept_of(answer["error"], "the sum")
    if answer["whole"]:
        yield f"{answer['whole']} layers are kept whole, for no product of low rank equals them."
    yield answer["path"]


Change = tuple[Mapping[str, Any], float]
"""The tensors of one layer, and their weight."""


class _Mixing:
    """The mix as it grows. `alpha` is that of every layer."""

    def __init__(self, base: Model | None, first: AdapterFile, wanted: Wanted | None, alpha: float) -> None:
        self.layers: Layers[Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.total = self.lost = 0.0
        self.rank = self.whole = 0
        self.alpha = alpha
        self._base, self._first, self._wanted = base, first, wanted

    def add(self, part: str, path: str, changes: list[Change]) -> None:
        words = self._bias(changes)
        if any(word not in adapters.BIASES for tensors, _ in changes for word in tensors):
            shape = self._first.weight(part, path).shape
            words |= self._weight(part, path, changes, shape)
        self.layers.setdefault(part, {})[path] = words

    def _bias(self, changes: list[Change]) -> dict[str, Any]:
        found = [(adapters.bias_change(words), weight) for words, weight in changes]
        terms = [weight * change for change, weight in found if change is not None]
        return {"diff_b": sum(terms[1:], terms[0])} if terms else {}

    def _weight(self, part: str, path: str, changes: list[Change], shape: torch.Size) -> dict[str, Any]:
        from . import low_rank

        pairs = [(_factors(words), weight) for words, weight in changes]
        if len(shape) > 1 and all(pair is not None for pair, _ in pairs):
            up, down = side_by_side([(*pair, weight) for pair, weight in pairs if pair])
            if self._wanted is None and down.shape[0] <= min(up.shape[0], down.shape[1]):
                return self._kept(part, path, up, down, shape, 1.0)
            most = Wanted(min(up.shape[0], down.shape[1]))
            found = low_rank.of_product(up, down, self._wanted or most)
            return self._cut(part, path, found, shape)
        change = sum(weight * self._change(part, path, words) for words, weight in changes)
        if len(shape) > 1 and self._wanted:
            matrix = change.flatten(1).to(products.device())
            return self._cut(part, path, low_rank.of_matrix(matrix, self._wanted), shape)
        found = low_rank.whole_rank(change.flatten(1)) if len(shape) > 1 else None
        if found and found.up.numel() + found.down.numel() < change.numel():
            return self._kept(part, path, found.up, found.down, shape, 1.0)
        self.whole += 1
        self.rows.append({"part": part, "path": path, "rank": 0, "kept": 1.0})
        return {"diff": change}

    def _change(self, part: str, path: str, words: Mapping[str, Any]) -> torch.Tensor:
        from ..formats.deferred import now

        weight = self._first.weight(part, path)
        if adapters.is_dora(words):
            assert self._base
            weight = now(self._base.state(part)[adapters.stored_name(part, path)])
        change = adapters.change(words, weight)
        assert change is not None, "more than the bias is changed"
        return change

    def _cut(self, part: str, path: str, found: Any, shape: torch.Size) -> dict[str, Any]:
        self.total, self.lost = self.total + found.total, self.lost + found.lost
        kept = 1 - found.lost / found.total if found.total else 1.0
        return self._kept(part, path, found.up, found.down, shape, kept)

    def _kept(
        self, part: str, path: str, up: torch.Tensor, down: torch.Tensor, shape: torch.Size, kept: float
    ) -> dict[str, Any]:
        self.rank = max(self.rank, down.shape[0])
        self.rows.append({"part": part, "path": path, "rank": down.shape[0], "kept": kept})
        return products.tensors_of(up, down, shape, self.alpha, None)


def side_by_side(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor, float]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up (out, R1 + R2 + ...) and down (R1 + R2 + ..., in) whose product is the weighted sum."""
    import torch

    return torch.cat([up * weight for up, _, weight in pairs], dim=1), torch.cat([d for _, d, _ in pairs])


def _factors(words: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    return None if adapters.is_dora(words) else products.factors(words)


def _opened(settings: Settings) -> tuple[Model | None, list[AdapterFile], list[float]]:
    if not settings.adapters:
        raise UserError("Adapters: none is chosen.", "Give the files to mix.", "adapters")
    weights = settings.weights or [1.0] * len(settings.adapters)
    if len(weights) != len(settings.adapters):
        raise UserError(
            f"Weights: there are {len(weights)} numbers for {len(settings.adapters)} adapters.",
            "Give one for each.",
            "weights",
        )
    found = [adapters.look(path, "Adapters", "adapters") for path in settings.adapters]
    for one, path in zip(found, settings.adapters, strict=True):
        if found[0].base and models.mismatch(found[0].base, one):
            raise UserError(
                f"Adapters: {path} is {one.title}, and {settings.adapters[0]} is for "
                f"{BASES[found[0].base].title}.",
                "Mix adapters for the same kind of base model.",
                "adapters",
            )
    named = settings.base or adapters.base_inside(settings.adapters[0])
    base = models.open_model(named, "Base model", "base") if named else None
    if base:
        for one, path in zip(found, settings.adapters, strict=True):
            adapters.check_pair(one, path, base.path, base.base, "Adapters", "adapters")
    blueprint = base.blueprint if base else adapters.blueprint_for(found[0], settings.adapters[0], "base")
    opened = [adapters.open_adapter(p, blueprint, "Adapters", "adapters") for p in settings.adapters]
    for file in opened:
        if file.is_dora and base is None:
            raise UserError(
                f"Base model: {file.path.name} is a DoRA, whose change depends on the base model's weights.",
                "Give the base model as well.",
                "base",
            )
    return base, opened, weights


def _wanted(settings: Settings) -> Wanted | None:
    """None where nothing is to be lost."""
    if not (settings.rank or settings.energy or settings.threshold):
        return None
    return ranks.wanted(settings, settings.rank or ranks.MAX_RANK)


def _check_layout(settings: Settings, opened: Sequence[AdapterFile], wanted: Wanted | None) -> None:
    """What is no LoRA cannot go into every layout, unless it becomes one."""
    for file in opened:
        kept = {
            part: {path: words for path, words in by_path.items() if wanted is None or _stays(words)}
            for part, by_path in file.layers.items()
        }
        layouts.check(kept, settings.layout, file.name, "layout")


def _stays(words: Mapping[str, Any]) -> bool:
    """Whether tensors hold something that a rank does not turn into a LoRA: biases and norms."""
    return bool({*adapters.BIASES, "w_norm"} & words.keys())


def _alpha(by_layer: Mapping[tuple[str, str], list[Change]], wanted: Wanted | None) -> float:
    """The largest rank that a layer may get."""
    from ..formats import lycoris

    if wanted is not None and wanted.is_fixed:
        return float(wanted.most)
    return float(max(1, *(sum(lycoris.rank(words) for words, _ in found) for found in by_layer.values())))


def _said(opened: Sequence[AdapterFile]) -> dict[str, str]:
    """Of the base model, and the words that start the effect of each."""
    triggers = [file.found.says.get("trigger words", "") for file in opened]
    phrase = ", ".join(dict.fromkeys(filter(None, triggers)))
    first = opened[0].metadata
    told = {key: first[key] for key in _ABOUT_THE_BASE if key in first}
    return told | ({"modelspec.trigger_phrase": phrase} if phrase else {})
