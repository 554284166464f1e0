"""The command line in processes of its own, forked from a server that has done the heavy imports.

They are processes like any other: they can be killed, and take nothing with them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

PROJECT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "peft",
    "accelerate",
    "transformers.models.clip.modeling_clip",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "sdtrainer.training.run",
    "sdtrainer.__main__",
)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def start(*words: object, environment: Mapping[str, str], folder: Path | None = None) -> BaseProcess:
    """Start `python -m sdtrainer WORDS`; what it prints goes to `out` and `err` in the folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*HEAVY])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT), str(Path(__file__).parent)])
    try:
        words_ = [str(word) for word in words]
        process = context.Process(target=_main, args=(words_, dict(environment), str(folder or "")))
        process.start()
    finally:
        os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)
    return process


def run(*words: object, environment: Mapping[str, str], timeout: float) -> Done:
    """Run it to its end."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(*words, environment=environment, folder=Path(folder))
        process.join(timeout)
        assert process.exitcode is not None, f"{words} took more than {timeout} s"
        texts = [(Path(folder) / name).read_text("utf-8") for name in ("out", "err")]
        return Done(process.exitcode, *texts)


def _main(words: list[str], environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(PROJECT)
    for number, name in ((1, "out"), (2, "err")):
        flags = os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(str(Path(folder) / name) if folder else os.devnull, flags), number)
    from sdtrainer.__main__ import main

    sys.exit(main(words))
