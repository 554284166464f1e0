"""What the base model drew for prior preservation: drawn now or before training, looked through, and the bad
ones thrown away.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import gradio as gr

from ... import classes, planner
from ...data import prior
from ...section import UserError, fields
from .. import words
from ..chore import ChoreCard
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..remembered import Remembered
from ..thumbnails import LARGE
from ..words import image, tag
from .looking import LOOKS
from .views import Sent

VERB = "classes"
PER_PAGE = 60


@dataclass(frozen=True)
class Look:
    """What a page looks at: a set by its folder's name, "" for that of the settings."""

    name: str = ""
    page: int = 0
    picked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wanted:
    """The set that the settings ask for, and the names of the pictures that are used of it, drawn or not."""

    folder: Path
    names: tuple[str, ...]
    prompt: str

    def missing(self) -> int:
        there = {picture.name for picture in _pictures(self.folder)}
        return sum(name not in there for name in self.names)


class ClassImages:
    """The sets in the workspace; class images of the user's own are left to the user."""

    title = "Class images"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.card = ChoreCard(desk, VERB, "Draw them now", tuple(fields(classes.Settings)), found=_found)
        self.looks: Remembered[Look] = Remembered(Look())
        self.sent = Sent()

    def build(self) -> None:
        self.said = gr.HTML(elem_id="class-said")
        self.sets = gr.Dropdown([], label="Set", allow_custom_value=True, visible=False, elem_id="class-set")
        with gr.Column(visible=False) as self.drawing:
            self.card.build_controls()
        with gr.Row(elem_classes="controls") as self.controls:
            self.bad = gr.Button("Throw away", size="sm", elem_id="class-bad")
            self.all = gr.Button("Throw the whole set away", size="sm", variant="stop", elem_id="class-trash")
        self.grid = gr.HTML(js_on_load=LOOKS, elem_id="class-pictures")
        with gr.Row(elem_classes="pager"):
            self.back = gr.Button("Previous page", size="sm", min_width=110, visible=False)
            self.where = gr.HTML()
            self.forth = gr.Button("Next page", size="sm", min_width=110, visible=False)

    @property
    def states(self) -> set[Any]:
        return set()

    @property
    def shows(self) -> list[Any]:
        return [
            self.said, self.sets, self.drawing, *self.card.shows, self.controls, self.bad, self.all,
            self.grid, self.back, self.where, self.forth,
        ]  # fmt: skip

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        return self._show(given, outlook)

    def wire(self, refresh: Any) -> None:
        on, shows = self.desk.on, self.shows
        on(self.sets.input, self._choose, {self.sets}, shows)
        on(self.card.start.click, self._draw, (), shows, trigger_mode="once")
        on(self.card.stop.click, self._stop, (), shows, trigger_mode="once")
        on(self.back.click, lambda g: self._turn(g, -1), (), shows)
        on(self.forth.click, lambda g: self._turn(g, 1), (), shows)
        on(self.grid.click, self._pick, (), shows, clicks=True, queue=False, trigger_mode="multiple")
        on(self.bad.click, self._throw_bad, (), shows, trigger_mode="once")
        on(self.all.click, self._throw_all, (), shows, trigger_mode="once")

    def _show(self, given: Given, outlook: Outlook) -> dict[Any, Any]:
        wanted, sets = self._wanted(outlook), self._sets()
        if wanted:
            sets.setdefault(wanted.folder.name, [])
        look = self._seen(given, sets, wanted)
        pictures, is_wanted = sets.get(look.name, []), wanted is not None and wanted.folder.name == look.name
        pages = max(1, ceil(len(pictures) / PER_PAGE))
        page = min(look.page, pages - 1)
        shown = pictures[page * PER_PAGE : (page + 1) * PER_PAGE]
        picked, is_free = len(look.picked), self._in_use is None
        missing = wanted.missing() if wanted and is_wanted else 0
        updates = {
            self.said: _said(outlook, wanted if is_wanted else None, len(pictures), missing, bool(sets)),
            self.sets: gr.update(
                choices=_choices(sets, wanted), value=look.name or None, visible=len(sets) > 1
            ),
            self.drawing: gr.update(visible=missing > 0 or bool(self.card.doing) or self._has_ended),
            self.controls: gr.update(visible=bool(pictures)),
            self.bad: self._bad(picked),
            self.all: gr.update(interactive=is_free),
            self.grid: tag("div", "".join(self._cell(p, p.name in look.picked) for p in shown), "pictures"),
            self.where: tag("span", f"Page {page + 1:,} of {pages:,}", "quiet") if pages > 1 else "",
            self.back: gr.update(visible=pages > 1, interactive=page > 0),
            self.forth: gr.update(visible=pages > 1, interactive=page < pages - 1),
            **self.card.show(),
        }
        is_idle = self.card.doing is None
        label = f"Draw {words.count(missing, 'picture')} now" if missing and is_idle else "Draw them now"
        updates[self.card.start] = gr.update(value=label, interactive=missing > 0 and is_idle)
        self.looks[given.session] = replace(look, page=page)
        return self.sent.news(given.session, updates)

    def _bad(self, picked: int) -> dict[str, Any]:
        return gr.update(value=_throws(picked), interactive=picked > 0 and self._in_use is None)

    @property
    def _in_use(self) -> str | None:
        """Say why no picture may be thrown away now."""
        if self.card.doing:
            return "Class images are being drawn."
        return "A run is going on that may use these." if self.desk.jobs.state().current else None

    @property
    def _has_ended(self) -> bool:
        errands = self.desk.errands
        return VERB in errands.ended or VERB in errands.found

    def _seen(self, given: Given, sets: Mapping[str, Any], wanted: Wanted | None) -> Look:
        """What this page looks at: what was chosen there, else what the settings ask for, else any set."""
        look = self.looks[given.session]
        if look.name in sets:
            return look
        return Look(wanted.folder.name if wanted else next(iter(sets), ""))

    def _cell(self, picture: Path, is_picked: bool) -> str:
        address = self.desk.thumbnails.address
        inner = image(address(picture), picture.name)
        open_ = tag("button", inner, "thumbnail", type="button", title="Look at it large")
        tick = tag(
            "button", "", "tick", type="button", role="checkbox", aria_checked=str(is_picked).lower(),
            aria_label=f"Select {picture.name}", title="Select",
        )  # fmt: skip
        marks = "cell picked" if is_picked else "cell"
        large = address(picture, LARGE)
        return tag("div", open_ + tick, marks, data_picture=picture.name, data_large=large)

    def _sets(self) -> dict[str, list[Path]]:
        """The pictures of each set, by the folder's name, without those thrown away."""
        home = self.desk.workspace.class_images
        found = sorted(home.iterdir()) if home.is_dir() else []
        folders = [folder for folder in found if folder.is_dir() and not folder.name.startswith(".")]
        return {folder.name: _pictures(folder) for folder in folders}

    def _wanted(self, outlook: Outlook) -> Wanted | None:
        config, facts = outlook.config, outlook.facts
        if config is None or facts is None or config.prior.folder or not config.prior.class_prompt.strip():
            return None
        folder = planner.class_image_folder(config, facts, self.desk.workspace)
        return Wanted(folder, prior.names(config.prior, folder), config.prior.class_prompt.strip())

    def _choose(self, given: Given) -> dict[Any, Any]:
        self.looks[given.session] = Look(str(given[self.sets] or ""))
        return self._show(given, self.desk.look())

    def _turn(self, given: Given, by: int) -> dict[Any, Any]:
        look = self.looks[given.session]
        self.looks[given.session] = replace(look, page=max(0, look.page + by))
        return self._show(given, self.desk.look())

    def _pick(self, given: Given) -> dict[Any, Any]:
        """Take in what was selected; the page has drawn it already."""
        look, pictures = self.looks[given.session], frozenset(map(str, given.clicked["pictures"]))
        picked = look.picked | pictures if given.clicked["on"] else look.picked - pictures
        self.looks[given.session] = replace(look, picked=picked)
        updates = {self.bad: self._bad(len(picked))}
        return self.sent.news(given.session, updates)

    def _draw(self, given: Given) -> dict[Any, Any]:
        outlook, jobs = self.desk.look(), self.desk.jobs.state()
        if outlook.error:
            raise outlook.error
        if outlook.config is None or outlook.facts is None:
            raise UserError("The base model is still being looked at.", "Try again in a moment.")
        classes.check(outlook.config)
        if jobs.current or jobs.waiting:
            what = "A run is going on; it draws the class images that it needs itself."
            raise UserError(what, "Wait for it, or stop it first.")
        self.desk.begin(VERB, {"settings": classes.as_words(outlook.config)})
        self.looks[given.session] = Look()
        return self._show(given, outlook)

    def _stop(self, given: Given) -> dict[Any, Any]:
        self.desk.errands.stop(VERB)
        return self._show(given, self.desk.look())

    def _throw_bad(self, given: Given) -> dict[Any, Any]:
        look, folder = self.looks[given.session], self._folder(given)
        bad = [picture for picture in _pictures(folder) if picture.name in look.picked]
        prior.throw_away(folder, [int(picture.stem) for picture in bad])
        for picture in bad:
            self._to_trash(picture, f"{folder.name} {picture.stem}")
        self.looks[given.session] = replace(look, picked=frozenset())
        outlook = self.desk.look()
        gr.Info(f"{words.count(len(bad), 'picture')} moved to {self.desk.workspace.trash}.", duration=6)
        return self._show(given, outlook)

    def _throw_all(self, given: Given) -> dict[Any, Any]:
        folder = self._folder(given)
        target = self._to_trash(folder, folder.name)
        gr.Info(f"Moved to {target}.", duration=8)
        self.looks[given.session] = Look()
        return self._show(given, self.desk.look())

    def _folder(self, given: Given) -> Path:
        """The folder looked at. Raises UserError if it is being drawn in or trained with, or is gone."""
        name = self.looks[given.session].name
        if why := self._in_use:
            raise UserError(why, "Wait for that, or stop it first.")
        if name not in self._sets():
            raise UserError("This set is no longer there.", "Choose another.")
        return self.desk.workspace.class_images / name

    def _to_trash(self, path: Path, name: str) -> Path:
        trash = self.desk.workspace.trash
        trash.mkdir(parents=True, exist_ok=True)
        target = trash / f"{name} {time.strftime('%Y-%m-%d %H.%M.%S')}{path.suffix}"
        shutil.move(path, target)
        return target


