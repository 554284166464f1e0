"""Where things lie on disk: the workspace, and the run folder that is the database of one run.

Owns every path and the atomic files in them. Knows nothing of what happens in a run.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import config as configs
from . import files
from .config import Config
from .section import UserError

PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Workspace:
    """The folder that holds all that the app writes."""

    root: Path

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def class_images(self) -> Path:
        return self.root / "class-images"

    @property
    def measurements(self) -> Path:
        """What settings were found to cost on this machine."""
        return self.root / "measurements"

    @property
    def drawings(self) -> Path:
        """Pictures that were drawn to try something."""
        return self.root / "drawings"

    @property
    def tools(self) -> Path:
        """What the toolbox makes, where no other place is named."""
        return self.root / "tools"

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def disk_free(self) -> int:
        """Bytes free on the disk of the workspace."""
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        return shutil.disk_usage(there).free

    def contains(self, path: Path | str) -> bool:
        """Whether a path, with every link followed, lies inside the workspace or what ships with the app."""
        real = Path(path).expanduser().resolve()
        return any(real.is_relative_to(home.resolve()) for home in (self.root, PROJECT / "assets"))


def default() -> Workspace:
    """The workspace of this machine: $SDTRAINER_WORKSPACE, or `workspace` beside the program."""
    return Workspace(
        Path(os.environ.get("SDTRAINER_WORKSPACE") or PROJECT / "workspace").expanduser().resolve()
    )


@dataclass(frozen=True)
class RunFolder:
    """One run: config.toml, plan.json, census.json, events.jsonl, samples/, checkpoints/, output/."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def census_file(self) -> Path:
        return self.path / "census.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def log_file(self) -> Path:
        """Tracebacks and what libraries print."""
        return self.path / "log.txt"

    def config(self) -> Config:
        """Read the run's settings. Raises UserError."""
        if not self.config_file.exists():
            raise UserError(
                f"'{self.path}' is not a run folder (no config.toml).", "Give a folder inside runs/."
            )
        return configs.build(configs.load(self.config_file), str(self.config_file))

    def known_config(self) -> Config | None:
        """Return the run's settings; None where they cannot be read, as those of another version."""
        try:
            return self.config()
        except UserError:
            return None


def create_run(runs: Path, config: Config) -> RunFolder:
    """Make runs/<name>, or <name>-2, <name>-3 ... if taken; it appears whole, with its config.toml."""
    runs.mkdir(parents=True, exist_ok=True)
    for number in range(1, 100_000):
        path = runs / (config.run.name if number == 1 else f"{config.run.name}-{number}")
        if path.exists():
            continue
        try:
            with files.new_folder(path) as folder:
                for name in ("samples", "checkpoints", "output"):
                    (folder / name).mkdir()
                configs.save(config, folder / "config.toml")
            return RunFolder(path)
        except OSError:
            if (
                not path.exists()
            ):  # another run took the name meanwhile: try the next, else it is a real failure
                raise
    raise UserError(f"'{runs}' is full.", "Delete old runs.")


def list_runs(runs: Path) -> list[RunFolder]:
    """All runs, the newest first."""
    folders = [p for p in runs.iterdir() if (p / "config.toml").exists()] if runs.is_dir() else []
    return [
        RunFolder(p) for p in sorted(folders, key=lambda p: (p / "config.toml").stat().st_mtime, reverse=True)
    ]
