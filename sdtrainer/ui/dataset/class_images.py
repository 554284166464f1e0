"""What the base model drew for prior preservation: looked through, and others drawn instead of bad ones."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import gradio as gr

from ... import planner
from ...data import prior
from ...section import UserError
from .. import words
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..remembered import Remembered
from ..words import image, tag
from .views import Sent

PER_PAGE = 60
PICKS = """
element.addEventListener('click', event => {
  const cell = event.target.closest('.cell');
  if (!cell) return;
  const on = cell.classList.toggle('picked');
  cell.querySelector('button').setAttribute('aria-pressed', on);
  trigger('click', {on, picture: cell.dataset.picture});
});
"""


@dataclass(frozen=True)
class Look:
    """What a page looks at: a set by its folder's name, "" for that of the settings."""

    name: str = ""
    page: int = 0
    picked: frozenset[str] = frozenset()


class ClassImages:
    """The sets in the workspace; class images of the user's own are left to the user."""

    title = "Class images"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.looks: Remembered[Look] = Remembered(Look())
        self.sent = Sent()

    def build(self) -> None:
        self.said = gr.HTML(elem_id="class-said")
        self.sets = gr.Dropdown([], label="Set", allow_custom_value=True, visible=False, elem_id="class-set")
        with gr.Row(elem_classes="controls") as self.controls:
            self.others = gr.Button("Draw others instead", size="sm", elem_id="class-others")
            self.all = gr.Button("Move the set to trash", size="sm", variant="stop", elem_id="class-trash")
        self.grid = gr.HTML(js_on_load=PICKS, elem_id="class-pictures")
        with gr.Row(elem_classes="pager"):
            self.back = gr.Button("Previous page", size="sm", min_width=110, visible=False)
            self.forth = gr.Button("Next page", size="sm", min_width=110, visible=False)

    @property
    def states(self) -> set[Any]:
        return set()

    @property
    def shows(self) -> list[Any]:
        return [
            self.said, self.sets, self.controls, self.others, self.all, self.grid, self.back, self.forth
        ]  # fmt: skip

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        return self._show(given, outlook)

    def wire(self, refresh: Any) -> None:
        on, shows = self.desk.on, self.shows
        on(self.sets.input, lambda g: self._choose(g), {self.sets}, shows)
        on(self.back.click, lambda g: self._turn(g, -1), (), shows)
        on(self.forth.click, lambda g: self._turn(g, 1), (), shows)
        on(self.grid.click, self._pick, (), shows, clicks=True, queue=False)
        on(self.others.click, self._redraw, (), shows, trigger_mode="once")
        on(self.all.click, self._throw, (), shows, trigger_mode="once")

    def _show(self, given: Given, outlook: Outlook) -> dict[Any, Any]:
        look, names = self.looks[given.session], self._names()
        usual = self._usual(outlook)
        name = look.name if look.name in names else usual if usual in names else next(iter(names), "")
        pictures = _pictures(self.desk.workspace.class_images / name) if name else []
        pages = max(1, ceil(len(pictures) / PER_PAGE))
        page = min(look.page, pages - 1)
        shown = pictures[page * PER_PAGE : (page + 1) * PER_PAGE]
        picked = len(look.picked)
        updates = {
            self.said: _said(outlook, names, name == usual, len(pictures)),
            self.sets: gr.update(choices=names, value=name, visible=len(names) > 1),
            self.controls: gr.update(visible=bool(pictures)),
            self.others: gr.update(value=_others(picked), interactive=picked > 0),
            self.grid: tag("div", "".join(self._cell(p, p.name in look.picked) for p in shown), "pictures"),
            self.back: gr.update(visible=pages > 1, interactive=page > 0),
            self.forth: gr.update(visible=pages > 1, interactive=page < pages - 1),
        }
        self.looks[given.session] = Look(name, page, look.picked)
        return self.sent.news(given.session, updates)

    def _cell(self, picture: Path, is_picked: bool) -> str:
        inner = image(self.desk.thumbnails.address(picture), picture.name)
        button = tag(
            "button", inner, "thumbnail", type="button", aria_pressed=str(is_picked).lower(), title="Select"
        )
        return tag("div", button, "cell picked" if is_picked else "cell", data_picture=picture.name)

    def _names(self) -> list[str]:
        home = self.desk.workspace.class_images
        found = sorted(home.iterdir()) if home.is_dir() else []
        return [folder.name for folder in found if folder.is_dir() and not folder.name.startswith(".")]

    def _usual(self, outlook: Outlook) -> str:
        """The name of the set that the settings ask for, "" if they ask for none."""
        config, facts = outlook.config, outlook.facts
        if config is None or facts is None or config.prior.folder or not config.prior.class_prompt.strip():
            return ""
        return planner.class_image_folder(config, facts, self.desk.workspace).name

    def _choose(self, given: Given) -> dict[Any, Any]:
        self.looks[given.session] = Look(str(given[self.sets] or ""))
        return self._show(given, self.desk.look())

    def _turn(self, given: Given, by: int) -> dict[Any, Any]:
        look = self.looks[given.session]
        self.looks[given.session] = Look(look.name, max(0, look.page + by), look.picked)
        return self._show(given, self.desk.look())

    def _pick(self, given: Given) -> dict[Any, Any]:
        look, picture = self.looks[given.session], {str(given.clicked["picture"])}
        picked = look.picked | picture if given.clicked["on"] else look.picked - picture
        self.looks[given.session] = Look(look.name, look.page, picked)
        updates = {self.others: gr.update(value=_others(len(picked)), interactive=bool(picked))}
        return self.sent.news(given.session, updates)

    def _redraw(self, given: Given) -> dict[Any, Any]:
        look, folder = self.looks[given.session], self._folder(given)
        bad = [picture for picture in _pictures(folder) if picture.name in look.picked]
        prior.draw_others(folder, [int(picture.stem) for picture in bad])
        for picture in bad:
            self._to_trash(picture, f"{folder.name} {picture.stem}")
        self.looks[given.session] = Look(look.name, look.page)
        gr.Info(f"{words.count(len(bad), 'picture')} moved to the trash; others are drawn before training.")
        return self._show(given, self.desk.look())

    def _throw(self, given: Given) -> dict[Any, Any]:
        folder = self._folder(given)
        target = self._to_trash(folder, folder.name)
        gr.Info(f"Moved to {target}.", duration=8)
        self.looks[given.session] = Look()
        return self._show(given, self.desk.look())

    def _folder(self, given: Given) -> Path:
        """The folder looked at. Raises UserError if a run draws or uses it, or it is gone."""
        name = self.looks[given.session].name
        if self.desk.jobs.state().current:
            raise UserError("A run is going on that may use these.", "Wait for it, or stop it first.")
        if name not in self._names():
            raise UserError("This set is no longer there.", "Choose another.")
        return self.desk.workspace.class_images / name

    def _to_trash(self, path: Path, name: str) -> Path:
        trash = self.desk.workspace.trash
        trash.mkdir(parents=True, exist_ok=True)
        target = trash / f"{name} {time.strftime('%Y-%m-%d %H.%M.%S')}{path.suffix}"
        shutil.move(path, target)
        return target


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.png") if p.stem.isdecimal()) if folder.is_dir() else []


def _others(number: int) -> str:
    return f"Draw {words.count(number, 'other')} instead" if number else "Draw others instead"


def _said(outlook: Outlook, names: Sequence[str], is_usual: bool, number: int) -> str:
    section = outlook.config.prior if outlook.config else None
    if section and section.folder:
        return tag("p", f"Your settings take class images from {words.safe(section.folder)}.", "quiet")
    if not names:
        text = (
            "Class images keep what the model knows of other things while it learns yours. With a class"
            " prompt (in the tab Method) they are drawn before training and shown here."
        )
        return tag("p", text, "quiet")
    text = f"{words.count(number, 'picture')} drawn"
    if section and is_usual:
        text += (
            f" of {section.images:,} for '{section.class_prompt.strip()}'; the others come before training"
        )
    return tag("p", words.safe(f"{text}. Click on bad ones to have others drawn in their place."), "quiet")
