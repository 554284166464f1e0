"""captions FOLDER DO: many captions changed at once, looked at first, undone, or written beside the images.

Edits are kept in the workspace, as on the page, and the page's undo button takes them back as well.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from .data import caption_edits
from .data.caption_edits import OPERATIONS, EditSection, Operation
from .data.caption_search import Known, SearchSection, found
from .data.census import Census
from .data.index import index_for
from .data.overlay import Doing, Found, Overlay, Step, overlay_for
from .data.scan import scan
from .data.section import DataSection
from .events import Event, PhaseBegan, Progress
from .section import UserError, knob
from .workspace import Workspace

Answer = dict[str, Any]
SHOWN = 20
_STEPS = {"write": "Writing", "undo": "Putting back", "redo": "Writing again"}


class Settings(EditSection, SearchSection):
    """Changes captions. Your files stay as they are until you write the captions into the folder."""

    folder: str = knob("", "Image folder", "The folder with the images.", level="basic", is_path=True)
    do: Literal[Operation, "undo", "redo", "write"] = knob(
        "replace",
        "What to do",
        "What is done to every caption chosen; undo and redo step through all changes, write puts the edited"
        " captions into text files beside the images.",
        level="basic",
    )
    trigger: str = knob("", "Trigger word", "For showing captions without it.", level="basic", max_length=200)
    preview: bool = knob(False, "Only look", "Say what would change, and change nothing.", level="basic")


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, Answer]:
    """Do it. Raises UserError."""
    _check(settings)
    data = DataSection(folder=settings.folder, trigger=settings.trigger)
    folder = Path(settings.folder).expanduser()
    yield PhaseBegan("work", "Reading captions")
    overlay = overlay_for(workspace.root, folder)
    census = scan(folder, data, overlay, index_for(workspace.root, folder))
    if settings.do in OPERATIONS:
        return _edit(settings, census, overlay)
    if settings.preview:
        raise UserError(f"Only look: '{settings.do}' has nothing to look at.", "Leave it out.", "preview")
    yield PhaseBegan("work", f"{_STEPS[settings.do]} text files")
    if settings.do == "write":
        written = yield from _counting(overlay.writing(census))
        said = f"{len(written):,} text files written into {census.folder}."
        return {"changes": [], "said": said, "left": []}
    stepping = overlay.undoing() if settings.do == "undo" else overlay.redoing()
    return _stepped((yield from _counting(stepping)), settings.do)


def told(answer: Answer) -> Iterator[str]:
    """The changes first, a few of them; then what was done."""
    for path, before, after in answer["changes"][:SHOWN]:
        yield from (path, f"  - {before}", f"  + {after}")
    if len(answer["changes"]) > SHOWN:
        yield f"and {len(answer['changes']) - SHOWN:,} more"
    yield answer["said"]
    yield from answer["left"]


def _check(settings: Settings) -> None:
    """Refuse what would be passed over in silence."""
    uses = next((kind.uses for word, kind in OPERATIONS.items() if word == settings.do), ())
    for name in EditSection.model_fields.keys() & settings.model_fields_set - {"do", "separator"}:
        if name not in uses:
            title = Settings.model_fields[name].title
            raise UserError(f"{title} ({name}): '{settings.do}' does not use it.", "Leave it out.", name)


def _edit(settings: Settings, census: Census, overlay: Overlay) -> Answer:
    section = EditSection(**settings.model_dump(include=set(EditSection.model_fields)))
    chosen = {s.path: s.caption for s in found(census.samples, settings, _known(settings, census, overlay))}
    after = caption_edits.edited(chosen, section, [sample.caption for sample in census.samples])
    changes = [[path, chosen[path], text] for path, text in after.items()]
    words = caption_edits.words_for(section)
    if not settings.preview:
        overlay.apply(words, after)
    done = "would change" if settings.preview else "changed"
    said = f"{words}. {len(after):,} of {len(chosen):,} captions {done}."
    return {"changes": changes, "said": said, "left": []}


def _known(settings: Settings, census: Census, overlay: Overlay) -> Known:
    return Known(
        trigger=settings.trigger,
        trained_as=lambda sample: sample.caption,
        count_tokens=_counted,
        troubled={problem.file for problem in census.problems},
        edited=overlay.captions,
        separator=settings.separator,
    )


def _counted(captions: Iterable[str]) -> list[int]:
    from .families.clip_tokenizer import count_tokens

    return count_tokens(list(captions))


def _counting(doing: Doing[Found]) -> Generator[Event, None, Found]:
    while True:
        try:
            done, total = next(doing)
        except StopIteration as end:
            return end.value
        yield Progress(done, total, "text files")


def _stepped(step: Step | None, word: str) -> Answer:
    if step is None:
        return {"changes": [], "said": "There is nothing left to go back or forth to.", "left": []}
    left = [f"{file} was changed since, and left as it is." for file in step.left]
    did = "Undone" if word == "undo" else "Done again"
    return {"changes": [], "said": f"{did}: {step.what}. {len(step.names):,} pictures.", "left": left}
