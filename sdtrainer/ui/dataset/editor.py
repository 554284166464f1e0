"""One picture large, with its caption: written as it is typed, its tags as chips, the next one a key away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from ...data import caption_edits
from ...data.captions import CHUNK_TOKENS
from ...data.census import Sample
from ...data.texts import one_line
from ...section import UserError
from .. import words
from ..desk import Desk
from ..listen import Given
from ..remembered import Remembered
from ..thumbnails import LARGE
from ..words import image, tag
from .diffs import diff
from .finder import Show
from .shelf import Shelf, Shelved
from .views import Moment, View, Views

SUGGESTED = 300
WRITES = """
let timer = 0, waiting = 0, number = 0, version = '', was = '', acts = [], unheard = false;
const box = () => element.querySelector('textarea');
const adds = () => element.querySelector('#caption-tag');
const later = () => { clearTimeout(timer); timer = 0; };
const send = () => {
  waiting = setTimeout(answered, 1000);
  unheard = false;
  trigger('click', {acts});
};
const answered = () => {
  waiting = 0;
  if (unheard) send();
};
window.tellCaption = (act, more = {}) => {
  later();
  if (!box()) return;
  const {picture} = element.querySelector('.writing').dataset, text = box().value;
  number = Math.max(number + 1, Date.now());
  acts = [...acts.slice(-19), {act, picture, was, text, number, ...more}];
  was = text;
  if (act === 'type') return trigger('input', {acts});
  unheard = true;
  if (!waiting) send();
};
const save = () => tellCaption('type');
element.addEventListener('input', event => {
  if (event.target !== box()) return;
  clearTimeout(timer);
  timer = setTimeout(save, 300);
});
element.addEventListener('focusout', event => { if (event.target === box() && timer) save(); });
document.addEventListener('visibilitychange', () => {
  if ((timer || unheard) && element.isConnected) save();  // the page may be closed now
});
element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (button) tellCaption(button.dataset.act);
});
element.addEventListener('keydown', event => {
  if (event.target !== adds() || event.key !== 'Enter' || !adds().value.trim()) return;
  event.preventDefault();
  tellCaption('add', {tag: adds().value});
});
const renew = () => {  // gradio keeps the fields of what it changes, and with them what was typed
  const writing = element.querySelector('.writing');
  if (!writing || writing.dataset.version === version) return;
  version = writing.dataset.version;
  later();
  box().value = was = writing.dataset.text;
  adds().value = '';
  if (!waiting) return;
  clearTimeout(waiting);
  waiting = setTimeout(answered, 50);  // not before gradio has done with this answer
};
new MutationObserver(renew).observe(element, {childList: true, subtree: true, attributes: true});
renew();
document.querySelector('#editor')?.scrollIntoView({block: 'start'});
"""
CHIPS = """
element.addEventListener('click', event => {
  const chip = event.target.closest('[data-act]');
  if (chip) tellCaption(chip.dataset.act, {tag: chip.dataset.tag});
});
"""


class Editor:
    """Whatever is done brings along the text as it was and as it is, which picture it belongs to, and what
    was done just before, which may not have been heard. The page sends keys and clicks one at a time: of two
    answers under way at once the older could come last and stay.
    """

    def __init__(self, desk: Desk, shelf: Shelf, views: Views) -> None:
        self.desk, self.shelf, self.views = desk, shelf, views
        self._newest: Remembered[int] = Remembered(0)

    def build(self) -> None:
        with (
            gr.Column(visible=False, elem_id="editor") as self.box,
            gr.Row(equal_height=False),
        ):
            with gr.Column(scale=5, min_width=280):
                self.large = gr.HTML(elem_id="large-picture")
            with gr.Column(scale=4, min_width=280):
                self.text = gr.HTML(js_on_load=WRITES, elem_id="caption")
                self.about = gr.HTML(js_on_load=CHIPS, elem_id="caption-about")
                self.suggestions = gr.HTML()

    @property
    def shows(self) -> list[Any]:
        return [self.box, self.large, self.text, self.about, self.suggestions]

    def wire(self, show: Show, shows: list[Any]) -> None:
        act = lambda given: self._act(given, show)  # noqa: E731
        events = [self.text.input, self.text.click]
        self.desk.on(events, act, (), shows, clicks=True, queue=False, trigger_mode="multiple")

    def open(self, given: Given, path: str) -> None:
        """Show a picture large, among those found."""
        shelved, view = self.shelf.look(), self.views[given.session]
        order = tuple(sample.path for sample in self.shelf.find(shelved, view.search))
        self._go(given, shelved, path, order)

    def render(self, moment: Moment) -> dict[Any, Any]:
        view = moment.view
        sample = moment.shelved.by_path.get(view.open)
        if sample is None:
            return {self.box: gr.update(visible=False)}
        return {
            self.box: gr.update(visible=True),
            self.large: self._large(moment, sample),
            self.text: self._text(moment, sample),
            self.about: self._about(moment, sample),
            self.suggestions: self._suggestions(moment),
        }

    def heard(self, session: str, shelved: Shelved) -> View:
        """Return a page's view, with the caption as it was changed elsewhere."""
        with self.views.lock:
            view = self.views[session]
            sample = shelved.by_path.get(view.open)
            if sample and sample.caption != view.held:
                view = self.views[session] = view.with_text(sample.caption)
            return view

    def _act(self, given: Given, show: Show) -> dict[Any, Any]:
        with self.views.lock:
            for done in given.clicked["acts"]:
                if int(done["number"]) > self._newest[given.session]:
                    self._newest[given.session] = int(done["number"])
                    self._do(given, done)
        return show(given)

    def _do(self, given: Given, clicked: Mapping[str, Any]) -> None:
        if clicked["text"] != clicked["was"]:
            self._save(given, str(clicked["picture"]), str(clicked["text"]))
        match clicked["act"]:
            case "next" | "previous":
                self._step(given, 1 if clicked["act"] == "next" else -1)
            case "close":
                self.views.change(given.session, open="")
            case "untag":
                self._retag(clicked, lambda tags: [t for t in tags if t != clicked["tag"]])
            case "add":
                new = caption_edits.tags_of(str(clicked["tag"]))
                self._retag(clicked, lambda tags: tags + [t for t in new if t not in tags])

    def _save(self, given: Given, path: str, text: str) -> None:
        shelved, caption = self.shelf.look(), one_line(text)
        if caption != _sample(shelved, path).caption:
            self.shelf.apply(f"Caption of {path}", {path: caption}, joins=True)
        if self.views[given.session].open == path:
            self.views.change(given.session, held=caption)

    def _retag(self, clicked: Mapping[str, Any], change: Any) -> None:
        """Change the tags of the picture that the page showed; a later one may be open already."""
        shelved, path = self.shelf.look(), str(clicked["picture"])
        separator = shelved.section.tag_separator
        tags = caption_edits.tags_of(_sample(shelved, path).caption, separator)
        caption = caption_edits.joined(change(tags), separator)
        self.shelf.apply(f"Caption of {path}", {path: caption}, joins=True)

    def _step(self, given: Given, by: int) -> None:
        """Go to the next picture that is still there; behind the last comes the first."""
        shelved, view = self.shelf.look(), self.views[given.session]
        there = [path for path in view.order if path in shelved.by_path or path == view.open]
        place = there.index(view.open) if view.open in there else -by
        if there:
            self._go(given, shelved, there[(place + by) % len(there)], view.order)

    def _go(self, given: Given, shelved: Shelved, path: str, order: Any) -> None:
        caption = _sample(shelved, path).caption
        with self.views.lock:
            view = self.views.change(given.session, open=path, order=order)
            self.views[given.session] = view.with_text(caption)

    def _large(self, moment: Moment, sample: Sample) -> str:
        order = moment.view.order
        place = order.index(sample.path) if sample.path in order else 0
        ahead = moment.shelved.by_path.get(order[(place + 1) % len(order)]) if order else None
        facts = f"{sample.width:,} x {sample.height:,} px, {words.size(sample.num_bytes)}"
        where = f", {place + 1:,} of {len(order):,}" if len(order) > 1 else ""
        caption = tag("b", words.safe(sample.path)) + tag("span", facts + where, "quiet")
        soon = tag("link", "", rel="prefetch", href=self._address(ahead)) if ahead else ""
        return tag("figure", image(self._address(sample), sample.path) + tag("figcaption", caption)) + soon

    def _address(self, sample: Sample) -> str:
        return self.desk.thumbnails.address(sample.file, LARGE)

    def _text(self, moment: Moment, sample: Sample) -> str:
        label = tag("label", "Caption", **{"for": "caption-text"})
        note = tag("p", "Kept in the workspace as you type; your files are not changed.", "quiet")
        area = tag("textarea", words.safe(moment.view.sent), id="caption-text", rows=5, spellcheck="true")
        adding = tag("label", "Add a tag", **{"for": "caption-tag"}) + tag(
            "input",
            "",
            id="caption-tag",
            list="tags-there",
            autocomplete="off",
            placeholder="and press Enter",
        ).removesuffix("</input>")
        buttons = "".join(
            tag("button", text, "small", type="button", id=f"caption-{act}", data_act=act)
            for act, text in (("previous", "Previous"), ("next", "Next"), ("close", "All pictures"))
        )
        inner = tag("div", buttons, "controls") + label + note + area
        inner += tag("div", adding, "adding")
        view = moment.view
        kept = {"data_picture": sample.path, "data_text": view.sent, "data_version": view.version}
        return tag("div", inner, "writing", **kept)

    def _suggestions(self, moment: Moment) -> str:
        """The tags of the set, for the field that adds one."""
        names = [name for name, _ in self.shelf.tags(moment.shelved).most_common(SUGGESTED)]
        choices = "".join(tag("option", "", value=name).removesuffix("</option>") for name in names)
        return tag("datalist", choices, id="tags-there")

    def _about(self, moment: Moment, sample: Sample) -> str:
        shelved = moment.shelved
        tags = caption_edits.tags_of(sample.caption, shelved.section.tag_separator)
        chips = "".join(map(_chip, tags)) if len(tags) > 1 else ""
        trained = shelved.trained_as(sample.caption, sample.class_word)
        parts = [tag("div", chips, "chips") if chips else "", self._length(trained)]
        of_file = sample.written[0] if sample.written else ""
        if of_file not in ("", sample.caption):
            parts.append(tag("p", f"Against your file: {diff(of_file, sample.caption)}", "quiet diff"))
        return "".join(parts)

    def _length(self, trained: str) -> str:
        """Say what is trained on, how long it is, and where a window of tokens ends."""
        counts = self.shelf.tokens([trained])
        if not trained:
            return tag("p", "Trained as: (nothing)", "quiet")
        if counts is None:
            return tag("p", f"Trained as: {words.safe(trained)}", "quiet")
        long = counts[0] > CHUNK_TOKENS
        text = _cut(trained) if long else words.safe(trained)
        said = f"{counts[0]:,} of {CHUNK_TOKENS} tokens."
        if long:
            said = (
                f"{words.count(counts[0], 'token')}: more than {CHUNK_TOKENS} are read in parts, which takes"
                " memory, and some programs ignore what stands behind the mark."
            )
        return tag("p", said, "long" if long else "quiet") + tag("p", f"Trained as: {text}", "quiet")


def _cut(text: str) -> str:
    from ...families import clip_tokenizer

    starts = clip_tokenizer.window_starts(text, CHUNK_TOKENS)
    pieces = [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    return tag("mark", " | ", "cut").join(words.safe(piece) for piece in pieces)


def _chip(name: str) -> str:
    button = tag("button", "×", type="button", data_act="untag", data_tag=name, aria_label=f"Remove {name}")
    return tag("span", words.safe(name) + button, "tag-chip")


def _sample(shelved: Shelved, path: str) -> Sample:
    if path not in shelved.by_path:
        raise UserError("This picture is no longer there.", "Press 'Look again'.")
    return shelved.by_path[path]
