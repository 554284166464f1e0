"""The Train tab: what a run is doing, how long still, whether it is healthy, how to stop it, what then."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..section import UserError
from ..workspace import RunFolder
from . import curves, downloads, pictures, words
from .curves import Line
from .desk import Desk
from .listen import Given
from .thumbnails import LARGE, thumbnail
from .view import RunView, part_done, sentence
from .words import tag

LOOKS = ("smooth", "second", "third")
STATE_WORDS = {
    "new": "Starting",
    "running": "Running",
    "paused": "Paused",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
    "interrupted": "Interrupted",
    "waiting": "Waiting",
}
STATE_LIGHTS = {
    "running": "good",
    "finished": "good",
    "failed": "bad",
    "interrupted": "bad",
    "paused": "warn",
}
LIVE = ("running", "paused", "new")


class Train:
    """The run that is going on, or the newest."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        self.state = gr.HTML(_empty(), elem_id="run-state")
        with gr.Column(min_width=0) as self.controls:
            with gr.Row(elem_classes="controls") as self.steering:
                self.pause = gr.Button("Pause", interactive=False, min_width=110, elem_id="pause")
                self.stop = gr.Button("Stop and keep", interactive=False, min_width=130, elem_id="stop")
                self.sample = gr.Button(
                    "Draw pictures now", interactive=False, min_width=150, elem_id="sample-now"
                )
                self.save = gr.Button(
                    "Save a checkpoint now", interactive=False, min_width=170, elem_id="save-now"
                )
            with gr.Row(elem_classes="controls", visible=False) as self.afterwards:
                self.attempt = gr.Button("Try it", variant="primary", min_width=110, elem_id="try-newest")
                self.open = gr.Button("Files, resume, train longer", min_width=220, elem_id="open-newest")
        self.loss = gr.HTML(js_on_load=curves.HOVER, elem_id="loss-plot")
        self.samples = gr.Gallery(
            label="Newest pictures",
            columns=4,
            height="auto",
            object_fit="contain",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            elem_id="newest",
        )
        with gr.Accordion("Learning rate", open=False):
            self.lr = gr.HTML(js_on_load=curves.HOVER, elem_id="lr-plot")
        with gr.Accordion("Log", open=False):
            self.log = gr.HTML(elem_id="log")

    @property
    def buttons(self) -> list[Any]:
        steering = [self.steering, self.pause, self.stop, self.sample, self.save]
        return [*steering, self.afterwards, self.attempt]

    @property
    def shows(self) -> list[Any]:
        return [self.state, *self.buttons, self.loss, self.lr, self.samples, self.log]

    def wire(self) -> None:
        on, names = self.desk.on, self.shows
        on(self.pause.click, self._pause, (), names)
        on(self.stop.click, lambda g: self._tell("stop"), (), names)
        on(self.sample.click, lambda g: self._tell("sample"), (), names)
        on(self.save.click, lambda g: self._tell("save"), (), names)

    def show(self, run: RunFolder | None) -> dict[Any, Any]:
        """Show where a run stands, with its curves."""
        if run is None:
            return {self.state: _empty()} | self._buttons("", False)
        view, status = self.desk.view(run), self.desk.status(run)
        buttons = self._buttons(status, bool(downloads.offered(run)))
        return self.show_state(run) | self._plots(view) | buttons

    def show_pictures(self, run: RunFolder | None) -> dict[Any, Any]:
        return {self.samples: self._samples(run, self.desk.view(run)) if run else gr.update(visible=False)}

    def show_log(self, run: RunFolder | None) -> dict[Any, Any]:
        return {self.log: _log(self.desk.view(run)) if run else ""}

    def show_state(self, run: RunFolder) -> dict[Any, Any]:
        view, status = self.desk.view(run), self.desk.status(run)
        return {self.state: _state(run, view, status)}

    def _buttons(self, status: str, has_result: bool) -> dict[Any, Any]:
        is_live, is_paused = status in ("running", "paused"), status == "paused"
        is_over = status not in ("", "waiting", *LIVE)
        return {
            self.steering: gr.update(visible=not is_over),
            self.afterwards: gr.update(visible=is_over),
            self.attempt: gr.update(visible=has_result),
            self.pause: gr.update(value="Go on" if is_paused else "Pause", interactive=is_live),
            self.stop: gr.update(interactive=is_live),
            self.sample: gr.update(interactive=is_live and not is_paused),
            self.save: gr.update(interactive=is_live and not is_paused),
        }

    def _plots(self, view: RunView) -> dict[Any, Any]:
        loss = [
            Line("each step", "raw", view.loss.points),
            Line("smoothed", "smooth", view.smooth.points),
            Line("validation", "dotted", view.validation.points),
        ]
        rates = [
            Line(name, LOOKS[i % len(LOOKS)], curve.points) for i, (name, curve) in enumerate(view.lr.items())
        ]
        return {
            self.loss: curves.plot("Loss", loss, view.total),
            self.lr: curves.plot("Learning rate", rates, view.total),
        }

    def _samples(self, run: RunFolder, view: RunView) -> Any:
        newest = view.newest_samples()
        shown = [
            (str(thumbnail(self.desk.workspace, run.path / s.path, LARGE)), f"{s.prompt} (step {s.step:,})")
            for s in newest
            if (run.path / s.path).exists()
        ]
        label = f"Newest pictures, step {newest[0].step:,}" if newest else "Newest pictures"
        return gr.update(value=shown, visible=bool(shown), label=label, columns=min(4, max(2, len(shown))))

    def _pause(self, given: Given) -> dict[Any, Any]:
        run = self._current()
        return self._tell("go" if self.desk.status(run) == "paused" else "pause")

    def _tell(self, word: Any) -> dict[Any, Any]:
        run = self._current()
        self.desk.jobs.tell(run.name, word)
        gr.Info(SAID[word], duration=4)
        return self.show_state(run)

    def _current(self) -> RunFolder:
        name = self.desk.jobs.state().current
        if name is None:
            raise UserError("No run is going on.", "Press Train.")
        return self.desk.run(name)


