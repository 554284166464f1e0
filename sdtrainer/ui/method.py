"""The Method tab: what is taught to which model, by which method, with which settings."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .. import presets
from ..config import knobs
from ..methods import METHODS, method_of
from ..section import UserError, override
from . import words
from .desk import Desk
from .form import Form
from .listen import Given
from .outlook import Outlook
from .panel import CLICKS
from .project import from_preset
from .words import tag

FOLDED = {
    "method": "More of the method",
    "train": "More of training: seed, precision, checkpointing, validation",
    "prior": "Class images (prior preservation)",
    "optim": "Optimizer and learning rate schedule",
    "noise": "Noise and loss",
    "sample": "More of the pictures while training",
    "base": "More of the base model",
    "checkpoint": "More of checkpoints",
    "export": "The exported file",
    "run": "More of the run",
}


class Method:
    """Goal, base model, method, preset, settings."""

    def __init__(self, desk: Desk, form: Form) -> None:
        self.desk, self.form = desk, form

    def build(self) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(min_width=260):
                self.preset = gr.Dropdown(
                    allow_custom_value=True,
                    label="Preset",
                    info="A good starting point. Your folder, names and prompts stay as they are.",
                )
                self.about = gr.HTML()
            with gr.Column(min_width=260):
                self.form.place("base.path")
                self.chip = gr.HTML()
        with gr.Row(equal_height=False):
            with gr.Column(min_width=260):
                self.form.place("run.goal")
            with gr.Column(min_width=260):
                self.kind = self.form.place_kind()
        self.cards = gr.HTML(_cards(METHODS[0]))
        gr.HTML(tag("h3", "Settings"))
        self.form.place_level(["method", "train", "optim", "run", "checkpoint"], "basic")
        gr.HTML(tag("h3", "Pictures while training"))
        self.form.place_level(["sample"], "basic")
        gr.HTML(tag("h3", "More settings"))
        for section, title in FOLDED.items():
            with gr.Accordion(title, open=False):
                self.form.place_level([section], "basic")
                self.form.place_level([section], "advanced")
        self.changed = gr.HTML(js_on_load=CLICKS, elem_id="changed")

    @property
    def shows(self) -> list[Any]:
        return [self.preset, self.about, self.chip, self.cards, self.changed]

    def show(self, outlook: Outlook) -> dict[Any, Any]:
        project = self.desk.project
        chosen = project.chosen()
        changes = project.changes(outlook.config) if outlook.config else {}
        return {
            self.preset: gr.update(
                choices=[(p.title, p.name) for p in project.known], value=chosen.name if chosen else None
            ),
            self.about: _about(chosen),
            self.chip: _chip(outlook),
            self.cards: _cards(outlook.values.get("method", {}).get("kind", METHODS[0])),
            self.changed: _changed(changes),
        }

    def wire(self, filled: Any) -> None:
        on = self.desk.on
        filled(on(self.preset.input, self._take_preset, {self.preset}))
        filled(on(self.changed.click, self._undo, clicks=True))

    def _take_preset(self, given: Given) -> None:
        preset = presets.preset(given[self.preset])
        project = self.desk.project
        project.change(from_preset(project.values, preset), given.session, preset.name)

    def _undo(self, given: Given) -> None:
        project = self.desk.project
        path = given.clicked.get("setting", "")
        config = self.desk.look().config
        changes = project.changes(config) if config else {}
        undone = (
            changes
            if given.clicked.get("act") == "undo-all"
            else {p: c for p, c in changes.items() if p == path}
        )
        if not undone:
            raise UserError("This setting is as the preset has it already.", "")
        project.change(override(project.values, {p: pair[0] for p, pair in undone.items()}), given.session)


def _about(preset: presets.Preset | None) -> str:
    if preset is None:
        return ""
    promises = preset.promises
    costs = []
    if promises.get("vram_gib"):
        costs.append(f"needs {promises['vram_gib']:g} GB of graphics memory")
    if promises.get("minutes"):
        costs.append(f"takes about {words.duration(60 * promises['minutes'])}")
    return tag("p", words.safe(preset.about) + (f" It {' and '.join(costs)}." if costs else ""), "quiet")


def _chip(outlook: Outlook) -> str:
    facts = outlook.facts
    if facts is None:
        is_here = outlook.error is not None and outlook.error.path.startswith("base.")
        return tag("p", tag("span", "Not recognised", "light bad")) if is_here else ""
    text = (
        f"{facts.title}, {facts.resolution} px, predicts {facts.prediction_type}; recognised by {facts.why}."
    )
    return tag("p", tag("span", "Recognised", "light good") + words.safe(text), "found")


def _cards(chosen: str) -> str:
    cards = []
    for kind in METHODS:
        method = method_of(kind)
        class_ = "card chosen" if kind == chosen else "card"
        cards.append(
            tag("div", tag("h4", words.safe(method.title)) + tag("p", words.safe(method.card.about)), class_)
        )
    return tag("div", "".join(cards), "cards")


def _changed(changes: dict[str, tuple[Any, Any]]) -> str:
    if not changes:
        return tag("h3", "Changed from the preset") + tag(
            "p", "Nothing: every setting is the preset's.", "quiet"
        )
    titles = {k.path: k.title for k in knobs()} | {"method.kind": "Method"}
    rows = [
        tag("span", _change(titles.get(path, path), old, new))
        + tag(
            "button",
            "Undo",
            "small",
            type="button",
            data_act="undo",
            data_setting=path,
            aria_label=f"Undo {titles.get(path, path)}",
        )
        for path, (old, new) in changes.items()
    ]
    every = tag("button", "Undo all", "small", type="button", data_act="undo-all") if len(rows) > 1 else ""
    return tag("h3", "Changed from the preset") + tag("ul", words.items(rows), "advice") + every


def _change(title: str, old: Any, new: Any) -> str:
    return f"{words.safe(title)}: {words.safe(words.value(old))} → " + tag("b", words.safe(words.value(new)))
