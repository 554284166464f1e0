"""check FOLDER: everything worth knowing of a set of pictures before it is trained on. Changes nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from .. import config as configs
from .. import planner
from ..data.census import Census
from ..data.index import index_for
from ..data.overlay import overlay_for
from ..data.section import CaptionSource
from ..events import Event, PhaseBegan, Progress
from ..seams import Goal
from ..section import Section, knob
from ..workspace import Workspace
from . import report
from .case import Case
from .looks import Looks, headers_of


class Settings(Section):
    """Looks for what would spoil a training. Nothing is changed."""

    folder: str = knob("", "Image folder", "The folder with the images.", level="basic", is_path=True)
    goal: Goal = knob(
        "subject", "Goal", "What is to be taught; how many pictures are enough depends on it.", level="basic"
    )
    trigger: str = knob(
        "", "Trigger word", "Captions without it are listed; empty for none.", level="basic", max_length=200
    )
    look_inside: bool = knob(
        True,
        "Look inside",
        "Look for blur, copies, frames and damage, which takes about a minute for 1,000 photos; off reads"
        " only names, sizes and captions.",
        level="basic",
    )
    resolution: int = knob(
        512,
        "Resolution",
        "The size trained at; smaller pictures are listed.",
        unit="px",
        ge=64,
        le=2048,
    )
    batch_size: int = knob(
        1, "Batch size", "Pictures trained on at once; rare shapes cannot fill a batch.", ge=1, le=256
    )
    caption_from: CaptionSource = knob("auto", "Captions from", "Where captions come from, as in training.")
    validation_folder: str = knob(
        "", "Validation folder", "Its pictures should not be in the training set.", is_path=True
    )
    validation_split: float = knob(0.0, "Validation part", "The part held out, as in training.", ge=0, le=0.5)


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, report.Report]:
    """Check a folder. Raises UserError if there is no usable picture in it."""
    config = _config(settings)
    yield PhaseBegan("work", "Reading the folder")
    found = planner.look(config, workspace)
    census, validation = found.census, found.validation
    looks, held_out = _looks(census, workspace), _looks(validation or _nobody(census), workspace)
    if settings.look_inside:
        total = len(census.samples) + len(held_out.samples)
        yield PhaseBegan("work", "Looking at the pictures")
        for first, part in ((0, looks), (len(looks.samples), held_out)):
            for done in part.look():
                yield Progress(first + done, total, "pictures")
    yield PhaseBegan("work", "Checking")
    case = _case(config, found.census, validation, looks, held_out, workspace)
    made = report.make(case, report.state_of(census, settings))
    report.save(made, workspace.root)
    folder = planner.resolve_images(settings.folder)
    return report.open_findings(made, overlay_for(workspace.root, folder))


def told(answer: report.Report) -> Iterable[str]:
    return report.told(answer)


def _config(settings: Settings) -> configs.Config:
    """The settings as a run would have them, so that both see the same pictures."""
    data = settings.model_dump(
        include={"folder", "trigger", "caption_from", "validation_folder", "validation_split"}
    )
    values: dict[str, Any] = {
        "data": data,
        "run": {"goal": settings.goal},
        "train": {"resolution": settings.resolution, "batch_size": settings.batch_size},
    }
    return configs.build(values)


def _looks(census: Census, workspace: Workspace) -> Looks:
    return Looks(census, index_for(workspace.root, census.folder))


def _nobody(census: Census) -> Census:
    return Census(census.folder, (), (), "")


def _case(
    config: configs.Config, census: Census, validation: Census | None, looks: Looks, held_out: Looks,
    workspace: Workspace,
) -> Case:  # fmt: skip
    broken = {problem.file for problem in looks.problems}
    usable = tuple(sample for sample in census.samples if sample.path not in broken)
    return Case(
        config=config,
        census=Census(census.folder, usable or census.samples, census.problems, census.layout),
        validation=validation,
        problems=(*census.problems, *looks.problems),
        headers=headers_of(census.samples, index_for(workspace.root, census.folder)),
        looks=looks.seen,
        held_out_looks=held_out.seen,
    )
