"""Try: draw with any base model and adapters, at several strengths side by side, and compare two pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from ..chores import Answer
from ..section import UserError, fields
from ..workspace import RunFolder
from . import downloads, file_lists, words
from .chore import ChoreCard
from .desk import Desk
from .file_lists import FileField
from .form import Field
from .listen import Given
from .panel import CLICKS
from .remembered import Remembered
from .thumbnails import GRID, LARGE, thumbnail
from .words import picture, tag

MOST_ADAPTERS = 4
ABOUT = (
    "Draws with any base model and any adapters. The model is loaded anew for each try, which takes a while "
    "with large ones; all prompts and strengths of one try share it."
)
FIRST_STRENGTHS, FIRST_PROMPT = [0.0, 1.0], "a red apple on a white background"


class Try(ChoreCard):
    """The adapters have a row each, with a strength. `chosen` is the picture that a page compares."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "sample", "Draw", ("what", "out"), lambda answer: "")
        self.chosen = Remembered(-1)
        self.rows: list[tuple[FileField, gr.Number]] = []

    def build(self) -> None:
        gr.HTML(tag("p", ABOUT, "quiet"))
        with gr.Row(elem_classes="grid"):
            self._place_base()
        for number in range(1, MOST_ADAPTERS + 1):
            self._build_row(number)
        with gr.Row(elem_classes="grid"):
            for name in ("prompt", "negative", "strength", "seed"):
                self.place_one(name)
        with gr.Accordion("More settings", open=False):
            self.place("advanced")
        self.build_controls()
        self.grid = gr.HTML(js_on_load=CLICKS, elem_id="tried")
        self.slider = gr.ImageSlider(
            label="Before and after",
            show_label=False,
            interactive=False,
            visible=False,
            height=420,
            buttons=["fullscreen"],
            elem_id="tried-slider",
        )

    @property
    def uses(self) -> set[Any]:
        return super().uses | {widget for field, number in self.rows for widget in (field.widget, number)}

    @property
    def shows(self) -> list[Any]:
        return [*super().shows, self.grid, self.slider]

    @property
    def lists(self) -> list[FileField]:
        base = self.fields["base"]
        assert isinstance(base, FileField)
        return [base, *(field for field, _ in self.rows)]

    @property
    def stamp(self) -> object:
        errands = self.desk.errands
        return (self.doing, errands.ended.get("sample", ""), id(self.answer))

    def wire_all(self) -> None:
        self.wire()
        self.desk.on(self.grid.click, self._pick, (), [self.grid, self.slider], clicks=True)
        for (field, _), (following, number) in zip(self.rows, self.rows[1:], strict=False):
            self.desk.on(field.widget.change, _next_row(field, following, number), {field.widget},
                         [following.widget, number])  # fmt: skip

    def values(self, given: Given) -> dict[str, Any]:
        worn = [(field.read(given[field.widget]), given[number]) for field, number in self.rows]
        what = [f"{path}:{1 if strength is None else strength:g}" for path, strength in worn if path]
        return super().values(given) | {"what": what}

    def fill(self, run: RunFolder) -> dict[Any, Any]:
        """Put a run's result and prompts here. Raises UserError if it has no result."""
        config = self.desk.config_of(run)
        offered = downloads.offered(run)
        if not offered:
            raise UserError(f"{run.name} has no exported file yet.", "Let it finish, or press Stop and keep.")
        first, strength = self.rows[0]
        others = {field.widget: None for field, _ in self.rows[1:]}
        prompts = config.sample.prompts or [config.data.trigger or FIRST_PROMPT]
        shown = {"base": config.base.path, "prompt": prompts, "negative": config.sample.negative}
        shown |= {"strength": FIRST_STRENGTHS, "seed": config.sample.seed}
        values = {self.fields[name].widget: self.fields[name].show(value) for name, value in shown.items()}
        return (
            others
            | {first.widget: str(run.output / offered[0].name.removesuffix(downloads.ZIP)), strength: 1.0}
            | values
        )

    def show_all(self, given: Given) -> dict[Any, Any]:
        return self.show() | self._result(given)

    def _place_base(self) -> None:
        knob = fields(self.chore.settings)["base"]
        self.fields["base"] = file_lists.file_field(knob, "model", {"elem_id": "sample-base"})
        self.fields["base"].widget.value = "starter"

    def _build_row(self, number: int) -> None:
        knob = fields(self.chore.settings)["what"]
        is_shown = number == 1
        with gr.Row(equal_height=True):
            widget = gr.Dropdown(
                [],
                value=None,
                allow_custom_value=True,
                label=f"Adapter {number}",
                info="A LoRA, an embedding, a hypernetwork or a run." if is_shown else None,
                visible=is_shown,
                scale=4,
                min_width=220,
                elem_id=f"sample-adapter-{number}",
            )
            strength = gr.Number(
                1.0, label="Strength", step=0.1, scale=1, min_width=110, visible=is_shown,
                info="1 is full." if is_shown else None, elem_id=f"sample-strength-{number}",
            )  # fmt: skip
        self.rows.append((_OneFile(knob, widget, "adapter"), strength))

    def place_one(self, name: str, **looks: Any) -> Any:
        widget = super().place_one(name, **looks)
        field: Field = self.fields[name]
        first = {"prompt": [FIRST_PROMPT], "strength": FIRST_STRENGTHS}
        if name in first:
            widget.value = field.show(first[name])
        return widget

    def _pick(self, given: Given) -> dict[Any, Any]:
        self.chosen[given.session] = int(given.clicked.get("number", -1))
        return self._result(given)

    def _result(self, given: Given) -> dict[Any, Any]:
        """Show the pictures, and the chosen one beside the same prompt at the first strength."""
        drawn = _there(self.answer)
        if not drawn:
            return {self.grid: "", self.slider: gr.update(visible=False)}
        number = self.chosen[given.session]
        chosen = drawn[number] if 0 <= number < len(drawn) else drawn[-1]
        before = next(
            one for one in drawn if one["prompt"] == chosen["prompt"] and one["seed"] == chosen["seed"]
        )
        pair = tuple(
            str(thumbnail(self.desk.workspace, Path(one["path"]), LARGE)) for one in (before, chosen)
        )
        return {
            self.grid: self._grid(drawn, chosen),
            self.slider: gr.update(value=pair, visible=before is not chosen),
        }

    def _grid(self, drawn: list[Mapping[str, Any]], chosen: Mapping[str, Any]) -> str:
        rows = []
        for key in dict.fromkeys((one["prompt"], one["seed"]) for one in drawn):
            cells = [
                self._cell(number, one, one is chosen)
                for number, one in enumerate(drawn)
                if (one["prompt"], one["seed"]) == key
            ]
            rows.append(tag("h4", words.safe(key[0])) + tag("div", "".join(cells), "sample-row"))
        save = self._save(chosen)
        return tag("div", "".join(rows), "samples") + tag("p", save, "quiet")

    def _cell(self, number: int, one: Mapping[str, Any], is_chosen: bool) -> str:
        label = f"{one['prompt']}, strength {one['strength']:g}, seed {one['seed']}"
        file = thumbnail(self.desk.workspace, Path(one["path"]), GRID)
        return tag(
            "button",
            picture(str(file), label) + tag("span", f"strength {one['strength']:g}"),
            "thumbnail chosen" if is_chosen else "thumbnail",
            type="button",
            data_act="pick",
            data_number=number,
            title=label,
        )

    def _save(self, chosen: Mapping[str, Any]) -> str:
        path, root = Path(chosen["path"]).resolve(), self.desk.workspace.root.resolve()
        where = f"made/{quote(path.relative_to(root).as_posix())}"
        link = tag("a", f"Download {words.safe(path.name)}", href=where, download=path.name)
        return f"{link}, with all settings inside, as A1111 reads them. {words.safe(path)}"


class _OneFile(FileField):
    """One adapter of several: the setting is a list, the field a single path."""

    def read(self, shown: Any) -> Any:
        return str(shown or "").strip()


def _next_row(field: FileField, following: FileField, number: gr.Number) -> Any:
    """Offer the next row once this one holds something."""

    def show(given: Given) -> dict[Any, Any]:
        is_shown = bool(field.read(given[field.widget]))
        return {following.widget: gr.update(visible=is_shown), number: gr.update(visible=is_shown)}

    return show


def _there(answer: Answer | None) -> list[Mapping[str, Any]]:
    return [one for one in (answer or {}).get("pictures", []) if Path(one["path"]).exists()]
