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
from ...data.census import Census, Sample
from ...section import UserError, fields
from .. import costs, words
from ..chore import ChoreCard
from ..desk import Desk
from ..listen import Given
from ..outlook import Outlook
from ..thumbnails import LARGE, thumbnail
from ..words import picture, tag

VERB = "caption"
MISSING, ALL = "Pictures without a caption", "All pictures"
_FIXED = ("folder", "captioner", "overwrite", "pictures", "dry_run", "write_files", "trigger")
_ABOVE = ("detail", "instruction", "threshold")
_NAMED = 8


class Captioning:
    """A captioner is chosen, tried, and let loose."""

    title = "Caption"
    tab: Any = None

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.card = ChoreCard(desk, VERB, "Caption", _FIXED, _found)
        self._counted: tuple[Census | None, list[Sample]] = (None, [])

    def build(self) -> None:
        choices = [(by.title, by.name) for by in captioners()]
        first = fields(self.card.chore.settings)["captioner"].default
        self.by = gr.Radio(
            choices, value=first, label="What writes the captions", elem_id="caption-captioner"
        )
        self.about = gr.HTML(elem_id="caption-about")
        with gr.Row(elem_classes="grid"):
            for name in _ABOVE:
                self.card.place_one(name, visible=name in captioner(first).reads)
            self.which = gr.Radio(
                [MISSING, ALL],
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
        self.tried = gr.State("")

    @property
    def states(self) -> set[Any]:
        return {self.by, self.which, self.tried, self.card.fields["model"].widget}

    @property
    def shows(self) -> list[Any]:
        own = [self.about, self.preview, self.tried, self.try_, self.other, self.undo, self.see]
        return [*own, *self.card.shows, *self.card.uses]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        census, by = outlook.census, captioner(given[self.by])
        is_free = self.card.doing is None
        number = len(self._meant(census, given[self.which]))
        path = self._still(census, given[self.tried])
        record = Record(self.desk.workspace.root, census.folder) if census else None
        return (
            self.card.show()
            | {
                self.about: _about(by, given[self.card.fields["model"].widget] or "", self._has_card()),
                self.preview: self._preview(census, path),
                self.tried: path,
                self.try_: gr.update(interactive=is_free and bool(path)),
                self.other: gr.update(interactive=census is not None and len(census.samples) > 1),
                self.card.start: gr.update(
                    value=f"Caption {words.count(number, 'picture')}" if number else "All have a caption",
                    interactive=is_free and number > 0,
                ),
                self.undo: gr.update(visible=is_free and record is not None and record.can_undo),
                self.see: gr.update(visible=is_free and _has_written(self.card.answer)),
            }
            | (self._broken_off(record) if is_free and record else {})
        )

    def wire(self, refresh: Any) -> None:
        on, uses = self.desk.on, {*self.states, *self.card.uses}
        changes = [self.by.input, self.which.input, self.card.fields["model"].widget.blur]
        on(changes, self._choose, uses, self.shows)
        on(self.other.click, self._another, uses, self.shows)
        on(self.try_.click, lambda g: self._begin(g, is_try=True), uses, self.shows, trigger_mode="once")
        on(self.card.start.click, lambda g: self._begin(g), uses, self.shows, trigger_mode="once")
        on(self.card.stop.click, self._stop, uses, self.shows, trigger_mode="once")
        refresh(on(self.undo.click, self._undo, uses, self.shows, trigger_mode="once"))

    def _choose(self, given: Given) -> dict[Any, Any]:
        """Show the settings that this captioner reads, and hide the others."""
        wanted = self._wanted(given)
        known = self.card.fields.items()
        return self.show(self.desk.look(), given) | {
            field.widget: gr.update(visible=name in wanted) for name, field in known
        }

    def _another(self, given: Given) -> dict[Any, Any]:
        census = self._census()
        paths = [sample.path for sample in census.samples]
        path = self._still(census, given[self.tried])
        following = paths[(paths.index(path) + 1) % len(paths)]
        return {self.tried: following, self.preview: self._preview(census, following)}

    def _begin(self, given: Given, is_try: bool = False) -> dict[Any, Any]:
        census = self._census()
        path = self._still(census, given[self.tried])
        read = {name: v for name, v in self.card.values(given).items() if name in self._wanted(given)}
        fixed = {
            "folder": str(census.folder),
            "captioner": given[self.by],
            "trigger": self._trigger(),
            "overwrite": is_try or given[self.which] == ALL,
            "pictures": [path] if is_try else [],
            "dry_run": is_try,
        }
        self.desk.begin(VERB, read | fixed)
        return self.show(self.desk.look(), given)

    def _wanted(self, given: Given) -> set[str]:
        """Return the names of the settings that count with what is chosen."""
        wanted = set(reads(captioner(given[self.by])))
        return wanted if given[self.which] == ALL else wanted - {"mode"}

    def _stop(self, given: Given) -> dict[Any, Any]:
        self.desk.errands.stop(VERB)
        return self.show(self.desk.look(), given)

    def _undo(self, given: Given) -> dict[Any, Any]:
        taken = Record(self.desk.workspace.root, self._census().folder).undo()
        self.desk.errands.found.pop(VERB, None)
        self.desk.look_again()
        gr.Info(f"{words.count(taken, 'caption')} taken back.", duration=4)
        return self.show(self.desk.look(), given)

    def _preview(self, census: Census | None, path: str) -> str:
        """Show the picture that is tried, with what was said of it, or the caption it has."""
        sample = next((s for s in census.samples if s.path == path), None) if census else None
        if sample is None:
            return tag("p", "There are no pictures yet.", "quiet")
        image = picture(str(thumbnail(self.desk.workspace, sample.file, LARGE)), sample.path)
        answer = self.card.answer
        said = answer["captions"].get(path) if answer and answer["is_try"] else None
        if said is not None:
            text = tag("b", f"{words.safe(answer['captioner'])}: ") + words.safe(said)
        else:
            text = words.safe(existing(sample)) or tag("span", "no caption", "quiet")
        return tag("figure", image + tag("figcaption", tag("p", words.safe(path), "quiet") + tag("p", text)))

    def _meant(self, census: Census | None, which: str) -> Sequence[Sample]:
        """Return the pictures to caption. They are counted once, however often a page asks."""
        if census is None or which == ALL:
            return census.samples if census else ()
        if self._counted[0] is not census:
            self._counted = (census, [sample for sample in census.samples if not existing(sample)])
        return self._counted[1]

    def _still(self, census: Census | None, path: str) -> str:
        """Return the picture that was looked at if it is there still, else the first without a caption."""
        samples = census.samples if census else ()
        if path and any(sample.path == path for sample in samples):
            return path
        return next((sample.path for sample in (*self._meant(census, MISSING)[:1], *samples[:1])), "")

    def _census(self) -> Census:
        outlook = self.desk.look()
        if outlook.census is None:
            raise outlook.error or UserError("There are no pictures.", "Choose a folder.")
        return outlook.census

    def _trigger(self) -> str:
        config = self.desk.look().config
        return config.data.trigger if config else ""

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
    return "".join(lines)


def _had(download: Download, model: str) -> str:
    licence = f" (licence: {download.licence})"
    if model and (Path(model).expanduser().is_dir() or not hub.is_id(model)):
        return "Its model is in the folder that you name"
    if hub.here(download.wanted(model)):
        return "Its model is on this machine" + ("" if model else licence)
    size = "" if model else f": about {hub.size_words(download.num_bytes)}"
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
