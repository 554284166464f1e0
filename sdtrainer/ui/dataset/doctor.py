"""What would spoil a training, found in the background, with a button for each remedy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ...chores import CHORES
from ...config import Config
from ...data.census import Census
from ...data.images import EXTENSIONS
from ...data.overlay import Overlay, Table, overlay_for
from ...decisions import resolutions_of
from ...doctor import report
from ...doctor.report import Report
from ...section import Section, UserError, fields
from .. import words
from ..chore import ChoreCard
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..panel import CLICKS
from ..remembered import Remembered
from ..thumbnails import thumbnail
from ..words import tag
from . import findings
from .views import Sent

AUTOMATIC = 200
"""Of so many pictures the insides are looked at without being asked."""
APART_SECONDS = 15.0
REPORTS = 8
"""So many are kept, so that what was undone is known again at once."""
CHECK = "check"
ANSWERED = "This was answered already."


@dataclass(frozen=True)
class Look:
    """What a page looks at: the group that is open, by its check, and which page of it."""

    opened: str = ""
    page: int = 0


class Doctor:
    """The report on the folder, kept up to date by itself where that is quick."""

    title = "Check"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        names = tuple(fields(CHORES[CHECK].settings))
        self.card = ChoreCard(desk, CHECK, "Check everything", fixed=names, found=lambda answer: "")
        self.looks: Remembered[Look] = Remembered(Look())
        self.sent = Sent()
        self._states: tuple[tuple[Census, Section] | None, str] = (None, "")
        self._newest: tuple[Path, int, Report | None] = (Path(), -1, None)
        self._by_state: Remembered[Report | None] = Remembered(None, REPORTS)
        self._tried, self._next = "", 0.0

    def build(self) -> None:
        self.verdict = gr.HTML(elem_id="verdict")
        self.card.build_controls()
        with gr.Row(elem_classes="controls"):
            self.undo = gr.Button("Undo", size="sm", visible=False, elem_id="check-undo")
        self.groups = gr.HTML(js_on_load=CLICKS, elem_id="findings")

    @property
    def states(self) -> set[Any]:
        return set()

    @property
    def shows(self) -> list[Any]:
        return [self.verdict, self.undo, self.groups, *self.card.shows]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        self._keep_fresh(outlook)
        return self._view(outlook, given)

    def wire(self, refresh: Any) -> None:
        on = self.desk.on
        on(self.card.start.click, self._begin, (), self.card.shows, trigger_mode="once")
        on(self.card.stop.click, self._stop, (), self.card.shows, trigger_mode="once")
        one_by_one = {"trigger_mode": "multiple", "concurrency_limit": 1}  # quick clicks count, too
        refresh(on(self.groups.click, self._clicked, (), self.shows, clicks=True, **one_by_one))
        refresh(on(self.undo.click, self._undo, (), self.shows))

    def _stop(self, given: Given) -> dict[Any, Any]:
        self.desk.errands.stop(CHECK)
        return self.sent.news(given.session, self.card.show())

    def newest(self, outlook: Outlook) -> Report | None:
        """Return the report on a folder as it is now, else the newest, without what was answered since."""
        census = outlook.census
        if census is None:
            return None
        file = report.file_of(self.desk.workspace.root, census.folder)
        written = file.stat().st_mtime_ns if file.exists() else 0
        if self._newest[:2] != (file, written):
            made = report.newest(self.desk.workspace.root, census.folder)
            self._newest = (file, written, made)
            if made:
                self._by_state[made["state"]] = made
        made = self._by_state[self._state(outlook)] or self._newest[2]
        return report.open_findings(made, self._overlay(census)) if made else None

    def _overlay(self, census: Census) -> Overlay:
        return overlay_for(self.desk.workspace.root, census.folder)

    def _view(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        census, look = outlook.census, self.looks[given.session]
        made = self.newest(outlook)
        shown = self.card.show()
        if census is None or made is None:
            text = "Nothing was checked yet." if census else "Choose a folder with pictures first."
            empty = {
                self.verdict: tag("p", text, "quiet"),
                self.groups: "",
                self.undo: gr.update(visible=False),
            }
            return self.sent.news(given.session, shown | empty)
        what = self._overlay(census).undoable
        copy = lambda path: self._copy(census, path)  # noqa: E731
        full = {
            self.verdict: findings.headline(report.light(made), report.counted(made)),
            self.groups: findings.groups(made["groups"], look.opened, look.page, copy),
            self.undo: gr.update(visible=what is not None, value=f"Undo: {what}"),
        }
        return self.sent.news(given.session, shown | full)

    def _copy(self, census: Census, path: str) -> str:
        file = census.folder / path
        is_picture = file.suffix.lower() in EXTENSIONS and file.is_file()
        return str(thumbnail(self.desk.workspace, file)) if is_picture else ""

    def _begin(self, given: Given) -> dict[Any, Any]:
        outlook = self.desk.look()
        if outlook.census is None or outlook.config is None:
            raise outlook.error or UserError("There are no pictures.", "Choose a folder.")
        self.desk.begin(CHECK, _values(outlook) | {"look_inside": True})
        return self.sent.news(given.session, self.card.show())

    def _keep_fresh(self, outlook: Outlook) -> None:
        """Check in the background what changed, once for each state of the folder and not too often."""
        census = outlook.census
        if census is None or outlook.config is None or not self.desk.is_warm or self.card.doing:
            return
        state, made = self._state(outlook), self.newest(outlook)
        is_known = made is not None and made["state"] == state
        if is_known or state in ("", self._tried) or time.monotonic() < self._next:
            return
        self._tried, self._next = state, time.monotonic() + APART_SECONDS
        inside = len(census.samples) <= AUTOMATIC or bool(made and made["looked_inside"])
        with contextlib.suppress(UserError):  # paths are refused while shared, and that is said there
            self.desk.begin(CHECK, _values(outlook) | {"look_inside": inside})

    def _state(self, outlook: Outlook) -> str:
        """Return what tells this folder and these settings from others; "" where settings are wrong."""
        census = outlook.census
        if census is None or outlook.config is None:
            return ""
        try:
            settings = CHORES[CHECK].check(_values(outlook))
        except UserError:  # it is said where the settings are
            return ""
        of, state = self._states
        if of is None or of[0] is not census or of[1] != settings:
            state = report.state_of(census, settings)
            self._states = ((census, settings), state)
        return state

    def _clicked(self, given: Given) -> dict[Any, Any]:
        click, outlook = given.clicked, self.desk.look()
        act, name = click.get("act", ""), click.get("check", "")
        made = self.newest(outlook)
        if outlook.census is None or made is None:
            raise UserError("This report is out of date.", "Press 'Check everything'.")
        if act == "open":
            is_open = self.looks[given.session].opened == name
            return self._turn(outlook, given, Look("" if is_open else name))
        if act == "page":
            return self._turn(outlook, given, Look(name, int(click.get("page", 0))))
        about = [g for g in made["groups"] if g["name"] == name]
        chosen = [
            f for g in about for f in g["findings"] if act.endswith("-all") or _file(f) == click.get("file")
        ]
        if not chosen:
            raise UserError(ANSWERED, "")
        overlay = self._overlay(outlook.census)
        if act.startswith("fix"):
            _fix(overlay, chosen, click.get("fix", ""))
        else:
            _ignore(overlay, chosen, name, about[0]["title"])
        self.desk.look_again()
        return self._view(outlook, given)

    def _turn(self, outlook: Outlook, given: Given, look: Look) -> dict[Any, Any]:
        self.looks[given.session] = look
        return self._view(outlook, given)

    def _undo(self, given: Given) -> dict[Any, Any]:
        outlook = self.desk.look()
        if outlook.census is None:
            raise outlook.error or UserError("There are no pictures.", "Choose a folder.")
        if (step := self._overlay(outlook.census).undo()) is None:
            raise UserError("There is nothing to undo.", "")
        self.desk.look_again()
        gr.Info(f"Undone: {words.safe(step.what)}", duration=4)
        return self._view(outlook, given)


def _values(outlook: Outlook) -> dict[str, Any]:
    """The settings of the project that the check is about."""
    assert outlook.config
    config: Config = outlook.config
    data = config.data
    facts = outlook.facts
    resolutions = resolutions_of(config, facts) if facts else config.train.resolutions or (512,)
    return {
        "folder": data.folder,
        "goal": config.run.goal,
        "trigger": data.trigger,
        "resolution": max(resolutions),
        "batch_size": config.train.batch_size,
        "caption_from": data.caption_from,
        "validation_folder": data.validation_folder,
        "validation_split": data.validation_split,
    }


def _file(finding: Mapping[str, Any]) -> str:
    return finding["files"][0] if finding["files"] else ""


def _fix(overlay: Overlay, chosen: list[Mapping[str, Any]], label: str) -> None:
    """Lay the remedies of this label into the overlay, in one change for each table."""
    values: dict[Table, dict[str, Any]] = {}
    for fix in _fixes(chosen, label):
        values.setdefault(fix["table"], {}).update(fix["values"])
    if not values:
        raise UserError(ANSWERED, "")
    for table, entries in values.items():
        of = next(iter(entries)) if len(entries) == 1 else words.count(len(entries), "picture")
        overlay.apply(f"{label}: {of}", entries, table)


def _fixes(chosen: list[Mapping[str, Any]], label: str) -> Iterator[Mapping[str, Any]]:
    return (fix for finding in chosen for fix in finding["fixes"] if fix["label"] == label)


def _ignore(overlay: Overlay, chosen: list[Mapping[str, Any]], name: str, title: str) -> None:
    before = overlay.entries("ignored")
    entries = {path: sorted({*before.get(path, ()), name}) for path in map(_file, chosen)}
    overlay.apply(f"Ignored: {title} ({len(entries):,})", entries, "ignored")
