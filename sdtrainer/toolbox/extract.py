"""extract: a LoRA from two models, so that the base with it is as near to the tuned one as its rank allows.

Of every linear layer and convolution dW = W_tuned - W_base is decomposed (low_rank.py), one matrix at a time:
neither model is ever in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .. import files
from ..events import Event, PhaseBegan, Progress, Said, Saved
from ..formats.adapter_file import Layers
from ..formats.kohya import with_text_model
from ..formats.naming import part_name
from ..methods.targets import MAX_RANK
from ..recognition.bases import BASES
from ..seams import DENOISER
from ..section import Section, UserError, knob
from ..workspace import Workspace
from . import headers, layouts, models, products, ranks
from .layouts import Layout
from .models import Model
from .outputs import (
    Stored,
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

_EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight", "pos_embed.pos_embed")
"""Matrices that are no layers: readers of LoRA files do not look for them."""


class Settings(Section):
    """Makes a LoRA of the difference between two models."""

    base: str = knob(
        "",
        "Base model",
        "The model to which the LoRA will be added: a .safetensors file or a diffusers folder.",
        level="basic",
        is_path=True,
    )
    tuned: str = knob(
        "",
        "Tuned model",
        "The model that it is to become, of the same kind: a fine-tuned or merged one.",
        level="basic",
        is_path=True,
    )
    rank: int = ranks.rank_knob(
        32, "How large the two matrices of each layer are. 32 or 64 for most; more keeps more of the change."
    )
    energy: float = ranks.energy_knob()
    threshold: float = ranks.threshold_knob()
    min_rank: int = ranks.min_rank_knob()
    convolutions: bool = knob(
        True,
        "Convolutions too",
        "Also the layers that look at neighbouring pixels. Nearer to the tuned model, and a larger file.",
    )
    conv_rank: int = knob(
        0,
        "Rank of convolutions",
        "Another rank for convolutions that look at neighbouring pixels. 0: the same.",
        ge=0,
        le=MAX_RANK,
    )
    parts: Literal["all", "denoiser", "text encoders"] = knob(
        "all",
        "Parts",
        "What the LoRA may change: the part that draws, the parts that read the prompt, or all.",
    )
    layout: Layout = layouts.layout_knob()
    precision: Stored = precision_knob("fp16")
    to: str = to_knob()
    overwrite: bool = overwrite_knob()


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    yield PhaseBegan("work", "Looking at the models")
    base, tuned = _opened(settings)
    most = max(settings.rank, settings.conv_rank)
    plain, conv = (
        ranks.wanted(settings, rank) for rank in (settings.rank, settings.conv_rank or settings.rank)
    )
    name = f"{tuned.name}-rank{settings.rank}"[:120]
    ending = "" if settings.layout == "peft" else ".safetensors"
    path = target(settings, workspace, name + ending, (base.path, tuned.path))
    yield PhaseBegan("work", "Decomposing the layers")
    found = _Found(settings, float(most))
    pairs = list(_pairs(base, tuned, settings))
    for number, (part, place, before, after) in enumerate(pairs, 1):
        found.add(part, place, before, after, conv if _looks_around(before) else plain)
        yield Progress(number, len(pairs), "layers")
    if not found.layers:
        raise UserError(
            f"Tuned model: {tuned.path.name} has the same weights as {base.path.name} in the chosen parts.",
            "Choose another model, or other parts.",
            "tuned",
        )
    if found.left_out > 0.01 * found.total:
        share = found.left_out / found.total
        yield Said("info", f"{share:.0%} of the change is in weights that a LoRA does not change.")
    yield PhaseBegan("work", f"Writing {path.name}")
    header = headers.new(base.facts, path.stem, base.name, found.rank, most)
    header = headers.with_history(header, {"extracted": tuned.name, "from": base.name})
    written = layouts.writing(path, found.layers, base.facts, settings.layout, header, precision_of(settings))
    yield from progress(written, 0)
    num_bytes = files.size_of(path)
    yield Saved(0, "export", str(path), num_bytes)
    return {
        "path": str(path),
        "bytes": num_bytes,
        "kept": 1 - found.lost / found.decomposed,
        "left_out": found.left_out / found.total,
        "layers": found.rows,
    }


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    layers = answer["layers"]
    used = sorted({row["rank"] for row in layers})
    of_rank = f"rank {used[0]}" if len(used) == 1 else f"ranks {used[0]} to {used[-1]}"
    yield f"{len(layers):,} layers of {of_rank}, {size(answer['bytes'])}."
    yield f"{answer['kept']:.2%} of the change of these layers is kept."
    worst = min(layers, key=lambda row: row["kept"])
    yield f"The least is kept of {worst['part']}.{worst['path']}: {worst['kept']:.2%}."
    yield answer["path"]


class _Found:
    """The LoRA as it grows, and what it keeps: squared norms, in all and of what was decomposed."""

    def __init__(self, settings: Settings, alpha: float) -> None:
        self.layers: Layers[Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.total = self.decomposed = self.lost = self.left_out = 0.0
        self.rank = 0
        self._settings, self._alpha, self._device = settings, alpha, products.device()

    def add(self, part: str, path: str | None, before: Any, after: Any, wanted: Wanted) -> None:
        """Decompose one layer, or without a path count it among what is left out."""
        from . import low_rank

        change = _change(before, after)
        if not change.any():
            return
        if not change.isfinite().all():
            raise UserError(
                f"Tuned model: {part}.{path or 'one of its tensors'} holds values that are not numbers.",
                "Choose a model that is whole.",
                "tuned",
            )
        if path is None:
            squares = float(change.double().square().sum())
            self.total, self.left_out = self.total + squares, self.left_out + squares
            return
        found = low_rank.of_matrix(change.flatten(1).to(self._device), wanted)
        self.total, self.decomposed = self.total + found.total, self.decomposed + found.total
        self.lost, self.rank = self.lost + found.lost, max(self.rank, found.rank)
        self.rows.append(
            {"part": part, "path": path, "rank": found.rank, "kept": 1 - found.lost / found.total}
        )
        words = products.words_of(found, change.shape, self._alpha, _dtype(self._settings))
        self.layers.setdefault(part, {})[path] = words


def _opened(settings: Settings) -> tuple[Model, Model]:
    base = models.open_model(settings.base, "Base model", "base")
    tuned = models.open_model(settings.tuned, "Tuned model", "tuned")
    if (base.facts.family, base.base) != (tuned.facts.family, tuned.base):
        raise UserError(
            f"Tuned model: {tuned.path.name} is {BASES[tuned.base].title}, and {base.path.name} is "
            f"{BASES[base.base].title}.",
            "Choose two models of the same kind.",
            "tuned",
        )
    for part in _chosen(base, settings):
        mine, theirs = base.whole.states[part], tuned.whole.states[part]
        odd = sorted(mine.keys() ^ theirs.keys())
        odd += [name for name in mine.keys() & theirs.keys() if mine[name].shape != theirs[name].shape]
        if odd:
            raise UserError(
                f"Tuned model: {odd[0]} of its {part.replace('_', ' ')} is not as in {base.path.name}.",
                "Choose two models of the same structure.",
                "tuned",
            )
    return base, tuned


def _chosen(model: Model, settings: Settings) -> tuple[str, ...]:
    encoders = model.facts.learning_encoders
    return {"all": (DENOISER, *encoders), "denoiser": (DENOISER,), "text encoders": encoders}[settings.parts]


def _pairs(base: Model, tuned: Model, settings: Settings) -> Iterator[tuple[str, str | None, Any, Any]]:
    """Yield part, module path and both weights; no path for what a LoRA is not made of."""
    blueprint = base.blueprint
    for part in _chosen(base, settings):
        paths = {path: path for path, _ in blueprint.modules[part].named_modules()}
        paths |= {with_text_model(path): path for path in paths} if part != DENOISER else {}
        word = part_name(part, base.facts)
        for name, before in base.whole.states[part].items():
            is_layer = name.endswith(".weight") and before.ndim in (2, 4) and not name.endswith(_EMBEDDINGS)
            is_layer &= settings.convolutions or not _looks_around(before)
            path = paths[name.removesuffix(".weight")] if is_layer else None
            yield word, path, before, tuned.whole.states[part][name]


def _looks_around(weight: Any) -> bool:
    """Whether it is a convolution of more than single pixels."""
    return weight.ndim == 4 and weight.shape[2:].numel() > 1


def _change(before: Any, after: Any) -> torch.Tensor:
    from ..formats.deferred import now

    return now(after).float() - now(before).float()


def _dtype(settings: Settings) -> torch.dtype | None:
    import torch

    known = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return known.get(settings.precision)
