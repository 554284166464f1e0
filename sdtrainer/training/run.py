"""Training a run from wherever it stands to the exported file: a generator of events.

The command line, the page's child process and the tests consume the same generator; `record` keeps its log.
"""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from .. import events, files, planner, trackers
from ..events import Event, Failed, Finished, PhaseBegan, RunStarted, Saved, Suspended
from ..formats import intact
from ..plan import Plan
from ..planner import Draft
from ..seams import ExportOrder
from ..section import UserError
from ..workspace import RunFolder, Workspace
from . import checkpoint, provenance
from .control import Control
from .looking import export_weights
from .loop import Loop
from .setup import Training, decide, exact_parts, move_to, prepare
from .shortage import first_that_fits, ran_out

_MIXED = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}


def train(folder: RunFolder, workspace: Workspace, control: Control, more_steps: int = 0) -> Iterator[Event]:
    """Train a run on from its last checkpoint, or from the start, to the export.

    `more_steps` lengthens a run. Ends with Finished, or with Suspended if so ordered.

    Raises:
        UserError: something that the user can put right.
    """
    draft = decide(folder, workspace)
    if more_steps:
        draft = replace(draft, plan=draft.plan.longer(more_steps))
        planner.save_plan(draft.plan, folder)
    trackers.check(draft.plan.config.run)  # a run that goes on may do so on another computer
    accelerator = accelerator_of(draft.plan, folder)
    happenings = _train(folder, draft, workspace, accelerator, control)
    yield from trackers.logged(happenings, accelerator, draft.plan.config, folder)


def _train(
    folder: RunFolder, draft: Draft, workspace: Workspace, accelerator: Accelerator, control: Control
) -> Generator[Event, None, None]:
    """Prepare, go on from the last checkpoint, train and export."""
    saved = checkpoint.saved(folder.checkpoints)
    start = checkpoint.step_of(saved[-1]) if saved else 0
    yield RunStarted(folder.name, start, draft.plan.total_steps)
    training = yield from _until_ended(prepare(folder, draft, workspace, accelerator), control)
    if training is None:
        yield Suspended(start)
        return
    if saved:
        checkpoint.load(saved[-1], training.trained)
    loop = Loop(training, control, start)
    yield from loop.run()
    if loop.ending != "suspended":
        yield from _export(training, loop)


def accelerator_of(plan: Plan, folder: RunFolder) -> Accelerator:
    """Return accelerate's hand on mixed precision, several processes and trackers; its state is one per
    process.
    """
    # a text encoder that rests has no gradients, nor have its layers behind the one that is read: the other
    # processes would else wait for them
    learns = any(part in plan.facts.encoders for part in plan.trained_parts)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=learns)]
    return Accelerator(
        mixed_precision=_MIXED[plan.precision],
        cpu=plan.device == "cpu",
        kwargs_handlers=handlers,
        **trackers.options(plan.config, folder),
    )


def record(folder: RunFolder, happenings: Iterator[Event]) -> Iterator[Event]:
    """Append every event to the run's log and pass it on. What goes wrong becomes a last event, Failed, and
    goes on up.
    """
    try:
        for event in happenings:
            events.append(folder.events_file, event)
            yield event
    except UserError as error:
        events.append(folder.events_file, Failed(error.what, error.hint, error.path))
        raise
    except Exception as error:
        with folder.log_file.open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        events.append(folder.events_file, failure_of(error))
        raise


def failure_of(error: BaseException) -> Failed:
    """Say in a sentence what an unforeseen error means."""
    if ran_out(error):
        return Failed(
            "The card ran out of memory.",
            "Close other programs that use it, then resume; or start again with a smaller resolution.",
        )
    if isinstance(error, OSError) and error.errno == 28:
        return Failed("The disk is full.", "Free some space, then resume; nothing was lost.")
    if isinstance(error, MemoryError):
        return Failed("This computer ran out of main memory.", "Close other programs, then resume.")
    text = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return Failed(
        f"An unforeseen error: {text}.", "The details are in log.txt in the run folder; resume goes on."
    )


def _until_ended(
    work: Generator[Event, None, Training], control: Control
) -> Generator[Event, None, Training | None]:
    """Pass on the events of the preparation; returns None if a word asks for the end meanwhile."""
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value
        yield event
        if control.is_ending:
            work.close()
            return None


def _export(training: Training, loop: Loop) -> Iterator[Event]:
    yield PhaseBegan("export", "Writing the file")
    path = None
    if training.is_main:
        order = ExportOrder(
            folder=training.folder.output,
            name=_export_name(training, loop.step),
            precision=training.plan.config.export.precision,
            formats=tuple(training.plan.config.export.formats),
            metadata=provenance.metadata(training, loop.step),
        )
        paths = first_that_fits(*[partial(_write, training, order)] * 2)
        for path in paths:
            intact.read_back(path)  # what cannot be read back is no result
            yield Saved(loop.step, "export", _relative(path, training), files.size_of(path))
        path = paths[0]
    training.accelerator.wait_for_everyone()
    if path is not None:
        yield Finished(loop.step, _relative(path, training), loop.ending == "stopped")


def _write(training: Training, order: ExportOrder) -> list[Path]:
    """Write the files with all of the model in main memory."""
    move_to(training.parts, training.plan, "export")
    training.trained.leave_card()
    exact_parts(training)
    with export_weights(training):
        return training.method.export(training.parts, training.plan.config.method, order)


def _export_name(training: Training, step: int) -> str:
    """The run's name; with the step if it ended elsewhere than planned, so that nothing is lost."""
    first = training.plan.first_total_steps
    name = training.plan.config.run.name
    return name if step == first else f"{name}-{step}"


def _relative(path: Path, training: Training) -> str:
    return path.relative_to(training.folder.path).as_posix()
