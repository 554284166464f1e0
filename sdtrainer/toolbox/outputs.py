"""Where a tool writes: the settings that all of them have, and a place that overwrites nothing unasked."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from ..events import Event, Progress
from ..formats import safetensors_file
from ..formats.whole_model import WholeModel
from ..seams import T5, Precision
from ..section import UserError, knob
from ..workspace import Workspace

STORED = "as stored"
Stored = Literal["as stored", "fp32", "fp16", "bf16"]


class Output(Protocol):
    """What every tool's Settings declare last, by the functions below."""

    @property
    def to(self) -> str: ...

    @property
    def overwrite(self) -> bool: ...

    @property
    def precision(self) -> Stored: ...


def to_knob() -> Any:
    return knob(
        "",
        "Save as",
        "The file or folder to write. Empty: a name that says what it is, in the folder 'tools' of the "
        "workspace.",
        level="basic",
        is_path=True,
    )


def overwrite_knob() -> Any:
    return knob(
        False,
        "Overwrite",
        "Replaces a file of that name. Off, nothing that exists is touched.",
    )


def precision_knob(default: Stored = STORED) -> Any:
    return knob(
        default,
        "Precision",
        "How each number is stored. 'as stored' keeps what the file has; fp16 and bf16 take half the room of "
        "fp32. fp16 is finer, bf16 bears larger numbers.",
    )


def precision_of(settings: Output) -> Precision | None:
    """Return the number format wanted, or None where each tensor keeps its own."""
    return None if settings.precision == STORED else settings.precision


def target(settings: Output, workspace: Workspace, name: str, inputs: Iterable[Path]) -> Path:
    """Return where to write; `name` is suggested, a folder's without a suffix.

    Raises:
        UserError: something lies there and may not be replaced.
    """
    if not settings.to:
        return _free(workspace.tools / name)
    path, suffix = Path(settings.to).expanduser(), Path(name).suffix
    if suffix and path.suffix != suffix:
        path = path.with_name(path.name + suffix)
    if any(path.resolve() == given.expanduser().resolve() for given in inputs):
        raise UserError(f"Save as: '{path}' is what is read.", "Choose another name.", "to")
    if path.exists() and not settings.overwrite:
        raise UserError(
            f"Save as: '{path}' exists already.", "Choose another name, or switch Overwrite on.", "to"
        )
    if path.exists() and path.is_dir() == bool(suffix):
        kind = "a folder" if path.is_dir() else "a file"
        raise UserError(f"Save as: '{path}' is {kind}.", "Choose another name.", "to")
    return path


def check_space(path: Path, needed: int) -> None:
    """Raise UserError if the disk has not so many bytes left."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        raise UserError(
            f"Save as: {path.name} takes {needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free there.",
            "Free some disk space, or save it elsewhere.",
            "to",
        )


def progress(written: Iterable[int], total: int) -> Iterator[Event]:
    """Tell how far a file is, from the bytes of each piece of it."""
    done, told = 0, -1
    for size in written:
        done += size
        if done >> 20 > told:
            told = done >> 20
            yield Progress(told, max(done, total) >> 20, "MB")


def size(num_bytes: int) -> str:
    """Return a size in words."""
    return f"{num_bytes / 2**30:.2f} GB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MB"


def kept_of(error: float, whole: str) -> str:
    """Say how near a change of weights is to another, by the norm of what they differ by as a part of its."""
    return f"{1 - error * error:.2%} of the change is kept: it differs from {whole} by {error:.2%}."


def size_of(whole: WholeModel, settings: Output, is_folder: bool) -> int:
    """Return the bytes that its tensors will take."""
    wanted = precision_of(settings)
    parts = [state for part, state in whole.states.items() if is_folder or part != T5]
    tensors = [t for state in (*parts, {} if is_folder else whole.unheld) for t in state.values()]
    return sum(t.shape.numel() * safetensors_file.stored_as(t, wanted).itemsize for t in tensors)


def _free(path: Path) -> Path:
    """The path, or the first with a number that does not exist."""
    names = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, 10_000))
    return path if not path.exists() else next(one for one in names if not one.exists())