def _pictures(folder: Path) -> list[Path]:
    """Those that may be used. One that was thrown away is there again only if a run goes on that began with
    it.
    """
    bad = prior.thrown_away(folder)
    return sorted(p for p in folder.glob("*.png") if p.stem.isdecimal() and int(p.stem) not in bad)


def _throws(number: int) -> str:
    return f"Throw {words.count(number, 'picture')} away" if number else "Throw away"


def _choices(sets: Mapping[str, Sequence[Path]], wanted: Wanted | None) -> list[tuple[str, str]]:
    """Sets by what was drawn, how many, and a part of the hash that tells two of one prompt apart."""
    return [(_label(name, pictures, wanted), name) for name, pictures in sets.items()]


def _label(name: str, pictures: Sequence[Path], wanted: Wanted | None) -> str:
    prompt, _, digest = name.rpartition("-")
    used = ", of your settings" if wanted and wanted.folder.name == name else ""
    return f"{prompt.replace('-', ' ')} ({digest[:4]}): {words.count(len(pictures), 'picture')}{used}"


def _found(answer: Mapping[str, Any]) -> str:
    return tag("p", f"{words.count(answer['drawn'], 'picture')} drawn.", "found")


def _said(outlook: Outlook, wanted: Wanted | None, number: int, missing: int, has_sets: bool) -> str:
    """`wanted` is the set that is looked at, if the settings ask for it; `number` are drawn of this set."""
    section = outlook.config.prior if outlook.config else None
    looked = "Click on a picture to see it large; tick bad ones and throw them away."
    if section and section.folder:
        text = f"Your settings take class images from {section.folder}."
        text += " Below is what was drawn otherwise." if has_sets else ""
    elif wanted is None and not has_sets:
        text = (
            "Class images keep what the model knows of other things while it learns yours. Write a class"
            " prompt in the tab Method, below 'Class images': then they are drawn before training, or here."
        )
    elif wanted is None:
        text = f"{words.count(number, 'picture')}, which your settings do not use. {looked}"
    elif missing:
        drawn = f"{len(wanted.names) - missing:,} of {words.count(len(wanted.names), 'picture')}"
        what = f"{drawn} of '{wanted.prompt}' are drawn. The others are drawn before training, or now."
        text = f"{what} {looked if number else ''}"
    else:
        spare = number - len(wanted.names)
        more = f" There are {spare:,} more, which stand in for those that you throw away." if spare else ""
        drawn = f"All {words.count(len(wanted.names), 'picture')} of '{wanted.prompt}' are drawn."
        text = f"{drawn}{more} {looked}"
    return tag("p", words.safe(text.strip()), "quiet")
