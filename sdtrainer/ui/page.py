"""The whole page: header, tabs and plan, and how a change in one shows in the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from ..section import UserError, override
from . import pulse
from .access import Role
from .dataset import Dataset
from .desk import Desk
from .form import Form, merged
from .gallery import TRY, Gallery
from .header import Header, run_words
from .held import Held
from .listen import QUIETLY, Given
from .method import Method
from .outlook import Reading
from .panel import Costs, Panel
from .runs import Runs
from .sections import veiled
from .share import ShareBox, Sharing
from .tools import Tools
from .train import Train
from .view import RunView
from .vram import TITLE as VRAM
from .vram import Vram

CACHE_SECONDS = (3600, 24 * 3600)  # every hour gradio drops its copies of files older than a day
TITLE = "sdtrainer"
_VEILED = (*(f"#tab-{name}-button" for name in ("dataset", "method", "vram", "tools")), veiled(TRY))
VEIL = f"<style>{', '.join(_VEILED)} {{ display: none !important }}</style>"
"""Hides from viewers the tabs in which something is changed or made: gradio 6.31 takes no notice of a tab's
`visible` after the start.
"""


class Page:
    """Builds the layout, then wires it."""

    def __init__(self, desk: Desk, sharing: Sharing) -> None:
        self.desk, self.form, self.held = desk, Form(), Held()
        self.header = Header(desk, ShareBox(desk, sharing))
        self.dataset, self.method = Dataset(desk, self.form), Method(desk, self.form)
        self.vram, self.train = Vram(desk), Train(desk)
        self.gallery, self.runs = Gallery(desk), Runs(desk)
        self.tools = Tools(desk, self.gallery.trying)
        self.panel = Panel()

    def build(self) -> gr.Blocks:
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=CACHE_SECONDS
        ) as blocks:
            self.header.build()
            with gr.Row(elem_id="main", equal_height=False):
                with (
                    gr.Column(scale=3, min_width=300, elem_id="work"),
                    gr.Tabs(selected="dataset") as self.tabs,
                ):
                    self.edit_tabs = [
                        self._tab("Dataset", self.dataset),
                        self._tab("Method", self.method),
                        self._tab(VRAM, self.vram),
                    ]
                    self._tab("Train", self.train)
                    self._tab("Gallery", self.gallery)
                    self._tab("Runs", self.runs)
                    self.edit_tabs.append(self._tab("Tools", self.tools))
                self.panel.build()
            self.marked = gr.State("")
            self.wrong = gr.Textbox(visible="hidden", label="Wrong setting", elem_id="wrong-setting", lines=2)
            self.seen = gr.State({})
            self.filling = gr.Textbox(visible="hidden", label="Filling", elem_id="filling")
            self.pulse = gr.Textbox(visible="hidden", label="Pulse", elem_id="pulse")
            self.session = gr.Textbox(visible="hidden", label="Session", elem_id="session")
            self.veil = gr.HTML()
            self.timer = gr.Timer(pulse.SECONDS, active=False)
            self._wire(blocks)
        return blocks

    def _tab(self, title: str, content: Any) -> gr.Tab:
        with gr.Tab(title, id=title.lower(), elem_id=f"tab-{title.lower()}", render_children=True) as tab:
            content.build()
        return tab

    def _wire(self, blocks: gr.Blocks) -> None:
        self._wire_form()
        self._wire_parts()
        self._wire_news(blocks)

    def _wire_form(self) -> None:
        """What a person sets shows what follows from it, and can be begun."""
        on, typed = self.desk.on, {*self._states, *self.form.components}
        on(
            self.form.edits(),
            self._typed,
            typed,
            self._everywhere,
            trigger_mode="always_last",
            queue=False,
        )
        marks = {self.wrong, self.marked, self.form.kind}
        on(self.wrong.change, self._mark, marks, [self.marked, *self.form.components], queue=False)
        on(self.panel.train.click, self._start, typed, [*self._settings, self.tabs], trigger_mode="once")
        shown = [self.tabs, *self.vram.shows]
        self._fill_after(on(self.panel.advice.click, self._fix, self.vram.chosen, shown, clicks=True))

    def _wire_parts(self) -> None:
        """Each part by itself, and what leads from one to another."""
        on, filled = self.desk.on, self._fill_after
        self.header.share.wire()
        self.dataset.wire(filled)
        self.method.wire(filled)
        self.vram.wire(filled, self.edit_tabs[1:3])
        self.train.wire()
        self.gallery.wire()
        self.runs.wire(filled, self._watch_after)
        self.tools.wire(filled)
        drawn_with = [self.tabs, *self.gallery.shown_by_trying]
        on(self.runs.attempt.click, lambda g: self._try(self.runs.chosen[g.session]), (), drawn_with)
        on(self.train.attempt.click, lambda g: self._try(self._newest()), (), drawn_with)
        on(self.train.open.click, self._open_run, (), [self.tabs, *self.runs.shows])

    def _wire_news(self, blocks: gr.Blocks) -> None:
        """Opened, the page shows everything; afterwards, what changed."""
        on, shown = self.desk.on, [*self._everywhere, *self._follows]
        uses = {*self._states, self.gallery.run, self.gallery.prompt, self.gallery.before, self.gallery.after}
        once = [self.timer, self.session, self.veil, self.tabs, *self.edit_tabs, *self._controls]
        on(blocks.load, self._open, uses, [*once, *shown], looks_only=True)
        self.timer.tick(None, self.session, self.pulse, js=pulse.ASK, api_visibility="private", **QUIETLY)
        on(
            self.pulse.change,
            lambda g: self._follow(g, g[self.seen] or {}),
            uses,
            shown,
            looks_only=True,
            trigger_mode="always_last",
            queue=False,
        )

    def _fill_after(self, done: Any) -> Any:
        """Show the project's settings in the form, after something changed them. What comes while an answer
        is on its way is shown by a later one: that one may have been made before it.
        """
        return self.desk.on(done, self._fill, self._states, self._everywhere, trigger_mode="always_last")

    def _watch_after(self, done: Any) -> Any:
        """Show the Train tab, after a run was begun."""
        return self.desk.on(done, lambda g: {self.tabs: gr.update(selected="train")}, (), [self.tabs])

    @property
    def _states(self) -> set[Any]:
        """What the page holds beside the settings, and every look at them needs."""
        return {self.filling, self.seen, *self.dataset.states, *self.vram.chosen}

    @property
    def _settings(self) -> list[Any]:
        """What follows from the settings."""
        parts = (self.panel, self.dataset, self.method, self.vram)
        return [*(shown for part in parts for shown in part.shows), self.wrong, *self.form.groups]

    @property
    def _everywhere(self) -> list[Any]:
        """The settings themselves, and what follows from them."""
        return [*self._settings, self.filling, *self.form.components]

    @property
    def _follows(self) -> list[Any]:
        """What follows from runs and other work."""
        parts = (self.header, self.train, self.gallery, self.runs, self.tools)
        return [*(shown for part in parts for shown in part.shows), *self.tools.lists, self.seen]

    @property
    def _controls(self) -> list[Any]:
        """What a viewer does not see. The server refuses it to them as well."""
        return [
            self.panel.column,
            self.train.controls,
            self.runs.actions,
            self.header.share.button,
        ]

    def _typed(self, given: Given) -> dict[Any, Any]:
        """A person changed a setting: keep it, and show what follows from it."""
        if not given[self.seen]:  # not filled yet: what the form holds is nobody's wish
            return {}
        before = self.desk.project.values["data"]["folder"]
        is_new = self._take(given)
        is_elsewhere = self.desk.project.values["data"]["folder"] != before  # more may follow from that
        if is_elsewhere or self.held.is_behind(given.session, self._number(given)):
            return self._fill(given)
        return self._show(given) if is_new else {}

    def _take(self, given: Given) -> bool:
        """Take what a person changed in this page's form; returns whether it changes the project."""
        form = self.form.read(given.values)
        changes = self.held.take(given.session, self._number(given), form)
        return self.desk.project.lay(changes, form["method"]["kind"], given.session)

    def _number(self, given: Given) -> int:
        return int(given[self.filling] or 0)

    def _fill(self, given: Given) -> dict[Any, Any]:
        return merged(self._filled(given), self._show(given))

    def _filled(self, given: Given) -> dict[Any, Any]:
        """Show the project's settings where the page holds others; what is being typed elsewhere stays."""
        values = self.form.complete(self.desk.project.values)
        number, paths = self.held.fill(given.session, values)
        return self.form.fill(values, paths) | self.method.unfold(values) | {self.filling: str(number)}

    def _show(self, given: Given) -> dict[Any, Any]:
        """Show what follows from the project's settings."""
        outlook = self.desk.look()
        ledger = outlook.fit.ledger if outlook.fit else None
        pace = self.desk.pace(outlook.config) if outlook.config else None
        costs = Costs(
            peak_bytes=ledger.held(ledger.peak_phase) if ledger else None,
            misses_activations=bool(ledger and ledger.unknown),
            file_bytes=ledger.exported_bytes if ledger else None,
            seconds=pace * outlook.plan.total_steps if pace and outlook.plan else None,
        )
        is_busy = self.desk.jobs.state().current is not None
        return (
            self.panel.show(outlook, costs, is_busy)
            | self.dataset.show(outlook, given)
            | self.method.show(outlook, ledger)
            | self.vram.show(outlook, given)
            | {self.wrong: _wrong(outlook.error)}
        )

    def _mark(self, given: Given) -> dict[Any, Any]:
        """Turn the wrong field red, and the one before back."""
        path, _, sentence = (given[self.wrong] or "").partition("\n")
        return self.form.mark(path, sentence, given[self.form.kind], given[self.marked]) | {self.marked: path}

    def _start(self, given: Given) -> dict[Any, Any]:
        if not given[self.seen]:
            return {}
        self._take(given)
        try:
            run = self.desk.start(self.desk.project.values)
        except UserError:
            return self._show(given)
        if self.desk.jobs.state().current not in (None, run.name):
            gr.Info(f"{run.name} is in the queue.", duration=4)
        return {self.tabs: gr.update(selected="train")}

    def _try(self, name: str) -> dict[Any, Any]:
        """Show the place to draw, with the result of this run."""
        return {self.tabs: gr.update(selected="gallery")} | self.gallery.open_trying(self.desk.run(name))

    def _open_run(self, given: Given) -> dict[Any, Any]:
        """Show the newest run's files, and what else can be done with it."""
        return {self.tabs: gr.update(selected="runs")} | self.runs.open(given.session, self._newest())

    def _newest(self) -> str:
        run = self.desk.newest()
        return run.name if run else ""

    def _fix(self, given: Given) -> dict[Any, Any]:
        """Answer a piece of advice, or show the tab that does."""
        if given.clicked.get("act") == "vram":
            return {self.tabs: gr.update(selected="vram")} | self.vram.open(given)
        outlook = self.desk.look()
        number = int(given.clicked.get("number", -1))
        if outlook.plan is None or not 0 <= number < len(outlook.plan.advice):
            raise UserError("This advice is out of date.", "Look at the plan again.")
        project = self.desk.project
        project.change(override(project.values, dict(outlook.plan.advice[number].fix)), given.session)
        return {}

    def _open(self, given: Given) -> dict[Any, Any]:
        """A page was opened or reloaded: show everything."""
        self.desk.was_opened.set()
        shown = self._follow(given, {}) | {self.timer: gr.Timer(active=True), self.session: given.session}
        if given.role == "viewer":
            hidden = {part: gr.update(visible=False) for part in self._controls}
            closed = {tab: gr.update(interactive=False) for tab in self.edit_tabs}
            return shown | hidden | closed | {self.tabs: gr.update(selected="train"), self.veil: VEIL}
        if self.desk.jobs.state().current:
            shown[self.tabs] = gr.update(selected="train")
        return merged(self._filled(given), shown)

    def _follow(self, given: Given, seen: dict[str, str]) -> dict[Any, Any]:
        """Send what changed since this page last heard, and nothing else."""
        stamps, run = self.stamps(given.role, given.session), self.desk.newest()
        in_gallery = self.gallery.shown(given.session)
        parts: dict[str, Callable[[], dict[Any, Any]]] = {
            "header": self.header.show,
            "train": lambda: self.train.show(run),
            "pictures": lambda: self.train.show_pictures(run),
            "log": lambda: self.train.show_log(run),
            "gallery": lambda: (
                self.gallery.follow(given, in_gallery) if in_gallery else self.gallery.show(None)
            ),
            "runs": lambda: self.runs.show(given.session),
            "settings": lambda: self._show(given),
            "project": lambda: self._fill(given),
        }
        parts |= {name: partial(self.tools.show, name, given) for name in self.tools.news}
        updates: dict[Any, Any] = {}
        for name, show in parts.items():
            if stamps[name] and stamps[name] != seen.get(name):
                updates |= show()
        return updates | {self.seen: stamps}

    def stamps(self, role: Role, session: str) -> dict[str, str]:
        """Return, part by part, what its look depends on in this person's page."""
        desk = self.desk
        run, in_gallery = desk.newest(), self.gallery.shown(session)
        view = desk.view(run) if run else RunView()
        jobs, names, status = (
            desk.jobs.state(),
            [r.name for r in desk.runs()],
            desk.status(run) if run else "",
        )
        tenths = view.step * 20 // max(1, view.total)
        stamps: dict[str, Any] = {
            "header": (desk.glance(), run_words(desk), desk.access.needs_login),
            "train": (run, view.version, status),
            "pictures": (run, view.sample_steps[-1:], len(view.newest_samples())),
            "log": (run, view.log[-1:]),
            "gallery": (in_gallery, len(desk.view(in_gallery).samples) if in_gallery else 0, names),
            "runs": (names, jobs, status, len(view.samples), tenths),
            "settings": "",
            "project": "",
        }
        stamps |= dict.fromkeys(self.tools.news, "")
        if role == "owner":
            stamps |= self.tools.stamps()
            stamps["settings"] = (
                desk.is_warm,
                desk.num_counted,
                desk.num_answers,
                desk.reading,
                jobs.current is None,
            )
            if desk.project.author not in ("", session):  # another page typed: this one shows it
                stamps["project"] = desk.project.version
        return {name: repr(stamp) if stamp != "" else "" for name, stamp in stamps.items()}


def _wrong(error: UserError | None) -> str:
    """Say which setting is wrong and why; pictures that are still being read are no fault."""
    return "" if error is None or isinstance(error, Reading) else f"{error.path}\n{error}"
