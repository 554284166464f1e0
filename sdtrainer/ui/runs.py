"""The Runs tab: every run there was, the queue, and what can be done with a finished one."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any
from urllib.parse import quote

import gradio as gr

from ..config import Config
from ..methods import method_of
from ..workspace import RunFolder
from . import destinations, downloads, words
from .desk import Desk
from .listen import Given
from .panel import CLICKS
from .remembered import Remembered
from .thumbnails import GRID, thumbnail
from .train import LIVE, STATE_LIGHTS, STATE_WORDS
from .view import RunView
from .words import picture, tag

PER_PAGE = 12
UNKNOWN = "settings of another version"
RESUMABLE = ("interrupted", "failed", "stopped", "finished")


class Runs:
    """History and queue. `chosen` is the run whose details a page shows, `page` counts pages of cards."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.chosen, self.page = Remembered(""), Remembered(0)

    def build(self) -> None:
        self.cards = gr.HTML(_empty(), js_on_load=CLICKS, elem_id="run-cards")
        with gr.Row(elem_classes="pager"):
            self.back = gr.Button("Newer", size="sm", min_width=90, visible=False)
            self.forth = gr.Button("Older", size="sm", min_width=90, visible=False)
        with gr.Column(visible=False, elem_id="run-details") as self.details:
            self.title = gr.HTML()
            with gr.Column(min_width=0) as self.actions:
                self.files = gr.HTML()
                with gr.Row(elem_classes="controls"):
                    self.reuse = gr.Button("Use its settings", min_width=130)
                    self.attempt = gr.Button("Try it", min_width=90, elem_id="try-run")
                    self.resume = gr.Button("Resume", min_width=100, elem_id="resume")
                    self.cancel = gr.Button("Take out of the queue", min_width=150, visible=False)
                    self.delete = gr.Button("Move to trash", min_width=120, variant="stop")
                with gr.Row(elem_classes="controls") as self.longer:
                    self.more = gr.Number(
                        500, precision=0, label="More steps", min_width=140, scale=0, elem_id="more-steps"
                    )
                    self.go_on = gr.Button(
                        "Train it longer", min_width=140, scale=0, elem_classes="beside-field"
                    )

    @property
    def shows(self) -> list[Any]:
        return [
            self.cards,
            self.back,
            self.forth,
            self.details,
            self.title,
            self.files,
            self.reuse,
            self.resume,
            self.attempt,
            self.cancel,
            self.delete,
            self.longer,
        ]

    def wire(self, filled: Any, opened: Any) -> None:
        """`filled` shows changed settings, `opened` goes to the Train tab, both after the action."""
        on = self.desk.on
        on(self.cards.click, self._choose, (), self.shows, looks_only=True, clicks=True)
        on(self.back.click, lambda g: self._turn(g, -1), (), self.shows, looks_only=True)
        on(self.forth.click, lambda g: self._turn(g, 1), (), self.shows, looks_only=True)
        filled(on(self.reuse.click, self._reuse))
        opened(on(self.resume.click, lambda g: self._resume(g, 0), (), self.shows))
        longer = {self.more}
        opened(on(self.go_on.click, lambda g: self._resume(g, int(g[self.more] or 0)), longer, self.shows))
        on(self.cancel.click, self._cancel, (), self.shows)
        on(self.delete.click, self._delete, (), self.shows)

    def show(self, session: str) -> dict[Any, Any]:
        runs, chosen = self.desk.runs(), self.chosen[session]
        pages = max(1, -(-len(runs) // PER_PAGE))
        page = self.page[session] = min(max(0, self.page[session]), pages - 1)
        shown = runs[page * PER_PAGE : (page + 1) * PER_PAGE]
        update = {
            self.cards: "".join(self._card(run, run.name == chosen) for run in shown) or _empty(),
            self.back: gr.update(visible=pages > 1, interactive=page > 0),
            self.forth: gr.update(visible=pages > 1, interactive=page < pages - 1),
        }
        update[self.cards] = tag("div", update[self.cards], "run-cards")
        run = next((r for r in runs if r.name == chosen), None)
        return update | ({self.details: gr.update(visible=False)} if run is None else self._details(run))

    def _details(self, run: RunFolder) -> dict[Any, Any]:
        status = self.desk.status(run)
        is_over = status in RESUMABLE
        return {
            self.details: gr.update(visible=True),
            self.title: tag("h3", words.safe(run.name)) + tag("p", _where(run), "quiet"),
            self.files: _files(run, self.desk.view(run).step),
            self.resume: gr.update(visible=status in ("interrupted", "failed", "stopped")),
            self.attempt: gr.update(visible=bool(downloads.offered(run))),
            self.cancel: gr.update(visible=status == "waiting"),
            self.delete: gr.update(visible=is_over),
            self.longer: gr.update(visible=is_over),
        }

    def _card(self, run: RunFolder, is_chosen: bool) -> str:
        view, status = self.desk.view(run), self.desk.status(run)
        config = run.known_config()
        picture = self._picture(run, view)
        state = tag("span", STATE_WORDS[status], f"light {STATE_LIGHTS.get(status, 'idle')}")
        steps = f"{view.step:,} of {view.total:,} steps" if view.total else ""
        at = view.started_at or run.config_file.stat().st_mtime
        taught = (method_of(config.method.kind).title, config.run.goal) if config else (UNKNOWN,)
        about = (*taught, steps, words.when(at))
        text = " · ".join(filter(None, about))
        inner = picture + tag(
            "span", tag("b", words.safe(run.name)) + state + tag("span", words.safe(text), "quiet"), "words"
        )
        return tag(
            "button",
            inner,
            "run-card chosen" if is_chosen else "run-card",
            type="button",
            data_act="choose",
            data_run=run.name,
            aria_pressed=str(is_chosen).lower(),
        )

    def _picture(self, run: RunFolder, view: RunView) -> str:
        newest = [s for s in view.newest_samples() if (run.path / s.path).exists()]
        if not newest:
            return tag("span", "", "no-picture")
        file = thumbnail(self.desk.workspace, run.path / newest[0].path, GRID)
        return picture(str(file), "")

    def _choose(self, given: Given) -> dict[Any, Any]:
        return self.open(given.session, given.clicked.get("run", ""))

    def open(self, session: str, name: str) -> dict[Any, Any]:
        """Show the details of this run."""
        self.chosen[session] = name
        return self.show(session)

    def _turn(self, given: Given, pages: int) -> dict[Any, Any]:
        self.page[given.session] += pages
        return self.show(given.session)

    def _reuse(self, given: Given) -> None:
        name = self.chosen[given.session]
        config = self.desk.config_of(self.desk.run(name))
        self.desk.project.change(config.values(), given.session)
        gr.Info(f"The settings of {name} are in the form now.", duration=5)

    def _resume(self, given: Given, more_steps: int) -> dict[Any, Any]:
        run = self.desk.run(self.chosen[given.session])
        self.desk.config_of(run)
        self.desk.jobs.resume(run, more_steps)
        return self.show(given.session)

    def _cancel(self, given: Given) -> dict[Any, Any]:
        self.desk.jobs.cancel(self.chosen[given.session])
        return self.show(given.session)

    def _delete(self, given: Given) -> dict[Any, Any]:
        run = self.desk.run(self.chosen[given.session])
        if self.desk.status(run) in (*LIVE, "waiting"):
            return {}
        trash = self.desk.workspace.trash
        trash.mkdir(parents=True, exist_ok=True)
        target = trash / f"{run.name} {time.strftime('%Y-%m-%d %H.%M.%S')}"
        shutil.move(run.path, target)
        gr.Info(f"Moved to {target}.", duration=8)
        self.chosen[given.session] = ""
        return self.show(given.session)


def _where(run: RunFolder) -> str:
    return f"Folder: {words.safe(run.path)}"


def _files(run: RunFolder, step: int) -> str:
    """Link what other programs load, and say where to put what was exported at this step."""
    found = downloads.offered(run)
    if not found:
        return tag("p", "No file yet.", "quiet")
    rows = [
        tag("a", words.safe(f.label), href=f"download/{quote(run.name)}/{quote(f.name)}", download=f.name)
        + tag("span", f" {words.size(f.bytes)}", "quiet")
        for f in found
    ]
    config = run.known_config()
    where = destinations.table(config, _family(run), _name(run, config, step)) if config else ""
    return tag("ul", words.items(rows), "files") + (tag("h4", "Where to put it") + where if where else "")


def _name(run: RunFolder, config: Config, step: int) -> str:
    """Return what the files are called: with the step, if the run ended elsewhere than planned."""
    with_step, method = f"{config.run.name}-{step}", method_of(config.method.kind)
    file = method.outputs(config.method, with_step, config.export.formats[:1])[0]
    return with_step if (run.output / file).exists() else config.run.name


def _family(run: RunFolder) -> str:
    """Return which kind of base model a run is for, as its plan says."""
    plan = json.loads(run.plan_file.read_bytes()) if run.plan_file.exists() else {}
    return plan.get("facts", {}).get("family", "")


def _empty() -> str:
    return tag("p", "No runs yet. Press Train to make the first.", "quiet")
