"""Captions written by a captioner: which one, a try on one picture, then all, with undo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ... import hub
from ...captioners import Captioner, Download, captioner, captioners
from ...captioners.record import Record
from ...captioners.work import existing, reads
from ...chores import Answer
from ...section import UserError, fields
from .. import costs, words
from ..chore import ChoreCard
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..remembered import Remembered
from ..thumbnails import LARGE
from ..words import image, tag
from .browse import Browse
from .shelf import Shelved
from .views import Sent

VERB = "caption"
MISSING, ALL, PICKED = "Without a caption", "All", "Those selected under Pictures"
_FIXED = ("folder", "captioner", "overwrite", "pictures", "dry_run", "write_files", "trigger")
_ABOVE = ("detail", "instruction", "threshold", "template")
_NAMED = 8
_NONE = {MISSING: "All have a caption", ALL: "No pictures", PICKED: "No picture is selected"}


class Captioning:
    """A captioner is chosen, tried, and let loose."""

    title = "Caption"

    def __init__(self, desk: Desk, browse: Browse) -> None:
        self.desk, self.shelf, self.views = desk, browse.shelf, browse.views
        self.card = ChoreCard(desk, VERB, "Caption", _FIXED, _found)
        self.tried: Remembered[str] = Remembered("")
        self.sent = Sent()
        self._counted: tuple[Shelved | None, list[str]] = (None, [])

    def build(self) -> None:
        choices = [(by.title, by.name) for by in captioners()]
        first = fields(self.card.chore.settings)["captioner"].default
        self.by = gr.Radio(
            choices, value=first, label="What writes the captions", elem_id="caption-captioner"
        )
        self.about = gr.HTML(elem_id="captioner-about")
        with gr.Row(elem_classes="grid"):
            for name in _ABOVE:
                self.card.place_one(name, visible=name in reads(captioner(first)))
            self.which = gr.Radio(
                [MISSING, ALL, PICKED],
                value=MISSING,
                label="Which pictures",
                info="Captions stay in the workspace; your files are not changed.",
                elem_id="caption-which",
            )
            self.card.place_one("mode", visible=False)
        with gr.Accordion("More settings of captioning", open=False):
            self.card.place("advanced")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=240, scale=1):
                self.preview = gr.HTML(elem_id="caption-preview")
            with gr.Column(min_width=240, scale=2):
                with gr.Row(elem_classes="controls"):
                    self.try_ = gr.Button("Try on this picture", size="sm", elem_id="caption-try")
                    self.other = gr.Button("Another picture", size="sm", elem_id="caption-other")
                self.card.build_controls()
                with gr.Row(elem_classes="controls"):
                    self.undo = gr.Button(
                        "Undo these captions", size="sm", visible=False, elem_id="caption-undo"
                    )
                    self.see = gr.Button("See the captions", size="sm", visible=False, elem_id="caption-see")

    @property
    def states(self) -> set[Any]:
        return {self.by, self.which, self.card.fields["model"].widget}

    @property
    def shows(self) -> list[Any]:
        own = [self.about, self.preview, self.try_, self.other, self.undo, self.see]
        return [*own, *self.card.shows, *self.card.uses]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        return self._show(given)

    def _show(self, given: Given) -> dict[Any, Any]:
        """Return what is new to this page."""
        return self.sent.news(given.session, self._all(given))

    def _all(self, given: Given) -> dict[Any, Any]:
        """Show everything as it is now."""
        shelved, by = self._shelved(), captioner(given[self.by])
        is_free, number = self.card.doing is None, len(self._meant(shelved, given))
        answer = self._answer(shelved)
        updates = self.card.show() | {
            self.about: _about(by, given[self.card.fields["model"].widget] or "", self._has_card()),
            self.preview: self._preview(shelved, self._tried(shelved, given)),
            self.try_: gr.update(interactive=is_free and shelved is not None),
            self.other: gr.update(interactive=shelved is not None and len(shelved.by_path) > 1),
            self.card.start: gr.update(
                value=f"Caption {words.count(number, 'picture')}" if number else _NONE[given[self.which]],
                interactive=is_free and number > 0,
            ),
            self.undo: gr.update(visible=False),
            self.see: gr.update(visible=is_free and _has_written(answer)),
        }
        if answer is None and self.card.answer is not None:
            updates[self.card.news] = ""
        if shelved and is_free:
            record = Record(self.desk.workspace.root, shelved.census.folder)
            updates[self.undo] = gr.update(visible=record.can_undo)
            updates |= self._broken_off(record)
        return updates

    def wire(self, refresh: Any) -> None:
        on, uses = self.desk.on, {*self.states, *self.card.uses}
        changes = [self.by.input, self.which.input, self.card.fields["model"].widget.blur]
        on(changes, self._choose, uses, self.shows)
        on(self.other.click, self._another, uses, self.shows)
        on(self.try_.click, lambda g: self._begin(g, is_try=True), uses, self.shows, trigger_mode="once")
        on(self.card.start.click, lambda g: self._begin(g), uses, self.shows, trigger_mode="once")
        on(self.card.stop.click, self._stop, uses, self.shows, trigger_mode="once")
        on(self.undo.click, self._undo, uses, self.shows, trigger_mode="once")

    def _choose(self, given: Given) -> dict[Any, Any]:
        """Show the settings that this captioner reads, and hide the others."""
        wanted = self._wanted(given)
        known = self.card.fields.items()
        return self._show(given) | {field.widget: gr.update(visible=name in wanted) for name, field in known}

    def _another(self, given: Given) -> dict[Any, Any]:
        shelved = self.shelf.look()
        paths = list(shelved.by_path)
        path = self._tried(shelved, given)
        self.tried[given.session] = paths[(paths.index(path) + 1) % len(paths)]
        return self._show(given)

    def _begin(self, given: Given, is_try: bool = False) -> dict[Any, Any]:
        shelved = self.shelf.look()
        read = {name: v for name, v in self.card.values(given).items() if name in self._wanted(given)}
        paths = self._meant(shelved, given) if given[self.which] == PICKED else []
        fixed = {
            "folder": str(shelved.census.folder),
            "captioner": given[self.by],
            "trigger": shelved.section.trigger,
            "overwrite": is_try or given[self.which] != MISSING,
            "pictures": [self._tried(shelved, given)] if is_try else list(paths),
            "dry_run": is_try,
        }
        self.desk.begin(VERB, read | fixed)
        return self._show(given)

    def _wanted(self, given: Given) -> set[str]:
        """Return the names of the settings that count with what is chosen."""
        wanted = set(reads(captioner(given[self.by])))
        return wanted - {"mode"} if given[self.which] == MISSING else wanted

    def _stop(self, given: Given) -> dict[Any, Any]:
        self.desk.errands.stop(VERB)
        return self._show(given)

    def _undo(self, given: Given) -> dict[Any, Any]:
        taken = Record(self.desk.workspace.root, self.shelf.look().census.folder).undo()
        self.desk.errands.found.pop(VERB, None)
        self.desk.captions_changed()
        gr.Info(f"{words.count(taken, 'caption')} taken back.", duration=4)
        return self._show(given)

    def _preview(self, shelved: Shelved | None, path: str) -> str:
        """Show the picture that is tried, with what was said of it, or the caption it has."""
        if shelved is None:
            return tag("p", "There are no pictures yet.", "quiet")
        sample, answer = shelved.by_path[path], self._answer(shelved)
        said = answer["captions"].get(path) if answer and answer["is_try"] else None
        if said is not None:
            text = tag("b", f"{words.safe(answer['captioner'])}: ") + words.safe(said)
        else:
            text = words.safe(existing(sample)) or tag("span", "no caption", "quiet")
        shown = image(self.desk.thumbnails.address(sample.file, LARGE), path)
        return tag("figure", shown + tag("figcaption", tag("p", words.safe(path), "quiet") + tag("p", text)))

    def _answer(self, shelved: Shelved | None) -> Answer | None:
        """Return what came of the last captioning, if it was of these pictures."""
        answer = self.card.answer
        return answer if answer and shelved and answer["folder"] == str(shelved.census.folder) else None

    def _shelved(self) -> Shelved | None:
        try:
            shelved = self.shelf.look()
        except UserError:
            return None
        return shelved if shelved.by_path else None

    def _meant(self, shelved: Shelved | None, given: Given) -> Sequence[str]:
        """Return the pictures to caption, by path."""
        if shelved is None:
            return ()
        picked = self.views[given.session].picked
        return {
            MISSING: lambda: self._bare(shelved),
            ALL: lambda: list(shelved.by_path),
            PICKED: lambda: [path for path in shelved.by_path if path in picked],
        }[given[self.which]]()

    def _bare(self, shelved: Shelved) -> list[str]:
        """Return the pictures without a caption; found once, however often a page asks."""
        if self._counted[0] is not shelved:
            bare = [path for path, sample in shelved.by_path.items() if not existing(sample)]
            self._counted = (shelved, bare)
        return self._counted[1]

    def _tried(self, shelved: Shelved | None, given: Given) -> str:
        """Return the picture to try on: the one looked at if it is there still, else one without caption."""
        path = self.tried[given.session]
        if shelved is None or path in shelved.by_path:
            return path
        return next(iter(self._bare(shelved) or shelved.by_path))

    def _broken_off(self, record: Record) -> dict[Any, Any]:
        """Say of a captioning that was broken off that nothing is lost, also after a restart of the app."""
        if not record.num_written or self.card.answer is not None:
            return {}
        said = costs.ended(self.desk.errands.ended.get(VERB, ""))
        kept = f"The last captioning was broken off after {words.count(record.num_written, 'picture')}."
        return {self.card.news: said + tag("p", f"{kept} Begin the same again, and it goes on there.")}

    def _has_card(self) -> bool:
        """Whether captioning would have the card: none there, or a run on it, means the processor."""
        jobs = self.desk.jobs.state()
        return self.desk.machine.card is not None and not (jobs.current or jobs.waiting)


def _about(by: Captioner, model: str, has_card: bool) -> str:
    """Say what it writes, what is downloaded for it, and where it works."""
    lines = [tag("p", words.safe(by.about))]
    if by.download:
        where = "works on the card" if has_card and "precision" in by.reads else "works on the processor"
        said = f"{_had(by.download, model.strip())}; it {where}."
        lines.append(tag("p", words.safe(said), "quiet"))
        if by.download.also and not model.strip():
            others = [f"{repo} ({hub.size_words(size)})" for repo, size in by.download.also.items()]
            said = f"Under Other model you can write a larger or smaller one: {' or '.join(others)}."
            lines.append(tag("p", words.safe(said), "quiet"))
    return "".join(lines)


def _had(download: Download, model: str) -> str:
    licence = f" (licence: {download.licence})"
    if model and (Path(model).expanduser().is_dir() or not hub.is_id(model)):
        return "Its model is in the folder that you name"
    if hub.here(download.wanted(model)):
        return "Its model is on this machine" + ("" if model else licence)
    num_bytes = download.size(model)
    size = f": about {hub.size_words(num_bytes)}" if num_bytes else ""
    return f"Its model is downloaded first, once{size}" + ("" if model else licence)


def _has_written(answer: Answer | None) -> bool:
    return answer is not None and not answer["is_try"] and answer["written"] > 0


def _found(answer: Answer) -> str:
    """Say what came of it."""
    skipped = _skipped(answer["skipped"])
    if answer["is_try"]:
        took = words.duration(answer["seconds"]) if answer["seconds"] >= 1 else "under a second"
        said = "" if skipped else tag("p", f"Tried in {took}, and not kept.", "quiet")
        return said + skipped
    number = answer["written"] + answer["done"]
    light = tag("span", "Done" if number else "Nothing", f"light {'good' if number else 'idle'}")
    where = f" {answer['where']}" if answer["where"] else ""
    text = f"{words.count(number, 'caption')} by {answer['captioner']}{where}."
    if answer["kept"]:
        text += f" {words.count(answer['kept'], 'picture')} had one and kept it."
    examples = (tag("b", words.safe(path)) + f" {words.safe(x)}" for path, x in answer["captions"].items())
    return tag("p", light + words.safe(text), "found") + tag("ul", words.items(examples)) + skipped


def _skipped(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return ""
    rows: Iterable[str] = (
        tag("b", words.safe(path)) + f" {words.safe(why)}" for path, why in list(skipped.items())[:_NAMED]
    )
    more = f"and {len(skipped) - _NAMED:,} more" if len(skipped) > _NAMED else ""
    title = tag("p", words.safe(f"{words.count(len(skipped), 'picture')} skipped:"))
    return title + tag("ul", words.items(rows), "problems") + tag("p", more, "quiet")
