"""worker: the page's child process. Does the heavy imports, waits for one run, trains it, ends.

The first line of standard input says which run; later lines are words for it. When the input closes, the page
is gone: the run saves a checkpoint and ends.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ..section import UserError
from ..training.control import WORDS, Control
from ..workspace import RunFolder, Workspace

HEAVY = (
    "peft",
    "transformers.models.clip.modeling_clip",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
)
"""What a run imports sooner or later; done while waiting, the run begins at once."""


def main(argv: Sequence[str]) -> int:
    from ..training import run as training

    for name in HEAVY:
        importlib.import_module(name)
    first = sys.stdin.readline()
    if not first:
        return 0
    task = json.loads(first)
    folder, control = RunFolder(Path(task["run"])), Control()
    threading.Thread(target=_listen, args=(control,), daemon=True).start()
    happenings = training.train(folder, Workspace(Path(task["workspace"])), control, task["more_steps"])
    try:
        for _ in training.record(folder, happenings):
            pass
    except UserError:
        return 2
    return 0


def _listen(control: Control) -> None:
    for line in sys.stdin:
        if line.strip() in WORDS:
            control.put(line.strip())
    control.put("suspend")
