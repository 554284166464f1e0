"""inspect FILE [--json]: what a file is, without loading it. A run folder shows the files that it made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .. import families
from ..__main__ import parser
from ..recognition import Found, look
from ..recognition.bases import BASES
from ..recognition.found import Adapter, Prediction
from ..section import UserError


def main(argv: Sequence[str]) -> int:
    arguments = parser("inspect")
    arguments.add_argument("file", type=Path, help="a file, a diffusers folder or a run folder")
    arguments.add_argument("--json", action="store_true", help="for programs")
    given = arguments.parse_args(argv)
    found = {path: look(path) for path in _meant(given.file.expanduser())}
    if given.json:
        shown = [_as_values(path, one) for path, one in found.items()]
        print(json.dumps(shown[0] if len(shown) == 1 else shown, indent=1, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(as_text(path, one)) for path, one in found.items()))
    return 0


def as_text(path: Path, found: Found) -> Iterator[str]:
    """Yield the lines for a person."""
    size = f" ({_size(found.bytes)})" if found.bytes else ""
    yield f"{path.name}: {found.title}{size}"
    yield f"  recognised by {found.why}"
    if found.prediction is not None and found.kind in ("model", "folder", "denoiser"):
        yield f"  {_predicts(found.prediction)}{', up to zero SNR' if found.is_zero_snr else ''}"
    for part in found.parts:
        yield (
            f"  {part.name}: {part.tensors:,} tensors, {part.parameters:,} numbers in "
            f"{', '.join(part.precisions)}, {_size(part.bytes)}"
        )
    if found.adapter is not None:
        yield from _adapter(found.adapter)
    yield from (f"  {word}: {text}" for word, text in found.says.items())
    yield from (f"  Note: {note}" for note in found.notes)
    yield f"  {_use(path, found)}"


def _meant(path: Path) -> list[Path]:
    """The path itself, or what lies in the output folder of a run."""
    output = path / "output"
    if (path / "config.toml").is_file():
        made = sorted(output.iterdir()) if output.is_dir() else []
        if not made:
            raise UserError(f"{path.name} has no exported file yet.", "Let the run finish.")
        return made
    if not path.exists():
        raise UserError(f"There is nothing at '{path}'.", "Check the path.")
    return [path]


def _as_values(path: Path, found: Found) -> dict[str, object]:
    base = BASES.get(found.base)
    return {"path": str(path), "family": base.family if base else ""} | dataclasses.asdict(found)


def _predicts(prediction: Prediction) -> str:
    if prediction.is_decided:
        return f"predicts {prediction.type}, {prediction.why}"
    return (
        f"what it predicts is undecided: probably {prediction.type}, {prediction.why}; training asks it first"
    )


def _adapter(adapter: Adapter) -> Iterator[str]:
    yield f"  rank {_counted(adapter.ranks) or 'none'}, alpha {_counted(adapter.alphas) or 'as the rank'}"
    for part, kinds in adapter.targets.items():
        yield f"  changes in the {part}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"


def _counted(counts: Mapping[int, int] | Mapping[float, int]) -> str:
    """One number, or several with how often each occurs."""
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    return ", ".join(f"{number:g} ({count} layers)" for number, count in counts.items())


def _use(path: Path, found: Found) -> str:
    refusal = families.why_no_base(str(path), found)
    if refusal is None:
        return "It can be trained."
    return "It is used together with its base model." if found.kind == "adapter" else str(refusal)


def _size(count: int) -> str:
    for unit, width in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= width:
            return f"{count / width:.3g} {unit}"
    return f"{count} bytes"
