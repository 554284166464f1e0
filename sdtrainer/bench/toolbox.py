"""The toolbox measured on models of full size: extraction against a plain decomposition of every matrix, then
every verb, with time and memory.

The models are made here: random weights, and a tuned one whose every layer differs by a matrix of rank 64
with a decaying spectrum, and by noise of `NOISE` of that matrix's size. Each verb runs as a user runs it, in
a process of its own, whose memory is looked at every few milliseconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from ..families import published
from ..formats import ldm_shapes, whole_model
from ..formats.deferred import Deferred, now
from ..formats.whole_model import SCHEDULER, WholeModel
from ..seams import DENOISER
from ..section import UserError
from ..toolbox.models import blueprint, open_model

RANK, DECAY, NOISE = 64, 0.9, 1e-3
"""Of the difference between both models: its rank, the ratio of one singular value to the last, its noise."""


@dataclass
class Verb:
    """One verb as a user runs it: seconds, those of the processor, and the most bytes that it held."""

    name: str
    seconds: float
    processor: float
    peak: int
    found: Mapping[str, Any]


@dataclass
class Plain:
    """torch.linalg.svd of the same matrices. The seconds are for all of them, `decomposed` of which were
    decomposed: where that is not all, one of each shape stood for the others of that shape.

    `excess` is by how much our squared error is above the best, by layer; `best` and `ours` are both summed,
    beside the `total` of what was approximated.
    """

    seconds: float = 0.0
    processor: float = 0.0
    matrices: int = 0
    decomposed: int = 0
    excess: list[float] = field(default_factory=list)
    best: float = 0.0
    ours: float = 0.0
    total: float = 0.0


def make(folder: Path, base: str) -> tuple[Path, Path]:
    """Write both models in fp32, single files of a published structure, one tensor at a time."""
    facts = published.facts_of(base)
    empty = whole_model.states_of(blueprint(facts))
    configs = dict(facts.config) | {SCHEDULER: dict(ldm_shapes.SCHEDULER) | {"prediction_type": "epsilon"}}
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    for path, is_tuned in zip(paths, (False, True), strict=True):
        states: dict[str, dict[str, Any]] = {
            part: {name: _weight(f"{part}.{name}", t, is_tuned) for name, t in state.items()}
            for part, state in empty.items()
        }
        whole_model.write_file(path, WholeModel(facts.family, states, configs, {}), {}, None)
    return paths


def verbs(base: Path, tuned: Path, rank: int) -> Iterator[Verb]:
    """Run every verb once, each on what the one before has made."""
    home = base.parent
    yield (made := run("extract", home, base, tuned, "--rank", rank, "--parts", "denoiser"))
    lora = made.found["path"]
    yield run("merge", home, base, lora, "--precision", "fp16")
    yield run("mix", home, lora, lora, "--weights", "0.5", "0.7", "--rank", rank)
    yield run("resize", home, lora, "--rank", rank // 4)
    yield run("convert", home, lora, "--layout", "diffusers")
    of_model = run("convert", home, base, "--layout", "folder", "--precision", "fp16")
    yield replace(of_model, name="convert, a model")


def run(verb: str, home: Path, *words: object) -> Verb:
    """Run a verb in a process of its own.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", "sdtrainer", verb, *map(str, words), "--json"]
    began = time.monotonic()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, env=_environment(home), stdout=said, stderr=told)
        peak, processor = _watched(process)
        seconds = time.monotonic() - began
        said.seek(0), told.seek(0)
        if process.returncode:
            last = told.read().decode().strip().splitlines()[-1:]
            raise UserError(
                f"bench toolbox: {verb} failed: {' '.join(last)}", "Free some memory or disk space."
            )
        return Verb(verb, seconds, processor, peak, json.loads(said.read()))


