"""What tests of the toolbox share: a verb done in this process, adapters with random numbers, and what a
model answers to a fixed question.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sdtrainer import families
from sdtrainer.chores import CHORES
from sdtrainer.config import build
from sdtrainer.events import Event
from sdtrainer.families import BaseSection
from sdtrainer.methods import method_of
from sdtrainer.seams import ExportOrder, LearningRates, Noised, Parts
from sdtrainer.workspace import Workspace

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 3, "alpha": 1.5},
    "dora": {"kind": "lora", "rank": 2, "alpha": 2.0, "dora": True},
    "loha": {"kind": "loha", "rank": 2, "alpha": 2.0},
    "lokr": {"kind": "lokr", "factor": 4},
}


SOME = {
    True: ["*attn.to_q", "*attn.add_k_proj", "*ff.net.2", "*norm1.linear", "text_encoder.*_proj"],
    False: ["*attn2.to_k", "*attn1.to_out.0", "*conv1", "*proj_in", "text_encoder.*_proj"],
}
"""A few layers of every sort, of a transformer and of a UNet."""


def do(verb: str, workspace: Workspace, **values: Any) -> dict[str, Any]:
    """Do a chore here and return what it found; it tells it, with the path last."""
    chore = CHORES[verb]
    doing = chore.do(chore.check(values), workspace)
    while True:
        try:
            assert isinstance(next(doing), Event)
        except StopIteration as end:
            *lines, last = chore.told(end.value)
            assert lines and Path(last).exists()
            return end.value


def load(base: Path) -> Parts:
    """A fresh copy of a model."""
    return copy.deepcopy(_loaded(base))


@cache
def _loaded(base: Path) -> Parts:
    facts = families.recognise(BaseSection(path=str(base)))
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))


def trained(base: Path, folder: Path, kind: str, seed: int = 1, **settings: Any) -> tuple[Path, Parts]:
    """Return an adapter file with random numbers, and the model that carries it."""
    wanted = KINDS[kind] | {"targets": "own list", "own_targets": SOME[base.name == "sd3"]} | settings
    section = build({"method": wanted}).method
    method, parts = method_of(section.kind), load(base)
    generator = torch.Generator().manual_seed(seed)
    for group in method.attach(parts, section, LearningRates(1.0, 1.0)):
        for parameter in group.parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    order = ExportOrder(folder, f"{kind}-{seed}", "fp32", ("webui",), {"ss_note": "test"})
    return method.export(parts, section, order)[0], parts


@torch.no_grad()
def answer(parts: Parts) -> torch.Tensor:
    """What a model predicts for a fixed noise and caption."""
    family, generator = families.family_of(parts.facts), torch.Generator().manual_seed(0)
    noisy = torch.randn(1, parts.facts.latent_channels, 8, 8, generator=generator)
    said = family.encode_text(parts, family.tokenize(parts, ["a zib disc"], 1), 0, torch.zeros(1, 6))
    time = torch.tensor([500.0])
    return family.predict(parts, Noised(noisy, time, noisy, time), said)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far two answers are apart, against their size."""
    return float((a - b).abs().max() / b.abs().max())
