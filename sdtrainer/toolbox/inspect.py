"""inspect FILE: what a file is, without loading it; with `deep` also each layer of an adapter, all that its
header says, hashes, and the settings that it was trained with. A run folder shows the files that it made.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import families, recognition
from ..chores import Answer, Doing
from ..events import PhaseBegan, Progress
from ..recognition.bases import BASES, stated
from ..recognition.found import Found
from ..section import Section, UserError, knob
from ..workspace import Workspace
from .places import existing

MOST_NAMED, MOST_TAGS, MOST_LETTERS = 8, 60, 2000
MODELS = ("model", "folder", "denoiser")
_BROKEN = {
    "not numbers": "hold values that are no numbers, and spoil every picture",
    "too large": "change more than the model's own weights do",
    "dead": "change nothing",
}
"""State of a layer: what is said of such layers."""


class Settings(Section):
    """Say what a file is and what it holds."""

    file: str = knob(
        "",
        "File",
        "A model, a LoRA or another adapter, an embedding, a diffusers folder or a run folder.",
        level="basic",
        is_path=True,
    )
    deep: bool = knob(
        False,
        "Look deeper",
        "Also measures every layer of an adapter, names broken ones, computes hashes and finds the settings "
        "of its training. Reads the whole file, so it takes longer.",
        level="basic",
    )


def work(settings: Settings, workspace: Workspace) -> Doing:
    """Raises UserError: there is nothing, or it cannot be read."""
    shown = []
    for path in _meant(existing(settings.file, "file")):
        found = recognition.look(path)
        deep = (yield from _deep(path, found)) if settings.deep and path.is_file() else {}
        shown.append(_as_values(path, found) | deep)
    return {"files": shown}


def told(answer: Answer) -> Iterator[str]:
    for number, shown in enumerate(answer["files"]):
        if number:
            yield ""
        yield from _lines(shown)


def broken(layers: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the names of the layers in each state that is not fine."""
    listed = list(layers)
    named = {state: [la["name"] for la in listed if la["state"] == state] for state in _BROKEN}
    return {state: names for state, names in named.items() if names}


def complaint(state: str, names: list[str], total: int) -> str:
    """Say which layers are in a state, and what that means."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{len(names)} of {total} layers {_BROKEN[state]}: {', '.join(names[:MOST_NAMED])}{more}."


def _deep(path: Path, found: Found) -> Any:
    """A generator of progress that returns what there is to know beyond the header's names and shapes."""
    from ..recognition.contents import HEADED, contents_of
    from .edit import current, picture_in

    metadata = contents_of(path).metadata
    is_headed = path.suffix.lower() in HEADED
    layers: list[dict[str, Any]] = []
    if found.kind == "adapter" and is_headed:
        layers = yield from _measured(path)
    yield PhaseBegan("work", f"Computing hashes of {path.name}")
    preview = picture_in(metadata)
    return {
        "layers": layers,
        "hashes": _hashes(path, is_headed),
        "tags": _tags(metadata.get("ss_tag_frequency", "")),
        "labels": current(metadata),
        "metadata": {key: _shortened(text) for key, text in sorted(metadata.items())},
        "preview": base64.b64encode(preview).decode() if preview else "",
        "like": _like(path),
    }


def _measured(path: Path) -> Any:
    from ..recognition.layers import measure, names_of

    total, found = len(names_of(path)), []
    for layer in measure(path):
        found.append({key: _finite(value) for key, value in dataclasses.asdict(layer).items()})
        yield Progress(len(found), total, "layers")
    return found


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hashes(path: Path, is_headed: bool) -> dict[str, str]:
    from ..formats.safetensors_file import sha256

    whole = sha256(path)
    tensors = {"AutoV3": sha256(path, tensors_only=True)[:12]} if is_headed else {}
    return {"SHA-256": whole, "AutoV2": whole[:10]} | tensors


def _tags(text: str) -> list[tuple[str, int]]:
    try:
        folders = json.loads(text).values()
    except (ValueError, AttributeError):
        return []
    counts: Counter[str] = Counter()
    for tags in folders:
        if isinstance(tags, dict):
            counts.update({tag: count for tag, count in tags.items() if isinstance(count, int)})
    return counts.most_common(MOST_TAGS)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} … ({len(text):,} letters)"


