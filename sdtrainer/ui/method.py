"""The Method tab: what is taught to which model, by which method, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from .. import presets
from ..config import Config, knobs
from ..families.configs import SCHEDULER
from ..methods import METHODS, method_of
from ..plan import Plan, output_names
from ..section import Section, UserError
from . import destinations, figure, picker, words
from .desk import Desk
from .form import Form
from .listen import Given
from .outlook import Outlook
from .panel import CLICKS
from .project import METHOD, from_preset
from .words import tag

if TYPE_CHECKING:
    from ..memory import Ledger
    from ..seams import Facts

PREDICTION = "base.prediction_type"
PREDICTED = {
    "epsilon": "the noise (epsilon)",
    "v_prediction": "the velocity (v_prediction)",
    "sample": "the picture (sample)",
    "flow": "the flow from noise to picture (flow)",
}
AUTOS = (
    PREDICTION,
    "optim.lr",
    "optim.name",
    "train.resolution",
    "train.precision",
    "train.checkpointing",
    "data.cache_latents",
    "data.cache_text",
)
"""Settings that the plan may decide; what it decided is said at the field."""

FOLDED = {
    "method": "More of the method",
    "train": "More of training: seed, precision, checkpointing, validation",
    "optim": "Optimizer and learning rate schedule",
    "noise": "Noise and loss",
    "sample": "More of the pictures while training",
    "checkpoint": "More of checkpoints",
    "export": "The exported file",
    "run": "More of the run",
}
ELSEWHERE = ("data", "prior", "base")


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
                    info="A good starting point. Your folder, names, prompts and own model stay as they are.",
                )
                self.about = gr.HTML()
            with gr.Column(min_width=260):
                self.form.place("base.path")
                self.chip = gr.HTML()
                with gr.Accordion("More of the base model", open=False, elem_id="base-model"):
                    self._place("base")
        self.form.place("run.goal")
        gr.HTML(tag("h3", "Method: how the model is taught"))
        self.kind = self.form.place_kind()
        self.cards = gr.HTML(
            picker.cards(METHODS[0], False, ()), js_on_load=CLICKS + picker.KEEP_FOCUS, elem_id="methods"
        )
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                gr.HTML(tag("h3", "What it changes in the model"))
                self.anatomy = gr.HTML(elem_id="anatomy")
            with gr.Column(min_width=280):
                gr.HTML(tag("h3", "The file it makes"))
                self.file = gr.HTML(elem_id="file")
        self._build_settings()

    def _build_settings(self) -> None:
        gr.HTML(tag("h3", "Settings"))
        self.form.place_level(["method", "train", "optim", "run", "checkpoint"], "basic")
        gr.HTML(tag("h3", "Pictures while training"))
        self.form.place_level(["sample"], "basic")
        gr.HTML(tag("h3", "Class images") + tag("p", PRIOR_WORDS, "quiet"))
        with gr.Accordion(PRIOR_OFF, open=False, elem_id="class-images") as self.prior:
            self._place("prior")
        gr.HTML(tag("h3", "More settings"))
        for section, title in (FOLDED | _new_sections()).items():
            with gr.Accordion(title, open=False):
                self._place(section)
        self.changed = gr.HTML(js_on_load=CLICKS, elem_id="changed")

    def _place(self, section: str) -> None:
        self.form.place_level([section], "basic")
        self.form.place_level([section], "advanced")

    @property
    def shows(self) -> list[Any]:
        own = [self.preset, self.about, self.chip, self.cards, self.anatomy, self.file, self.prior]
        return [*own, self.changed, *self.form.widgets(AUTOS)]

    def show(self, outlook: Outlook, ledger: Ledger | None) -> dict[Any, Any]:
        project = self.desk.project
        chosen = project.chosen()
        config = outlook.config
        kind = self.kind_of(outlook.values)
        has_class_images = config is not None and config.prior.is_on
        updates = {
            self.preset: gr.update(
                choices=[(p.title, p.name) for p in project.known], value=chosen.name if chosen else None
            ),
            self.about: _about(chosen, picker.misfit(chosen, outlook.facts, project.known)),
            self.chip: _chip(outlook),
            self.cards: picker.cards(kind, has_class_images, project.known),
            self.prior: gr.update(label=_prior_label(config)),
            self.changed: _changed(project.changes(config) if config else {}),
        }
        if config is None:  # a field is wrong for the moment: what was seen last stays
            return updates
        if outlook.plan is None:
            unknown = tag("p", "There is no plan yet; the panel beside says what is missing.", "quiet")
            fine = [path for path in AUTOS if outlook.error is None or path != outlook.error.path]
            notes = self.form.explain({}, fine, kind)
            return updates | notes | {self.anatomy: unknown, self.file: unknown}
        notes = {c.path: f"Now auto: {words.value(c.value)}." for c in outlook.plan.choices}
        if config.base.prediction_type == "auto":
            notes[PREDICTION] = f"Now auto: {words.value(outlook.plan.facts.prediction_type)}."
        return (
            updates
            | self.form.explain(notes, AUTOS, kind)
            | {self.anatomy: _anatomy(ledger), self.file: _file(outlook.plan, ledger)}
        )

    def unfold(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Open what is in use, when the form is filled; what a person opened stays open."""
        prior = values.get("prior", {})
        is_used = prior.get("class_prompt") or prior.get("folder")
        return {self.prior: gr.update(open=True)} if is_used else {}

    def wire(self, filled: Any) -> None:
        on = self.desk.on
        filled(on(self.preset.input, self._take_preset, {self.preset}))
        filled(on(self.cards.click, self._take_kind, self.form.components, clicks=True))
        filled(on(self.changed.click, self._undo, clicks=True))

    def kind_of(self, values: Mapping[str, Any]) -> str:
        kind = values.get("method", {}).get("kind", METHODS[0])
        return kind if kind in METHODS else METHODS[0]

    def _take_preset(self, given: Given) -> None:
        self._load(presets.preset(given[self.preset]), given)

    def _take_kind(self, given: Given) -> None:
        """A card was clicked: choose its method, and keep of the settings what it has too."""
        project, kind = self.desk.project, given.clicked.get("kind", "")
        if kind == picker.DREAMBOOTH:
            return self._take_dreambooth(given)
        values = project.values
        held = {"kind": self.kind_of(values)} | values.get("method", {})
        if kind in METHODS and kind != held["kind"]:
            offered = self.form.read_kind(given.values, kind)
            project.change(picker.switched(held, offered, values, project.chosen()), given.session)
        return None

    def _take_dreambooth(self, given: Given) -> None:
        project = self.desk.project
        prior = project.values.get("prior", {})
        if prior.get("class_prompt") or prior.get("folder"):
            gr.Info("Class images are in use already. Their settings are below, under Class images.")
            return
        card = self.desk.machine.card
        if preset := picker.for_card(project.known, card.total_bytes / words.GIB if card else None):
            self._load(preset, given)
            gr.Info(f"The preset '{preset.title}' is in the form now.")

    def _load(self, preset: presets.Preset, given: Given) -> None:
        project = self.desk.project
        held, values = project.values.get("method", {}), from_preset(project.values, preset, project.known)
        project.change(values, given.session, preset.name)
        kind = self.kind_of(values)
        if held.get("kind") in METHODS and (lost := picker.dropped(held, kind)):
            old, new = method_of(held["kind"]).title, method_of(kind).title
            gr.Info(f"This preset uses {new}. What you had set for {old} was dropped: {', '.join(lost)}.")

    def _undo(self, given: Given) -> None:
        project, config = self.desk.project, self.desk.look().config
        if config is None:
            raise UserError("A setting is wrong.", "Mend the red field first.")
        is_all = given.clicked.get("act") == "undo-all"
        paths = project.changes(config) if is_all else [given.clicked.get("setting", "")]
        project.undo(paths, config, given.session)