def plain(base: Path, tuned: Path, ours: Mapping[str, Any], rank: int, each: int) -> Iterator[Plain]:
    """Decompose the same matrices plainly, at most `each` of a shape (0: all); yields how far it is."""
    models = [open_model(str(path), "Model", "") for path in (base, tuned)]
    states = [model.whole.states[DENOISER] for model in models]
    by_shape: dict[tuple[int, ...], list[tuple[str, float]]] = {}
    for row in ours["layers"]:
        name = f"{row['path']}.weight"
        by_shape.setdefault(tuple(states[0][name].shape), []).append((name, row["kept"]))
    found = Plain(matrices=len(ours["layers"]))
    for layers in by_shape.values():
        chosen = layers[:each] if each else layers
        seconds = processor = 0.0
        for name, kept in chosen:
            change = (now(states[1][name]) - now(states[0][name])).flatten(1)
            began, worked = time.monotonic(), time.process_time()
            _, values, _ = torch.linalg.svd(change, full_matrices=False)
            seconds += time.monotonic() - began
            processor += time.process_time() - worked
            squares = values.double().square()
            best, total = float(squares[rank:].sum()), float(squares.sum())
            if best:
                found.excess.append((1 - kept) * total / best - 1)
            found.best, found.total = found.best + best, found.total + total
            found.ours += (1 - kept) * total
        found.seconds += seconds * len(layers) / len(chosen)
        found.processor += processor * len(layers) / len(chosen)
        found.decomposed += len(chosen)
        yield found


def _weight(name: str, empty: torch.Tensor, is_tuned: bool) -> Deferred | torch.Tensor:
    if not empty.is_floating_point():
        return torch.arange(empty.numel(), dtype=empty.dtype).reshape(empty.shape)
    return Deferred(empty.float(), lambda: _numbers(name, empty.shape, is_tuned))


def _numbers(name: str, shape: torch.Size, is_tuned: bool) -> torch.Tensor:
    """The same for a name at every call."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    weight = 0.02 * torch.randn(shape, generator=generator)
    if not is_tuned or not name.startswith(DENOISER) or len(shape) not in (2, 4):
        return weight
    m, n = shape[0], shape[1:].numel()
    spectrum = DECAY ** torch.arange(min(RANK, m, n))
    up, down = (torch.randn(side, len(spectrum), generator=generator) / side**0.5 for side in (m, n))
    change = (up * spectrum) @ down.T
    noise = torch.randn(m, n, generator=generator)
    change += noise * (NOISE * torch.linalg.norm(change) / torch.linalg.norm(noise))
    return weight + change.reshape(shape)


def lines(extraction: Verb, plain: Plain) -> Iterator[str]:
    """Say how the extraction compares."""
    of = f"{plain.decomposed} of {plain.matrices} matrices" if plain.decomposed < plain.matrices else "all"
    yield f"{'torch.linalg.svd':<18}{plain.seconds:9.1f} s   decomposed {of}"
    faster = plain.seconds / extraction.seconds, plain.processor / extraction.processor
    yield (
        f"{'extract, all of it':<18}{extraction.seconds:9.1f} s   {faster[0]:.1f} times faster, "
        f"{faster[1]:.1f} by the processor's time"
    )
    errors = ((part / plain.total) ** 0.5 for part in (plain.best, plain.ours))
    yield "error of the change: {:.4%} at best, {:.4%} as extracted".format(*errors)
    yield f"squared error above the best: {max(plain.excess):.2%} in the worst layer"


def _environment(home: Path) -> dict[str, str]:
    import os

    return os.environ | {"SDTRAINER_WORKSPACE": str(home / "workspace")}


def _watched(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for its end; returns the most bytes that it held, and its seconds of the processor."""
    seen, peak, processor = psutil.Process(process.pid), 0, 0.0
    while process.poll() is None:
        try:
            peak = max(peak, seen.memory_info().rss)
            processor = sum(seen.cpu_times()[:2])
        except psutil.Error:
            continue
        time.sleep(0.01)
    return peak, processor
