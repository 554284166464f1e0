"""The files that tools can be given: what runs and tools made, what was uploaded; others by their path."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from ..families import STARTER
from ..recognition.contents import HEADED
from ..section import Knob, UserError
from ..workspace import RunFolder, Workspace, list_runs
from . import words
from .form import Field

Role = Literal["adapter", "model", "any", "picture"]
SUFFIXES = (*HEADED, ".pt", ".ckpt", ".bin")
FOLDERS = ("model_index.json", "adapter_config.json")
"""What tells a diffusers folder, and one of peft."""
MOST_RUNS = 30
MOST_PICTURES = 40
UPLOADED = "files"
"""The folder of uploads that holds files for the tools."""


@dataclass(frozen=True)
class Known:
    """One file or diffusers folder. `role` is "any" where what it holds is not known without opening it."""

    path: Path
    role: Role
    label: str


@dataclass(frozen=True)
class FileField(Field):
    """A setting that names files, as a list to choose from that also takes a path."""

    role: Role = "any"

    def read(self, shown: Any) -> Any:
        if isinstance(self.knob.default, list):
            return [str(one).strip() for one in shown or [] if str(one).strip()]
        return str(shown or "").strip()

    def show(self, value: Any) -> Any:
        return value

    def offer(self, found: list[Known]) -> Any:
        """Return the update that offers these files; what was chosen stays."""
        return gr.update(choices=choices(found, self.role))


def file_field(knob: Knob, role: Role, looks: dict[str, Any]) -> FileField:
    """Make the component of a setting that names files here."""
    is_many = isinstance(knob.default, list)
    widget = gr.Dropdown(
        [],
        value=[] if is_many else None,
        multiselect=is_many,
        allow_custom_value=True,
        label=knob.title,
        info=knob.help,
        min_width=210,
        **looks,
    )
    return FileField(knob, widget, role)


def known(workspace: Workspace) -> list[Known]:
    """Return what lies in the workspace, the newest runs first."""
    found = []
    for run in list_runs(workspace.runs)[:MOST_RUNS]:
        role = _role(run.path, run.config_file.stat().st_mtime)
        found += [Known(path, role, f"{path.name} (run {run.name})") for path in _inside(run.output)]
    for folder, name in ((workspace.tools, "tools"), (workspace.uploads / UPLOADED, "uploaded")):
        found += [Known(path, "any", f"{path.name} ({name})") for path in _inside(folder)]
    drawn = sorted(workspace.drawings.glob("*.png"), key=lambda path: -path.stat().st_mtime)
    return found + [Known(path, "picture", path.name) for path in drawn[:MOST_PICTURES]]


def choices(found: list[Known], role: Role) -> list[tuple[str, str]]:
    """Return what a list offers for a role: label and value."""
    fitting = [one for one in found if role == one.role or _may_be(one, role)]
    own = [("starter (ships with the app)", STARTER)] if role == "model" else []
    return own + [(one.label, str(one.path)) for one in fitting]


def take_in(workspace: Workspace, uploaded: list[str]) -> list[Path]:
    """Keep uploaded files. Raises UserError if none is a file of a model."""
    folder = workspace.uploads / UPLOADED
    taken = [Path(file) for file in uploaded if Path(file).suffix.lower() in SUFFIXES]
    if not taken:
        raise UserError("None of these is a file of a model.", f"Choose one that ends in {SUFFIXES[0]}.")
    folder.mkdir(parents=True, exist_ok=True)
    for file in taken:
        shutil.copyfile(file, folder / file.name)
    return [folder / file.name for file in taken]


def said(path: Path) -> str:
    """Return a file's name and size."""
    return f"{path.name}, {words.size(path.stat().st_size)}"


def _may_be(one: Known, role: Role) -> bool:
    """Whether a file may be of a role, as one of the two is not known closer."""
    return "picture" not in (one.role, role) and "any" in (one.role, role)


def _inside(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=lambda p: -p.stat().st_mtime):
            is_ours = path.suffix.lower() in SUFFIXES or any((path / name).is_file() for name in FOLDERS)
            if is_ours and not path.name.startswith(".") and not path.is_symlink():
                yield path


@lru_cache(maxsize=256)
def _role(run: Path, _written: float) -> Role:
    config = RunFolder(run).known_config()
    if config is None:  # of another version: its files are as good
        return "any"
    return "model" if config.method.kind == "full" else "adapter"