PRIOR_OFF = "Class images: none"
PRIOR_WORDS = (
    "For one subject: other things of its kind, drawn by the model itself, are trained beside your pictures, "
    "so that a dog stays any dog. Together with full fine-tuning this is called DreamBooth."
)


def _prior_label(config: Config | None) -> str:
    if config is None or not config.prior.is_on:
        return PRIOR_OFF
    if config.prior.folder:
        return f"Class images: those in {config.prior.folder}"
    return f"Class images: {config.prior.images} of '{config.prior.class_prompt.strip()}'"


def _new_sections() -> dict[str, str]:
    """Sections without a place of their own, titled by the first sentence of their docstring."""
    found = {name: field.annotation for name, field in Config.model_fields.items()}
    return {
        name: (section.__doc__ or name).partition(".")[0]
        for name, section in found.items()
        if isinstance(section, type) and issubclass(section, Section) and name not in (*FOLDED, *ELSEWHERE)
    }


def _anatomy(ledger: Ledger | None) -> str:
    if ledger is None:
        return tag("p", "The model is being counted; the picture appears in a moment.", "quiet")
    return figure.model(ledger.blocks, ledger.trained)


def _file(plan: Plan, ledger: Ledger | None) -> str:
    names = ", ".join(output_names(plan))
    size = f", about {words.size(ledger.exported_bytes)}" if ledger else ""
    where = destinations.table(plan.config, plan.facts.family)
    return tag("p", tag("b", words.safe(names)) + size, "made") + where


