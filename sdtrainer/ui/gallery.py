"""The Gallery tab: pictures of a run by prompt and step, before against after, and pictures to try."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..workspace import RunFolder
from . import words
from .desk import Desk
from .listen import Given
from .panel import CLICKS
from .remembered import Remembered
from .sections import Sections
from .thumbnails import GRID, LARGE, thumbnail
from .trying import Try
from .view import RunView, Sample
from .words import picture, tag

MAX_COLUMNS = 8
TRY = "Try"


class Gallery:
    """Pictures of one run. `picked` is the run that a page chose; "" goes with the newest."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.picked = Remembered("")
        self.trying = Try(desk)
        self.sections = Sections("gallery-parts")

    def build(self) -> None:
        self.sections.build({"Pictures of runs": self._build_pictures, TRY: self.trying.build})

    def _build_pictures(self) -> None:
        self.run = gr.Dropdown(
            allow_custom_value=True,
            label="Run",
            choices=[],
            value=None,
            elem_id="gallery-run",
        )
        self.grid = gr.HTML(_empty(), js_on_load=CLICKS, elem_id="grid")
        with gr.Column(visible=False) as self.compare:
            gr.HTML(tag("h3", "Before and after"))
            with gr.Row():
                self.prompt = gr.Dropdown(
                    allow_custom_value=True,
                    label="Prompt",
                    choices=[],
                    min_width=220,
                    scale=2,
                )
                self.before = gr.Dropdown(
                    allow_custom_value=True, label="Left: step", choices=[], min_width=110
                )
                self.after = gr.Dropdown(
                    allow_custom_value=True, label="Right: step", choices=[], min_width=110
                )
            self.slider = gr.ImageSlider(
                label="Before and after",
                show_label=False,
                interactive=False,
                height=420,
                buttons=["fullscreen"],
                elem_id="before-after",
            )

    @property
    def shows(self) -> list[Any]:
        return [self.run, self.grid, self.compare, self.prompt, self.before, self.after, self.slider]

    @property
    def shown_by_trying(self) -> list[Any]:
        return [self.sections.chosen, *self.trying.uses]

    def open_trying(self, run: RunFolder) -> dict[Any, Any]:
        """Go to the place to draw, with a run's result. Raises UserError if it has none."""
        return self.sections.show(TRY) | self.trying.fill(run)

    def wire(self) -> None:
        on = self.desk.on
        self.trying.wire_all()
        picks = {self.run, self.prompt, self.before, self.after}
        on(self.run.input, self.choose, picks, self.shows, looks_only=True)
        on(
            [self.prompt.input, self.before.input, self.after.input],
            self._compare,
            picks,
            [self.slider],
            looks_only=True,
        )
        on(self.grid.click, self._pick, picks, self.shows, looks_only=True, clicks=True)

    def show(self, name: str | None, chosen: tuple[int, int, int] | None = None) -> dict[Any, Any]:
        """Show a run's pictures; `chosen` is prompt, step on the left and on the right."""
        runs = self.desk.runs()
        update: dict[Any, Any] = {self.run: gr.update(choices=[r.name for r in runs], value=name)}
        run = next((r for r in runs if r.name == name), None)
        view = self.desk.view(run) if run else None
        if run is None or view is None or not view.samples:
            return update | {self.grid: _empty(), self.compare: gr.update(visible=False)}
        steps, prompts = view.sample_steps, view.prompts
        index, before, after = chosen or (min(prompts), steps[0], steps[-1])
        choices = [(f"{step:,}", step) for step in steps]
        return update | {
            self.grid: self._grid(run, view, index, after),
            self.compare: gr.update(visible=True),
            self.prompt: gr.update(choices=[(p, i) for i, p in prompts.items()], value=index),
            self.before: gr.update(choices=choices, value=before),
            self.after: gr.update(choices=choices, value=after),
            self.slider: self._pair(run, view, index, before, after),
        }

    def shown(self, session: str) -> RunFolder | None:
        """Return the run whose pictures are shown: the one chosen, else the newest."""
        chosen = next((r for r in self.desk.runs() if r.name == self.picked[session]), None)
        return chosen or self.desk.newest()

    def follow(self, given: Given, run: RunFolder) -> dict[Any, Any]:
        """Take in new pictures of the run shown; what was picked for comparing stays."""
        view = self.desk.view(run)
        picked = (given[self.prompt], given[self.before], given[self.after])
        old_last = [s for s in view.sample_steps if s != view.sample_steps[-1]][-1:] if view.samples else []
        if picked[0] not in view.prompts or picked[1] not in view.sample_steps or [picked[2]] == old_last:
            return self.show(run.name)  # whoever looks at the newest wants the newest
        return self.show(run.name, picked if picked[2] in view.sample_steps else None)

    def choose(self, given: Given) -> dict[Any, Any]:
        """Stay with the run that was chosen; whoever chooses the newest goes on with the newest."""
        newest = self.desk.newest()
        name = given[self.run]
        self.picked[given.session] = "" if newest and newest.name == name else name
        return self.show(name)

    def _compare(self, given: Given) -> dict[Any, Any]:
        run = self.desk.run(given[self.run])
        pair = self._pair(run, self.desk.view(run), given[self.prompt], given[self.before], given[self.after])
        return {self.slider: pair}

    def _pick(self, given: Given) -> dict[Any, Any]:
        run = self.desk.run(given[self.run])
        index, step = int(given.clicked["prompt"]), int(given.clicked["step"])
        before = given[self.before]
        first = self.desk.view(run).sample_steps[0]
        return self.show(run.name, (index, first if before is None else before, step))

    def _pair(self, run: RunFolder, view: RunView, index: int, before: int, after: int) -> Any:
        both = [view.samples.get((step, index)) for step in (before, after)]
        files = [self._file(run, sample, LARGE) for sample in both if sample]
        return tuple(files) if len(files) == 2 else None

    def _file(self, run: RunFolder, sample: Sample, side: int) -> str:
        return str(thumbnail(self.desk.workspace, run.path / sample.path, side))

    def _grid(self, run: RunFolder, view: RunView, index: int, after: int) -> str:
        steps = view.sample_steps
        if len(steps) > MAX_COLUMNS:  # first, last, and evenly between
            steps = [steps[round(i * (len(steps) - 1) / (MAX_COLUMNS - 1))] for i in range(MAX_COLUMNS)]
        rows = []
        for number, prompt in view.prompts.items():
            cells = [
                self._cell(run, view.samples.get((s, number)), (number, s) == (index, after)) for s in steps
            ]
            rows.append(tag("h4", words.safe(prompt)) + tag("div", "".join(cells), "sample-row"))
        return tag("div", "".join(rows), "samples")

    def _cell(self, run: RunFolder, sample: Sample | None, is_chosen: bool) -> str:
        if sample is None or not (run.path / sample.path).exists():
            return tag("span", "", "no-picture")
        label = f"{sample.prompt}, step {sample.step:,}, seed {sample.seed}"
        return tag(
            "button",
            picture(self._file(run, sample, GRID), label) + tag("span", _step(sample.step)),
            "thumbnail chosen" if is_chosen else "thumbnail",
            type="button",
            data_act="pick",
            data_prompt=sample.index,
            data_step=sample.step,
            title=label,
        )


def _step(step: int) -> str:
    return f"step {step:,}" if step else "before"


def _empty() -> str:
    text = "No pictures yet. They appear here while a run with sample prompts trains, a column each time."
    return tag("p", text, "quiet")