SAID = {
    "stop": "The run ends after this step and keeps what it has learnt.",
    "pause": "The run pauses after this step.",
    "go": "The run goes on.",
    "sample": "Pictures will be drawn after this step.",
    "save": "A checkpoint will be saved after this step.",
}


def _empty() -> str:
    return tag(
        "p",
        tag("span", "Idle", "light idle") + "Nothing has been trained yet. Press Train: the starter project "
        "needs no graphics card and shows something within two minutes.",
        "found",
    )


def _state(run: RunFolder, view: RunView, status: str) -> str:
    word = tag("span", STATE_WORDS[status], f"light {STATE_LIGHTS.get(status, 'idle')}")
    figures = {
        "step": f"{view.step:,} of {view.total:,}" if view.total else "",
        "left": words.duration(view.seconds_left)
        if view.seconds_left is not None and status == "running"
        else "",
        "speed": _speed(view.seconds_per_step),
        "pictures seen": f"{view.images_seen:,}" if view.images_seen else "",
        "memory": words.size(view.memory_bytes) if view.memory_bytes else "",
        "loss": f"{view.smooth.last:.4f}" if view.smooth.last is not None else "",
    }
    shown = "".join(
        tag("div", tag("dt", name) + tag("dd", words.safe(value))) for name, value in figures.items() if value
    )
    part = part_done(view)
    return (
        tag("p", word + tag("b", words.safe(run.name)) + " " + words.safe(_sentence(view, status)), "found")
        + (pictures.progress(part, f"{run.name}: {100 * part:.0f} percent done") if view.total else "")
        + tag("dl", shown, "figures")
    )


def _sentence(view: RunView, status: str) -> str:
    if status == "waiting":
        return "It starts when the runs before it are done."
    if status == "interrupted" and view.state != "suspended":
        return (
            f"The run ended at step {view.step:,} without a word, as after a power cut. Resume it under Runs."
        )
    return sentence(view)


def _speed(seconds_per_step: float | None) -> str:
    if not seconds_per_step:
        return ""
    return (
        f"{1 / seconds_per_step:.1f} steps/s"
        if seconds_per_step < 1
        else f"{seconds_per_step:.1f} s per step"
    )


def _log(view: RunView) -> str:
    rows = [
        tag("li", tag("time", words.when(at)) + words.safe(text), "warn" if level == "warning" else "")
        for at, level, text in reversed(view.log)
    ]
    return tag("ol", "".join(rows), "log") if rows else tag("p", "Nothing yet.", "quiet")