def _about(preset: presets.Preset | None, misfit: str) -> str:
    if preset is None:
        return ""
    promises = preset.promises
    costs = []
    if promises.get("vram_gib"):
        costs.append(f"needs {promises['vram_gib']:g} GB of graphics memory")
    if promises.get("minutes"):
        costs.append(f"takes about {words.duration(60 * promises['minutes'])}")
    about = tag("p", words.safe(preset.about) + (f" It {' and '.join(costs)}." if costs else ""), "quiet")
    warning = tag("span", "Another model", "light warn") + words.safe(misfit)
    return about + (tag("p", warning, "found") if misfit else "")


def _chip(outlook: Outlook) -> str:
    facts, config, error = outlook.facts, outlook.config, outlook.base_error
    if error is not None:
        said = words.safe(f"{error.what} {error.hint}")
        return tag("p", tag("span", "Cannot be taught", "light bad") + said, "found")
    if facts is None or config is None:
        return ""
    known = "taken as such by" if facts.is_stated else "recognised by"
    text = f"{facts.title}, {facts.resolution} px, {_predicts(facts, config)}; {known} {facts.why}."
    text += f" {facts.note}" if facts.note else ""
    if facts.download_bytes:
        text += f" {words.size(facts.download_bytes)} are downloaded from the hub first, once."
    light = ("As you set it", "light warn") if facts.is_stated else ("Recognised", "light good")
    return tag("p", tag("span", *light) + words.safe(text), "found")


def _predicts(facts: Facts, config: Config) -> str:
    chosen = config.base.prediction_type
    if chosen != "auto":
        return f"predicts {PREDICTED[chosen]}, as you set it"
    predicted = PREDICTED[facts.prediction_type]
    if facts.is_undecided:
        return f"probably predicts {predicted}; the model is asked before the first step"
    ends = ", noise up to zero SNR" if facts.config[SCHEDULER].get("rescale_betas_zero_snr") else ""
    return f"predicts {predicted}{ends}"


def _changed(changes: dict[str, tuple[Any, Any]]) -> str:
    if not changes:
        return tag("h3", "Changed from the preset") + tag(
            "p", "Nothing: every setting is the preset's.", "quiet"
        )
    titles = {k.path: k.title for k in knobs()} | {METHOD: "Method"}
    if METHOD in changes:
        old, new = (method_of(kind).title for kind in changes[METHOD])
        changes = changes | {METHOD: (old, new)}
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
