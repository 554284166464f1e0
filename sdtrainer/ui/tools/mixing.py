"""Mix: several adapters as one file, with a picture of what it will draw before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ...chores import CHORES
from ...families import STARTER
from ...section import UserError, fields
from .. import costs, file_lists, words
from ..chore import progress
from ..desk import Desk
from ..file_lists import FileField
from ..listen import Given
from ..thumbnails import LARGE, thumbnail
from ..words import picture, tag
from .card import ToolCard

DRAW = "sample"
ABOUT = (
    "Makes one adapter of several, each at a weight of its own. Draw with them first: a preview puts all of "
    "them on the base model at these weights, as the mix will, and writes no adapter."
)


class Mix(ToolCard):
    """Previews are drawn by the chore that draws tries."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "mix", "Mix", "Write the mix", ABOUT, {"adapters": "adapter", "base": "model"})
        self._drawn: list[str] = []

    def build(self) -> None:
        super().build()
        gr.HTML(tag("h4", "Preview"))
        with gr.Row(elem_classes="grid"):
            self.prompt = gr.Textbox(
                label="Prompts",
                info="What to draw, one picture for each line.",
                lines=2,
                elem_id="mix-prompt",
            )
            knob = fields(CHORES[DRAW].settings)["base"]
            self.on = file_lists.file_field(knob, "model", {"elem_id": "mix-drawn-on"})
            self.on.widget.value = STARTER
        with gr.Row(elem_classes="controls"):
            self.draw = gr.Button("Draw a preview", size="sm", elem_id="draw-mix")
            self.stop_draw = gr.Button("Stop", size="sm", interactive=False, elem_id="stop-draw-mix")
        self.preview = gr.HTML(elem_id="preview-mix")

    @property
    def shows(self) -> list[Any]:
        return [*super().shows, self.draw, self.stop_draw, self.preview]

    @property
    def lists(self) -> list[FileField]:
        return [*super().lists, self.on]

    @property
    def stamp(self) -> object:
        errands = self.desk.errands
        drawing = (errands.doing.get(DRAW), errands.ended.get(DRAW), id(errands.found.get(DRAW)))
        return (super().stamp, drawing)

    def wire_all(self, filled: Any) -> None:
        self.wire()
        on, uses = self.desk.on, self.uses | {self.prompt, self.on.widget}
        on(self.draw.click, self._draw, uses, self.shows, trigger_mode="once")
        on(self.stop_draw.click, self._stop_drawing, (), self.shows, trigger_mode="once")

    def show_all(self, given: Given) -> dict[Any, Any]:
        doing = self.desk.errands.doing.get(DRAW)
        return self.show() | {
            self.draw: gr.update(interactive=doing is None),
            self.stop_draw: gr.update(interactive=doing is not None and not doing.is_stopping),
            self.preview: self._preview(),
        }

    def what(self, given: Given) -> list[str]:
        """Return the adapters as drawing takes them, each with its weight.

        Raises:
            UserError: the weights are no numbers, or not as many as the adapters.
        """
        values = self.values(given)
        self.chore.check(values)
        weights = values["weights"] or [1.0] * len(values["adapters"])
        if len(weights) != len(values["adapters"]):
            raise UserError(
                f"Weights: there are {len(weights)} for {words.count(len(values['adapters']), 'adapter')}.",
                "Give one for each, in their order, or none.",
                "weights",
            )
        return [f"{path}:{weight:g}" for path, weight in zip(values["adapters"], weights, strict=True)]

    def _draw(self, given: Given) -> dict[Any, Any]:
        self._drawn = self.what(given)
        prompts = [line.strip() for line in (given[self.prompt] or "").splitlines() if line.strip()]
        values = {"what": self._drawn, "base": self.on.read(given[self.on.widget]), "prompt": prompts}
        self.desk.begin(DRAW, values)
        return self.show_all(given)

    def _stop_drawing(self, given: Given) -> dict[Any, Any]:
        self.desk.errands.stop(DRAW)
        return self.show_all(given)

    def _preview(self) -> str:
        """What was drawn for these adapters; other tries are not shown here."""
        errands = self.desk.errands
        if doing := errands.doing.get(DRAW):
            return progress(doing)
        found = errands.found.get(DRAW) or {}
        if not self._drawn or found.get("what", self._drawn) != self._drawn:
            return ""
        shown = [one for one in found.get("pictures", ()) if Path(one["path"]).exists()]
        drawn = [
            picture(str(thumbnail(self.desk.workspace, Path(one["path"]), LARGE)), one["prompt"])
            for one in shown
        ]
        return costs.ended(errands.ended.get(DRAW, "")) + tag("div", "".join(drawn), "mix-previews")
