"""The VRAM tab: whether the plan fits a card, as squares of 1 GiB, and what could be decided otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from .. import hardware
from ..hardware import LEAST_GIB, MOST_GIB, Machine
from ..methods import method_of
from ..seams import T5
from ..section import UserError, override
from . import budget, picker, words
from .desk import Desk
from .form import label_of
from .listen import Given
from .measuring import Measuring
from .outlook import Outlook
from .panel import CLICKS
from .project import METHOD
from .words import tag

if TYPE_CHECKING:
    from ..fitting import Change

TITLE = "VRAM"
TRIED = tag("p", "This is what you try under 'What if', and not your settings.", "quiet")
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 48, 80)
OWN_CARD = "this"
DEFAULT_CARD = 8
CARD_HELP = f"Choose one or type a size ({LEAST_GIB:g} to {MOST_GIB:g} GB): the plan is made anew for it."
AS_SET = "as set"
WHAT_IF: Mapping[str, tuple[Any, ...]] = {
    "train.resolution": (256, 384, 512, 640, 768, 1024),
    "train.batch_size": (1, 2, 4, 8, 16),
    "train.precision": (),
    "train.checkpointing": (),
    "optim.name": (),
}
"""Settings to try without changing them, with the values offered; those of a choice are its own."""


class Vram:
    """Memory."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.measuring = Measuring(desk)
        self._looking: set[str] = set()

    def build(self) -> None:
        self.card = gr.Dropdown(allow_custom_value=True, label="Card", info=CARD_HELP, elem_id="card")
        self.picture = gr.HTML(elem_id="vram")
        self.changes = gr.HTML(js_on_load=CLICKS, elem_id="changes")
        knobs = budget.knobs_by_path()
        with gr.Accordion("What if: try settings without changing yours", open=False, elem_id="what-if"):
            with gr.Row(elem_classes="grid"):
                self.what_if = {
                    path: gr.Dropdown(
                        [(AS_SET, AS_SET), *((words.value(v), v) for v in values or knobs[path].choices)],
                        value=AS_SET,
                        label=label_of(knobs[path]),
                        min_width=150,
                    )
                    for path, values in WHAT_IF.items()
                }
            with gr.Row(elem_classes="controls"):
                self.use = gr.Button("Use these settings", size="sm")
                self.back = gr.Button("Back to mine", size="sm")
        self.choices = gr.HTML()
        self.measuring.build()
        self.classics = gr.HTML(elem_id="classics")
        self.computer = gr.HTML()

    @property
    def chosen(self) -> set[Any]:
        """What tells which plan is looked at."""
        return {self.card, *self.what_if.values()}

    @property
    def shows(self) -> list[Any]:
        own = [self.card, self.picture, self.changes, self.choices, self.classics, self.computer]
        return [*own, *self.measuring.shows]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        """Show it to who looks; for who does not, see only to the plan of this machine."""
        if given.session not in self._looking:
            self.desk.find_out(outlook, self.desk.machine)
            return {}
        return self._show(outlook, given) | self.measuring.show(outlook)

    def _show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        card, error = self._card(given)
        if error or card is None:
            return {
                self.card: gr.update(info=str(error), elem_classes=["wrong"]),
                self.picture: tag("p", "The squares appear when the card has a size.", "quiet"),
                self.changes: "",
                self.choices: "",
            }
        machine = self._machine(card)
        seen = self._seen(outlook, machine, given)
        return {
            self.card: gr.update(choices=self._cards(), info=CARD_HELP, elem_classes=[])
            | ({"value": card} if given[self.card] is None else {}),
            self.picture: (TRIED if self._tried(given) else "") + self._picture(seen, machine),
            self.changes: self._changes(seen, machine),
            self.choices: budget.choices(seen.plan),
            self.classics: self._classics(outlook),
            self.computer: budget.computer(seen.fit) if seen.fit else "",
        }

    def wire(self, filled: Any, tabs: Iterable[gr.Tab]) -> None:
        """`tabs` are this one and those on which other things than memory are looked at."""
        on, again = self.desk.on, lambda g: self.show(self.desk.look(), g)
        on([widget.input for widget in self.chosen], again, self.chosen, self.shows)
        on([tab.select for tab in tabs], self._turn, self.chosen, self.shows, clicks=True)
        self.measuring.wire()
        filled(on(self.changes.click, self._take, self.chosen, self.what_if.values(), clicks=True))
        filled(on(self.use.click, self._take_all, self.chosen, self.what_if.values()))
        filled(on(self.back.click, lambda g: self._as_set(), (), self.what_if.values()))

    def _turn(self, given: Given) -> dict[Any, Any]:
        """This tab was opened, or another."""
        if given.clicked.get("value") == TITLE:
            return self.open(given)
        self._looking.discard(given.session)
        return self.show(self.desk.look(), given)

    def open(self, given: Given) -> dict[Any, Any]:
        """Show the tab to this page from now on."""
        self._looking.add(given.session)
        return self.show(self.desk.look(), given)

    def _cards(self) -> list[tuple[str, Any]]:
        own = self.desk.machine.card
        mine = [(f"This machine: {own.name}, {words.size(own.total_bytes)}", OWN_CARD)] if own else []
        return [*mine, *((f"{gib} GB", gib) for gib in CARDS)]

    def _card(self, given: Given) -> tuple[Any, UserError | None]:
        """Return the chosen card, "this" or its GiB; or what is wrong with what was typed."""
        own, chosen = self.desk.machine.card, given[self.card]
        if chosen in (None, OWN_CARD):
            return (OWN_CARD if own else DEFAULT_CARD), None
        try:
            return hardware.gib_of(str(chosen)), None
        except UserError as error:
            return None, error

    def _machine(self, card: Any) -> Machine:
        return self.desk.machine if card == OWN_CARD else hardware.imagined(card)

    def _seen(self, outlook: Outlook, machine: Machine, given: Given) -> Outlook:
        """Look at the settings as they are, or as they are tried, on this card."""
        tried = self._tried(given)
        if machine is self.desk.machine and not tried:
            return outlook
        return self.desk.look_on(machine, override(outlook.values, tried))

    def _tried(self, given: Given) -> dict[str, Any]:
        return {path: given[widget] for path, widget in self.what_if.items() if given[widget] != AS_SET}

    def _as_set(self) -> dict[Any, Any]:
        return dict.fromkeys(self.what_if.values(), AS_SET)

    def _picture(self, seen: Outlook, machine: Machine) -> str:
        progress = self.desk.find_out(seen, machine)
        if seen.plan is None:
            return tag("p", words.safe(seen.error or "There is no plan yet."), "bad")
        if seen.fit is None:
            return tag("p", "The model is being counted; the squares appear in a moment.", "quiet")
        trust = self.measuring.trust(seen) if machine is self.desk.machine else ""
        return budget.plan(seen.fit, machine, progress, trust)

    def _changes(self, seen: Outlook, machine: Machine) -> str:
        if seen.fit is None or seen.fit.fits is not False:
            return ""
        return budget.changes(self.desk.changes(seen, machine))

    def _classics(self, outlook: Outlook) -> str:
        if outlook.facts is None or not self.desk.is_warm:
            return ""
        from ..classics import CARD_GIB

        drawn = self.desk.classics(outlook.facts)
        title = outlook.facts.title + (" without T5" if T5 in outlook.facts.encoders else "")
        return budget.classics(drawn, title, CARD_GIB)

    def _take(self, given: Given) -> dict[Any, Any]:
        """A change that saves memory was chosen: make it."""
        outlook, (card, _) = self.desk.look(), self._card(given)
        machine = self._machine(card)
        seen = self._seen(outlook, machine, given)
        found = self.desk.changes(seen, machine) if seen.fit and seen.fit.fits is False else ()
        number = int(given.clicked.get("number", -1))
        if not found or not 0 <= number < len(found) or found[number].path != given.clicked.get("setting"):
            raise UserError("This change is out of date.", "Look at the table again.")
        return self._change(found[number], given)

    def _change(self, change: Change, given: Given) -> dict[Any, Any]:
        """Make a change, with what is tried: so it was counted."""
        project = self.desk.project
        values = override(project.values, self._tried(given))
        if change.path == METHOD:  # with its own settings, and none of the old method's rates
            section = {"kind": change.value} | method_of(change.value).Section().model_dump()
            old = {"kind": values.get("method", {}).get("kind", change.value)}
            values = picker.switched(old, section, values, project.chosen())
        else:
            values = override(values, {change.path: change.value})
        project.change(values, given.session)
        return self._as_set()

    def _take_all(self, given: Given) -> dict[Any, Any]:
        """Make the tried settings one's own."""
        project = self.desk.project
        project.change(override(project.values, self._tried(given)), given.session)
        return self._as_set()
