"""train RUN.toml [path=value ...] [--runs DIR] | train --resume RUNFOLDER [--more-steps N]"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import config as configs
from .. import workspace as workspaces
from ..__main__ import parser
from ..events import Event, Finished
from ..section import UserError
from ..training.control import Control
from ..workspace import RunFolder, Workspace


def main(argv: Sequence[str]) -> int:
    arguments = parser("train")
    arguments.add_argument("run", nargs="?", type=Path, help="a run file (TOML)")
    arguments.add_argument("settings", nargs="*", help="path=value, laid over the run file")
    arguments.add_argument("--runs", type=Path, help="where run folders are made")
    arguments.add_argument("--resume", type=Path, metavar="RUNFOLDER", help="go on with this run")
    arguments.add_argument(
        "--more-steps", type=int, default=0, metavar="N", help="with --resume: lengthen the run"
    )
    given = arguments.parse_intermixed_args(argv)
    workspace = workspaces.default()
    if given.resume:
        folder = RunFolder(given.resume.resolve())
        folder.config()
    else:
        folder = new_run(given.run, given.settings, given.runs or workspace.runs)
    path = run(folder, workspace, given.more_steps)
    if path is not None:
        print(path, flush=True)
        return 0
    return 0 if not _is_first_process() else 1


def new_run(file: Path | None, settings: Sequence[str], runs: Path) -> RunFolder:
    """Check a run file with its changes and make the run folder."""
    if file is None:
        raise UserError("No run file is given.", "Write: train RUN.toml, or train --resume RUNFOLDER.")
    return _shared_folder(runs, config_of(file, settings))


def config_of(file: Path, settings: Sequence[str]) -> configs.Config:
    """Read a run file and lay path=value words over it. Raises UserError."""
    text = configs.read_text(file)
    values = configs.with_changes(configs.parse(text, str(file)), settings)
    return configs.build(values, str(file), text)


def run(folder: RunFolder, workspace: Workspace, more_steps: int = 0) -> Path | None:
    """Train with progress on the console; Ctrl-C stops and keeps. Returns the exported file."""
    from ..console import Console
    from ..training import run as training

    control = Control()
    signal.signal(signal.SIGINT, lambda *_: _stop(control))
    happenings = training.train(folder, workspace, control, more_steps)
    if _is_first_process():
        happenings = training.record(folder, happenings)
    console = Console(sys.stderr, is_quiet=not _is_first_process())
    return _last(folder, console.tell(happenings))


def _last(folder: RunFolder, happenings: Iterator[Event]) -> Path | None:
    path = None
    for event in happenings:
        if isinstance(event, Finished):
            path = folder.path / event.path
    return path


def _stop(control: Control) -> None:
    print("\nStopping; what was learnt is kept. Press Ctrl-C again to break off.", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    control.put("stop")


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _shared_folder(runs: Path, config: configs.Config) -> RunFolder:
    """With several processes the first makes the folder; the others wait for its name."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return workspaces.create_run(runs, config)
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=not _has_cuda())
    path = [workspaces.create_run(runs, config).path if state.is_main_process else None]
    return RunFolder(broadcast_object_list(path)[0])


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
