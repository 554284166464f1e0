"""Long work beside training: captioning a folder, checking it, merging models. One line each in CHORES.

A chore's module holds its `Settings` (a Section) and

    work(settings, workspace) -> Generator[Event, None, dict]   says how far it is, returns what it found
    told(answer) -> Iterable[str]                                that, as lines for a person; paths come last

What it says are PhaseBegan, Progress, Said and Saved (events.py); what it found is plain data. It writes
whole files only, so that it may be killed at any moment; one that is stopped clears away what is half done.
The command line does it here; the page has it done by a child, which gives its memory back.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from . import child, events, files
from .child import Hand
from .events import Event, PhaseBegan, Progress
from .pace import Pace
from .section import Section, UserError, checked
from .workspace import Workspace

Answer = dict[str, Any]
"""What a chore found: plain data, as JSON has it."""
Doing = Generator[Event, None, Answer]
NO_CARD = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Chore:
    """`verb` is its name on the command line, `about` what it does, in a line; `plain` are the settings that
    need no name there, in order, of which those in `spare` may be left out. One that `needs_card` has it for
    itself.
    """

    verb: str
    about: str
    module: str
    plain: tuple[str, ...] = ()
    needs_card: bool = False
    spare: tuple[str, ...] = ()

    @property
    def settings(self) -> type[Section]:
        return self._module.Settings

    def check(self, values: Mapping[str, Any]) -> Section:
        """Return the settings. Raises UserError naming the one that is wrong."""
        return checked(self.settings, values, self.verb)

    def told(self, answer: Answer) -> Iterable[str]:
        return self._module.told(answer)

    def do(self, settings: Section, workspace: Workspace) -> Doing:
        """Do it here. Progress comes at once, then at most four times a second, with the time left."""
        return _paced(self._module.work(settings, workspace))

    @property
    def _module(self) -> Any:
        return importlib.import_module(f".{self.module}", __package__)


CHORES: Mapping[str, Chore] = {
    chore.verb: chore
    for chore in (
        Chore("caption", "write captions for the pictures of a folder", "captioners.work", ("folder",), True),
        Chore("check", "say what would spoil a training, before it", "doctor.work", ("folder",)),
        Chore("captions", "change many captions at once, or undo that", "recaption", ("folder", "do")),
        Chore("classes", "draw class images now", "classes", ("run", "settings"), needs_card=True),
        Chore("sample", "draw with any model and adapters", "toolbox.sample", ("what",), needs_card=True),
        Chore("inspect", "say what a model or adapter file is", "toolbox.inspect", ("file",)),
        Chore("edit", "change what a file says of itself", "toolbox.edit", ("file",)),
        Chore("like", "print the settings that a file was trained with", "toolbox.like", ("file",)),
        Chore("merge", "put adapters into a base model", "toolbox.merge", ("base", "adapters")),
        Chore("import", "copy pictures from elsewhere into the workspace", "exchange.bringing", ("source",)),
        Chore(
            "export",
            "write pictures for other programs",
            "exchange.giving",
            ("folder", "out"),
            spare=("out",),
        ),
        Chore("mask", "mask what words name in the pictures of a folder", "masking", ("folder",)),
        Chore("mix", "make one adapter of several", "toolbox.mix", ("adapters",)),
        Chore("resize", "give an adapter another rank", "toolbox.resize", ("file",)),
        Chore("convert", "store an adapter or a model otherwise", "toolbox.convert", ("file",)),
        Chore("extract", "make a LoRA of two models", "toolbox.extract", ("base", "tuned"), needs_card=True),
    )
}


def do_elsewhere(
    verb: str,
    values: Mapping[str, Any],
    workspace: Workspace,
    hear: Callable[[Event], None],
    hand: Hand,
    with_card: bool = True,
) -> Answer:
    """Have a chore done in a process of its own.

    Raises:
        UserError: as the chore raised it there.
        child.Stopped, child.Failed: it was stopped, or died.
    """
    hand.hear = lambda line: hear(events.from_json(line))
    question = {"values": dict(values), "workspace": str(workspace.root)}
    told = child.ask(["chore", verb], question, hand, None, {} if with_card else NO_CARD)
    if "refused" in told:
        raise UserError(*told["refused"])
    return cast(Answer, told["found"])


def serve(verb: str) -> None:
    """Be the process that does it."""
    child.serve(lambda question, say: _served(CHORES[verb], question, say))


def _served(chore: Chore, question: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    try:
        with closing(
            chore.do(chore.check(question["values"]), Workspace(Path(question["workspace"])))
        ) as doing:
            while True:
                try:
                    say(events.to_json(next(doing)))
                except StopIteration as end:
                    return {"found": end.value}
    except UserError as error:
        return {"refused": [error.what, error.hint, error.path]}


def _paced(doing: Doing) -> Doing:
    """Pass on what is worth telling. Raises UserError where the disk refused."""
    try:
        with closing(doing):
            return (yield from _at_times(doing))
    except OSError as error:
        if error.errno not in files.FAULTS:
            raise
        what, hint = files.FAULTS[error.errno]
        where = error.filename2 or error.filename or "This was not done"
        raise UserError(f"{where}: {what}.", f"{hint}.") from error


def _at_times(doing: Doing) -> Doing:
    pace, has_said = Pace(), False
    while True:
        try:
            event = next(doing)
        except StopIteration as end:
            return cast(Answer, end.value)
        if isinstance(event, PhaseBegan):
            pace, has_said = Pace(), False
        if isinstance(event, Progress):
            if has_said and not pace.is_due() and event.done < event.total:
                continue
            has_said = True
            event = replace(event, seconds_left=pace.seconds_left(event.done, event.total))
        yield event
