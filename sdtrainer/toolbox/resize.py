"""resize: an adapter gets another rank. Down, each layer keeps what matters most of its change; up, nothing
of it is changed, and there is room to learn more. What was no LoRA becomes one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .. import files
from ..events import Event, PhaseBegan, Progress, Said, Saved
from ..formats.adapter_file import Layers
from ..section import Section, knob
from ..workspace import Workspace
from . import adapters, headers, layouts, products, ranks
from .adapters import AdapterFile
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


class Settings(Section):
    """Gives an adapter another rank."""

    file: str = knob(
        "",
        "Adapter",
        "The LoRA, LoHa, LoKr or DoRA file to resize. It is not touched.",
        level="basic",
        is_path=True,
    )
    rank: int = ranks.rank_knob(
        16,
        "How large the two matrices of each layer will be. Less makes a smaller file and loses a little; "
        "more changes nothing now, but leaves room for further training.",
    )
    energy: float = ranks.energy_knob()
    threshold: float = ranks.threshold_knob()
    min_rank: int = ranks.min_rank_knob()
    base: str = knob("", "Base model", adapters.BASE_HELP, is_path=True)
    precision: Stored = precision_knob()
    to: str = to_knob()
    overwrite: bool = overwrite_knob()


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    yield PhaseBegan("work", "Looking at the file")
    wanted, file = ranks.wanted(settings, settings.rank), adapters.open_alone(settings.file, settings.base)
    layout = layouts.layout_of(file.found, file.names, file.path)
    ending = "" if layout == "peft" else ".safetensors"
    path = target(settings, workspace, f"{file.name}-rank{settings.rank}{ending}", [file.path])
    if file.is_dora:
        yield Said("info", "It is a DoRA: what is said of the loss is before its sizes are set.")
    yield PhaseBegan("work", "Resizing the layers")
    resized, each = _Resized(file, wanted), list(file.each())
    for number, (part, place, words) in enumerate(each, 1):
        resized.add(part, place, words)
        yield Progress(number, len(each), "layers")
    yield PhaseBegan("work", f"Writing {path.name}")
    header = headers.kept(file.metadata) | headers.network(resized.rank, float(settings.rank))
    if file.is_dora:
        header["ss_network_args"] = json.dumps({"dora_wd": "True"})
    header = headers.with_history(header, {"resized": file.name, "rank": resized.rank})
    facts, precision = file.blueprint.facts, precision_of(settings)
    yield from progress(layouts.writing(path, resized.layers, facts, layout, header, precision), 0)
    num_bytes = files.size_of(path)
    yield Saved(0, "export", str(path), num_bytes)
    return {
        "path": str(path),
        "bytes": num_bytes,
        "bytes_before": files.size_of(file.path),
        "error": math.sqrt(resized.lost / resized.total) if resized.total else 0.0,
        "layers": resized.rows,
    }


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    used = sorted({row["rank"] for row in answer["layers"]})
    of_rank = f"rank {used[0]}" if len(used) == 1 else f"ranks {used[0]} to {used[-1]}"
    before, after = size(answer["bytes_before"]), size(answer["bytes"])
    yield f"{len(answer['layers']):,} layers of {of_rank}, {after} instead of {before}."
    yield kept_of(answer["error"], "what it was")
    yield answer["path"]


class _Resized:
    """The adapter as it grows, and what it lost: squared norms."""

    def __init__(self, file: AdapterFile, wanted: Wanted) -> None:
        self.layers: Layers[Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.total = self.lost = 0.0
        self.rank = 0
        self._file, self._wanted = file, wanted

    def add(self, part: str, path: str, words: Mapping[str, Any]) -> None:
        from ..formats.deferred import now

        weight = self._file.weight(part, path)
        stay = {w: now(t) for w, t in words.items() if w in (*adapters.BIASES, *products.DORA_WORDS)}
        if weight.ndim < 2 or words.keys() <= stay.keys():
            self.layers.setdefault(part, {})[path] = {word: now(t) for word, t in words.items()}
            return
        up, down, kept = self._product(words, weight)
        self.rank = max(self.rank, down.shape[0])
        self.rows.append({"part": part, "path": path, "rank": down.shape[0], "kept": kept})
        dtype = next(t.dtype for word, t in words.items() if word != "alpha")
        made = products.tensors_of(up, down, weight.shape, float(self._wanted.most), dtype)
        self.layers.setdefault(part, {})[path] = made | stay

    def _product(
        self, words: Mapping[str, Any], weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Both factors, and the part of the change that they keep."""
        from . import low_rank

        pair = products.factors(words)
        if pair and self._wanted.is_fixed and pair[1].shape[0] <= self._wanted.most:
            return *_grown(*pair, self._wanted.most), 1.0
        if pair:
            found = low_rank.of_product(*pair, self._wanted)
        else:
            change = adapters.change(words, weight)
            assert change is not None
            found = low_rank.of_matrix(change.flatten(1).to(products.device()), self._wanted)
        self.total, self.lost = self.total + found.total, self.lost + found.lost
        return found.up, found.down, 1 - found.lost / found.total if found.total else 1.0


def _grown(up: torch.Tensor, down: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors of a higher rank with the same product. The new rows begin as peft's own do, and the new
    columns with zeros: they learn as those of a fresh LoRA.
    """
    import torch

    more = min(rank, min(up.shape[0], down.shape[1])) - down.shape[0]
    if more <= 0:
        return up, down
    generator = torch.Generator().manual_seed(0)
    bound = 1 / math.sqrt(down.shape[1])
    rows = torch.empty(more, down.shape[1]).uniform_(-bound, bound, generator=generator)
    return torch.cat([up, torch.zeros(up.shape[0], more)], dim=1), torch.cat([down, rows])
