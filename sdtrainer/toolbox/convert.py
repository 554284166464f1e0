"""convert: adapters from one layout to another, whole models between a single file and a diffusers folder,
either in another precision. No value changes but by rounding.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from .. import files, recognition
from ..events import Event, PhaseBegan, Said, Saved
from ..formats import whole_model
from ..seams import T5
from ..section import Section, UserError, knob
from ..workspace import Workspace
from . import adapters, headers, layouts, models
from .outputs import (
    STORED,
    Stored,
    check_space,
    overwrite_knob,
    precision_knob,
    precision_of,
    progress,
    size,
    size_of,
    target,
    to_knob,
)
from .places import existing

_MODELS = ("file", "folder")
_ADAPTERS = ("kohya", "diffusers", "peft", "comfyui")


class Settings(Section):
    """Stores an adapter or a model in another way."""

    file: str = knob(
        "",
        "File or folder",
        "An adapter, or a whole model as a single file (.safetensors, .ckpt) or a diffusers folder. It stays "
        "as it is.",
        level="basic",
        is_path=True,
    )
    layout: Literal["as it is", "kohya", "diffusers", "peft", "comfyui", "file", "folder"] = knob(
        "as it is",
        "Layout",
        "Of an adapter: kohya for A1111, Forge and ComfyUI, diffusers for its pipelines, peft a folder for "
        "that library, comfyui for ComfyUI's own names. Of a model: a single file or a diffusers folder.",
        level="basic",
    )
    base: str = knob("", "Base model", f"Of an adapter. {adapters.BASE_HELP}", is_path=True)
    precision: Stored = precision_knob()
    to: str = to_knob()
    overwrite: bool = overwrite_knob()


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    yield PhaseBegan("work", "Looking at the file")
    place = existing(settings.file and str(models.place_of(settings.file)), "file", "File or folder")
    found = recognition.look(place)
    if found.kind == "adapter":
        return (yield from _adapter(settings, workspace))
    if found.kind in ("model", "folder"):
        return (yield from _model(settings, workspace))
    raise UserError(
        f"File or folder: {place.name} is {found.title}, neither an adapter nor a whole model.",
        "Choose another one.",
        "file",
    )


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    yield f"Stored as {answer['layout']}, {size(answer['bytes'])} instead of {size(answer['bytes_before'])}."
    if answer["left_out"]:
        yield f"Left out: {', '.join(answer['left_out'])}."
    yield answer["path"]


def _adapter(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    from ..formats.deferred import now

    file = adapters.open_alone(settings.file, settings.base)
    before = layouts.layout_of(file.found, file.names, file.path)
    layout: Any = before if settings.layout == "as it is" else settings.layout
    _check(settings, layout, before, _ADAPTERS, "an adapter")
    layouts.check(file.layers, layout, file.path.name, "layout")
    path = target(settings, workspace, _name(file.name, layout, settings), [file.path])
    yield PhaseBegan("work", f"Writing {path.name}")
    layers: Any = {
        part: {place: {word: now(t) for word, t in words.items()} for place, words in by_path.items()}
        for part, by_path in file.layers.items()
    }
    header, precision = headers.kept(file.metadata), precision_of(settings)
    yield from progress(layouts.writing(path, layers, file.blueprint.facts, layout, header, precision), 0)
    return (yield from _done(path, layout, file.path, []))


def _model(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    model = models.open_model(settings.file, "File or folder", "file")
    before = "folder" if model.path.is_dir() else "file"
    layout = before if settings.layout == "as it is" else settings.layout
    is_other = model.path.suffix not in ("", ".safetensors")
    _check(settings, layout, "" if is_other else before, _MODELS, "a whole model")
    path = target(settings, workspace, _name(model.name, layout, settings), [model.path])
    is_folder = layout == "folder"
    total = size_of(model.whole, settings, is_folder)
    check_space(path, total)
    left_out = ["T5, which programs read from a file of its own"]
    left_out = left_out if T5 in model.whole.states and not is_folder else []
    if is_folder and model.whole.unheld:
        left_out += [f"{len(model.whole.unheld)} tensors that no part of the model holds"]
    yield from (Said("info", f"Left out: {what}.") for what in left_out)
    yield PhaseBegan("work", f"Writing {path.name}")
    write = whole_model.diffusers_folder.writing if is_folder else whole_model.writing_file
    yield from progress(write(path, model.whole, model.metadata, precision_of(settings)), total)
    return (yield from _done(path, layout, model.path, left_out))


def _check(settings: Settings, layout: str, before: str, allowed: tuple[str, ...], what: str) -> None:
    name = Path(settings.file).name
    if layout not in allowed:
        raise UserError(
            f"Layout: {name} is {what}, which has no layout '{layout}'.",
            f"Choose {', '.join(allowed[:-1])} or {allowed[-1]}.",
            "layout",
        )
    if layout == before and settings.precision == STORED:
        raise UserError(
            f"Layout: {name} is stored as '{layout}' already.",
            "Choose another layout, or another precision.",
            "layout",
        )


def _name(name: str, layout: str, settings: Settings) -> str:
    """What the result is called, where no name is given."""
    words = [name, *([layout] if layout not in _MODELS else [])]
    words += [settings.precision] if settings.precision != STORED else []
    return "-".join(words)[:120] + ("" if layout in ("peft", "folder") else ".safetensors")


def _done(
    path: Path, layout: str, before: Path, left_out: list[str]
) -> Generator[Event, None, dict[str, Any]]:
    num_bytes = files.size_of(path)
    yield Saved(0, "export", str(path), num_bytes)
    return {
        "path": str(path),
        "bytes": num_bytes,
        "bytes_before": files.size_of(before),
        "layout": layout,
        "left_out": left_out,
    }