def _like(path: Path) -> Answer | None:
    from . import like

    try:
        return like.as_values(like.of(path))
    except UserError:
        return None


def _meant(path: Path) -> list[Path]:
    """The path itself, or what lies in the output folder of a run."""
    output = path / "output"
    if (path / "config.toml").is_file():
        made = sorted(output.iterdir()) if output.is_dir() else []
        if not made:
            raise UserError(f"{path.name} has no exported file yet.", "Let the run finish.", "file")
        return made
    return [path]


def _as_values(path: Path, found: Found) -> dict[str, Any]:
    base = BASES.get(found.base)
    names = {"path": str(path), "family": base.family if base else "", "use": _use(path, found)}
    otherwise = [stated(other.base) for other in found.otherwise]
    return names | dataclasses.asdict(dataclasses.replace(found, otherwise=())) | {"otherwise": otherwise}


def _use(path: Path, found: Found) -> str:
    refusal = families.why_no_base(str(path), found)
    if refusal is None:
        return "It can be trained."
    return "It is used together with its base model." if found.kind == "adapter" else str(refusal)


def _lines(shown: Mapping[str, Any]) -> Iterator[str]:
    size = f" ({_size(shown['bytes'])})" if shown["bytes"] else ""
    yield f"{Path(shown['path']).name}: {shown['title']}{size}"
    yield f"  recognised by {shown['why']}"
    if shown["prediction"] is not None and shown["kind"] in MODELS:
        yield f"  {_predicts(shown['prediction'])}{', up to zero SNR' if shown['is_zero_snr'] else ''}"
    for part in shown["parts"]:
        yield (
            f"  {part['name']}: {part['tensors']:,} tensors, {part['parameters']:,} numbers in "
            f"{', '.join(part['precisions'])}, {_size(part['bytes'])}"
        )
    if shown["adapter"] is not None:
        yield from _adapter(shown["adapter"])
    yield from (f"  {word}: {text}" for word, text in shown["says"].items())
    yield from (f"  {word}: {text}" for word, text in shown.get("hashes", {}).items())
    yield from (f"  {line}" for line in _layers(shown.get("layers", [])))
    yield from (f"  Note: {note}" for note in shown["notes"])
    yield f"  {shown['use']}"


def _predicts(prediction: Mapping[str, Any]) -> str:
    if prediction["is_decided"]:
        return f"predicts {prediction['type']}, {prediction['why']}"
    likely = f"probably {prediction['type']}, {prediction['why']}"
    return f"what it predicts is undecided: {likely}; training asks it first"


def _adapter(adapter: Mapping[str, Any]) -> Iterator[str]:
    ranks, alphas = counted(adapter["ranks"]), counted(adapter["alphas"])
    yield f"  rank {ranks or 'none'}, alpha {alphas or 'as the rank'}"
    for part, kinds in adapter["targets"].items():
        yield f"  changes in the {part}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"


def counted(counts: Mapping[Any, int]) -> str:
    """Say one number, or several with how often each occurs."""
    if len(counts) == 1:
        return f"{float(next(iter(counts))):g}"
    return ", ".join(f"{float(number):g} ({count} layers)" for number, count in counts.items())


def _layers(layers: list[Mapping[str, Any]]) -> Iterator[str]:
    """The size of the change by part and place, then what is broken."""
    from ..recognition.layers import in_order

    for part in dict.fromkeys(layer["part"] for layer in layers):
        of_part = [layer for layer in layers if layer["part"] == part]
        for place in in_order(of_part):
            sizes = [layer["norm"] for layer in of_part if layer["place"] == place]
            known = [size for size in sizes if size is not None]
            length = math.sqrt(sum(size * size for size in known))
            most = max(la["gain"] or 0 for la in of_part if la["place"] == place)
            yield f"{part}, {place}: {len(sizes)} layers, change {length:.3g} in all, gain {most:.2g} at most"
    for state, names in broken(layers).items():
        yield complaint(state, names, len(layers))


def _size(count: int) -> str:
    for unit, width in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= width:
            return f"{count / width:.3g} {unit}"
    return f"{count} bytes"
