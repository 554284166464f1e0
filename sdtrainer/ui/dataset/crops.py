"""What the model will see of each picture: its window, a crop, a focus point, a mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from ...data.buckets import Fit, Size
from ...data.census import Census, Sample
from ...data.frames import reframed
from ...data.items import plan_items
from ...data.overlay import Overlay, Table, overlay_for
from ...section import UserError
from .. import words
from ..chore import ChoreCard
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..panel import CLICKS
from ..sections import Sections
from ..thumbnails import LARGE, mask_copy, thumbnail
from ..words import picture, tag
from .painting import Painting
from .stage import POINTING, by, facts, stage, window

USUAL_RESOLUTION = 512
PER_SHAPE = 12
HOW = (
    "Click on what matters, and the window moves there. Drag a rectangle to keep only that part. The bright"
    " frame is what the model sees; your file is not changed."
)
EDGES = ("Left", "Top", "Right", "Bottom")
ONE_BY_ONE: dict[str, Any] = {
    "trigger_mode": "multiple",
    "concurrency_limit": 1,
    "concurrency_id": "crops",
}
"""Quick clicks all count, each on what the one before it left."""


@dataclass(frozen=True)
class Now:
    """What an action works on; `sample` is the chosen picture."""

    outlook: Outlook
    census: Census
    overlay: Overlay
    sample: Sample


class Crops:
    """One picture at a time, and all of them by shape."""

    title = "Crops and masks"

    def __init__(self, desk: Desk, sections: Sections) -> None:
        self.desk, self.sections = desk, sections
        self.painting = Painting(desk, self)
        self.card = ChoreCard(desk, "mask", "Find masks", fixed=("folder",))

    def build(self) -> None:
        with gr.Row(elem_classes="pager"):
            self.prev = gr.Button("Previous", size="sm", min_width=80, elem_id="crop-prev")
            self.number = gr.Number(
                1,
                precision=0,
                minimum=1,
                label="Picture number",
                min_width=70,
                container=False,
                elem_id="crop-number",
            )
            self.of = gr.HTML()
            self.next = gr.Button("Next", size="sm", min_width=80, elem_id="crop-next")
        gr.HTML(tag("p", HOW, "quiet"))
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280, scale=3):
                self.stage = gr.HTML(js_on_load=POINTING, elem_id="stage")
            with gr.Column(min_width=220, scale=2):
                self.window = gr.HTML(elem_id="window")
                self.facts = gr.HTML(elem_id="window-facts")
                self.reset = gr.Button("Use the whole picture again", size="sm", elem_id="crop-reset")
        with gr.Accordion("Crop in numbers", open=False):
            self._build_numbers()
        self.painting.build()
        with gr.Accordion("Find masks in all pictures", open=False):
            self.card.build()
        with gr.Accordion("Pictures by shape", open=False) as self.by_shape:
            self.shapes = gr.HTML(js_on_load=CLICKS, elem_id="shapes")
        self.chosen, self.seen, self.is_open = gr.State(""), gr.State(""), gr.State(False)

    def _build_numbers(self) -> None:
        with gr.Row(elem_classes="grid"):
            unit = "% of the picture"
            self.edges = [
                gr.Number(label=f"{edge} ({unit})", minimum=0, maximum=100, min_width=120) for edge in EDGES
            ]
            self.point = [
                gr.Number(label=f"Focus, {where} ({unit})", minimum=0, maximum=100, min_width=120)
                for where in ("from the left", "from the top")
            ]
        self.apply = gr.Button("Use these numbers", size="sm", elem_id="crop-apply")

    @property
    def states(self) -> set[Any]:
        return {self.chosen, self.seen, self.is_open}

    @property
    def shows(self) -> list[Any]:
        view = [self.stage, self.window, self.facts, self.number, self.of, self.reset]
        return [*view, *self.edges, *self.point, *self.states, *self.card.shows]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        """Nothing is drawn before the tab is opened."""
        if not given[self.is_open]:
            return {}
        return self._view(outlook, given[self.chosen], given[self.seen]) | self.card.show()

    def wire(self, refresh: Any) -> None:
        on = self.desk.on
        parts, uses = self.shows, {self.chosen, self.number}
        numbers = {*self.edges, *self.point}
        chosen = self.sections.chosen
        on(chosen.change, lambda g: self._open(g) if g[chosen] == self.title else {}, {*uses, chosen}, parts)
        on(self.prev.click, lambda g: self._step(g, -1), uses, parts, **ONE_BY_ONE)
        on(self.next.click, lambda g: self._step(g, 1), uses, parts, **ONE_BY_ONE)
        on([self.number.submit, self.number.blur], self._go, uses, parts)
        refresh(on(self.stage.click, self._point, uses, parts, clicks=True, **ONE_BY_ONE))
        refresh(on(self.reset.click, lambda g: self._lay(self.now(g), None, None), uses, parts))
        refresh(on(self.apply.click, self._apply, uses | numbers, parts))
        on(self.by_shape.expand, self._shapes, (), [self.shapes])
        on(self.shapes.click, self._pick, uses, parts, clicks=True)
        self.painting.wire(refresh)
        self.card.wire(lambda given: {"folder": str(_census(self.desk.look()).folder)})

    def now(self, given: Given) -> Now:
        """Return what was found last. Raises UserError if there are no pictures."""
        outlook = self.desk.look()
        census = _census(outlook)
        overlay = overlay_for(self.desk.workspace.root, census.folder)
        return Now(outlook, census, overlay, _sample(census.samples, given[self.chosen]))

    def changed(self, now: Now, sample: Sample) -> dict[Any, Any]:
        """Show a picture as it is now, at once; what follows from it is shown when all is looked at again."""
        self.desk.look_again()
        samples = tuple(sample if s.path == sample.path else s for s in now.census.samples)
        seen = replace(now.outlook, census=replace(now.census, samples=samples))
        return self._view(seen, sample.path)

    def _open(self, given: Given) -> dict[Any, Any]:
        return {self.is_open: True} | self._view(self.desk.look(), given[self.chosen]) | self.card.show()

    def _view(self, outlook: Outlook, path: str, seen: str = "") -> dict[Any, Any]:
        """Show a picture unless it is what the page shows (`seen`) already."""
        samples = outlook.census.samples if outlook.census else ()
        if not samples:
            empty = tag("p", "Choose the folder with your pictures above.", "quiet")
            return {self.stage: empty, self.window: "", self.facts: "", self.of: "", self.seen: ""}
        sample = _sample(samples, path)
        fits = _fits(outlook, sample)
        signature = repr((sample, fits, len(samples)))
        if seen == signature:
            return {}
        place = next(number for number, other in enumerate(samples, 1) if other.path == sample.path)
        large = str(thumbnail(self.desk.workspace, sample.file, LARGE))
        mask = str(mask_copy(self.desk.workspace, sample)) if sample.mask else ""
        fit = fits[-1][1]
        return {
            self.stage: stage(sample, fit, large, mask),
            self.window: window(sample, fit, large, mask),
            self.facts: facts(sample, fits),
            self.number: gr.update(value=place, maximum=len(samples)),
            self.of: tag("span", f"of {len(samples):,}", "quiet"),
            self.reset: gr.update(interactive=bool(sample.crop or sample.focus)),
            self.chosen: sample.path,
            self.seen: signature,
        } | self._numbers(sample, fit.whole)

    def _numbers(self, sample: Sample, whole: Size) -> dict[Any, Any]:
        box = sample.crop.box if sample.crop else (0, 0, *whole)
        edges = [round(100 * edge / whole[axis % 2], 2) for axis, edge in enumerate(box)]
        point = [round(100 * part, 2) for part in sample.focus] if sample.focus else [None, None]
        return dict(zip([*self.edges, *self.point], [*edges, *point], strict=True))

    def _step(self, given: Given, by: int) -> dict[Any, Any]:
        now = self.now(given)
        paths = [sample.path for sample in now.census.samples]
        return self._view(now.outlook, paths[(paths.index(now.sample.path) + by) % len(paths)])

    def _go(self, given: Given) -> dict[Any, Any]:
        now = self.now(given)
        place = min(max(int(given[self.number] or 1), 1), len(now.census.samples))
        return self._view(now.outlook, now.census.samples[place - 1].path)

    def _pick(self, given: Given) -> dict[Any, Any]:
        return self._view(self.desk.look(), given.clicked.get("picture", ""))

    def _point(self, given: Given) -> dict[Any, Any]:
        """A click sets the focus point, a drag the crop; the other stays."""
        now, clicked = self.now(given), given.clicked
        if clicked.get("act") == "crop":
            return self._lay(now, _numbers(clicked.get("box"), 4), now.sample.focus)
        return self._lay(now, _fractions(now.sample), _numbers(clicked.get("point"), 2))

    def _apply(self, given: Given) -> dict[Any, Any]:
        edges, point = ([given[field] for field in fields] for fields in (self.edges, self.point))
        box = [float(edge) / 100 for edge in edges if edge is not None]
        if len(box) == 4 and not (box[0] < box[2] and box[1] < box[3]):
            raise UserError(
                "Crop: left must be smaller than right, and top smaller than bottom.", "Change the numbers."
            )
        has_point = all(part is not None for part in point)
        wanted = [float(part) / 100 for part in point] if has_point else None
        is_part = len(box) == 4 and box != [0, 0, 1, 1]
        return self._lay(self.now(given), box if is_part else None, wanted)

    def _lay(self, now: Now, box: Sequence[float] | None, point: Sequence[float] | None) -> dict[Any, Any]:
        """Keep crop and focus point of the chosen picture."""
        sample, overlay = now.sample, now.overlay
        tables: tuple[tuple[Table, Any, Any], ...] = (
            ("crops", _fractions(sample), box),
            ("focus", sample.focus, point),
        )
        for table, before, wanted in tables:
            kept = [round(float(part), 5) for part in wanted] if wanted else None
            if kept != (list(before) if before else None):
                overlay.lay(table, {sample.path: kept})
        return self.changed(now, reframed(sample, overlay))

    def _shapes(self, given: Given) -> dict[Any, Any]:
        """Show the pictures of each bucket, the fullest first."""
        outlook = self.desk.look()
        by_size: dict[Size, list[Sample]] = defaultdict(list)
        for sample in _census(outlook).samples:
            by_size[_fits(outlook, sample)[-1][1].size].append(sample)
        groups = sorted(by_size.items(), key=lambda pair: -len(pair[1]))
        return {self.shapes: "".join(self._shape(size, samples) for size, samples in groups)}

    def _shape(self, size: Size, samples: Sequence[Sample]) -> str:
        copies = [(s.path, str(thumbnail(self.desk.workspace, s.file))) for s in samples[:PER_SHAPE]]
        cells = [
            tag("button", picture(copy, path), "thumbnail", type="button", data_act="pick", data_picture=path)
            for path, copy in copies
        ]
        more = tag("p", f"and {len(samples) - PER_SHAPE:,} more", "quiet") if samples[PER_SHAPE:] else ""
        title = tag("h3", f"{by(size)} px: {words.count(len(samples), 'picture')}")
        return title + tag("div", "".join(cells), "pictures small-pictures") + more


def _census(outlook: Outlook) -> Census:
    if outlook.census is None:
        raise outlook.error or UserError("There are no pictures.", "Choose a folder.")
    return outlook.census


def _fits(outlook: Outlook, sample: Sample) -> list[tuple[int, Fit]]:
    """Return what is seen at each resolution, the largest last."""
    assert outlook.config
    resolutions = sorted(outlook.plan.resolutions if outlook.plan else (USUAL_RESOLUTION,))
    items = plan_items([sample], outlook.config.data, resolutions)
    return [(item.resolution, item.fit) for item in items]


def _sample(samples: Sequence[Sample], path: str) -> Sample:
    """Return the sample of this path, or the first."""
    return next((sample for sample in samples if sample.path == path), samples[0])


def _fractions(sample: Sample) -> list[float] | None:
    if sample.crop is None:
        return None
    return [round(edge / sample.crop.whole[axis % 2], 5) for axis, edge in enumerate(sample.crop.box)]


def _numbers(said: Any, count: int) -> list[float]:
    """Return what the browser said, if it is so many fractions. Raises UserError."""
    if isinstance(said, list) and len(said) == count and all(isinstance(n, int | float) for n in said):
        return [min(max(float(n), 0.0), 1.0) for n in said]
    raise UserError("This is no place in the picture.", "Click inside it.")
