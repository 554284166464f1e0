"""The VRAM tab: what the plan holds in memory, as squares of 1 GiB, and what was decided automatically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from .. import hardware, storage
from ..config import knobs
from ..hardware import Machine
from ..plan import PHASES, Plan
from . import pictures, words
from .desk import Desk
from .listen import Given
from .outlook import Outlook
from .words import tag

if TYPE_CHECKING:
    from ..memory import Ledger

CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 48, 80)
OWN_CARD = "this"
DEFAULT_CARD = 8
PHASE_WORDS = {"cache": "Preparing", "train": "Training", "sample": "Drawing", "export": "Exporting"}
ORDER = ("weights", "gradients", "optimizer", "average", "activations", "temporary", "overhead")


class Vram:
    """Memory."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        self.card = gr.Dropdown(
            allow_custom_value=True,
            label="Card",
            info="Try another card: the plan is made anew for it.",
            elem_id="card",
        )
        self.picture = gr.HTML(elem_id="vram")
        self.table = gr.HTML()

    @property
    def shows(self) -> list[Any]:
        return [self.card, self.picture, self.table]

    def show(self, outlook: Outlook, given: Given) -> dict[Any, Any]:
        own = self.desk.machine.card
        choices: list[tuple[str, Any]] = [(f"{gib} GB", gib) for gib in CARDS]
        if own:
            choices.insert(0, (f"This machine: {own.name}, {words.size(own.total_bytes)}", OWN_CARD))
        known = [value for _, value in choices]
        chosen = given[self.card] if given[self.card] in known else OWN_CARD if own else DEFAULT_CARD
        machine = self._machine(chosen)
        seen = self.desk.look_on(machine, outlook.values) if chosen != OWN_CARD else outlook
        return {
            self.card: gr.update(choices=choices, value=chosen),
            self.picture: self._picture(seen, machine),
            self.table: _choices(seen.plan),
        }

    def wire(self) -> None:
        self.desk.on(self.card.input, lambda g: self.show(self.desk.look(), g), {self.card}, self.shows)

    def _machine(self, chosen: Any) -> Machine:
        return self.desk.machine if chosen == OWN_CARD else hardware.imagined(float(chosen))

    def _picture(self, seen: Outlook, machine: Machine) -> str:
        if seen.plan is None:
            return tag("p", "There is no plan yet; the panel beside says what is missing.", "quiet")
        ledger = self.desk.ledger(seen.plan)
        if ledger is None:
            return tag("p", "The model is being counted; the squares appear in a moment.", "quiet")
        assert machine.card
        total, phase = machine.card.total_bytes, ledger.peak_phase
        parts = _sums(ledger, phase)
        free = total - sum(parts.values())
        held = f"{words.size(sum(parts.values()))} of {words.size(total)}"
        needs = f"One square is 1 GB. {PHASE_WORDS[phase]} needs the most: {held}. {_verdict(ledger, free)}"
        return (
            tag("p", needs)
            + tag("div", pictures.squares(parts, total) + pictures.legend(parts, free), "vram")
            + tag("p", _certainty(ledger), "quiet")
            + _phases(ledger, total)
            + _computer(seen.plan, ledger)
        )


def _verdict(ledger: Ledger, free: float) -> str:
    if free <= 0:
        return "That does not fit on this card."
    return "That fits, as far as it is known." if ledger.unknown else "That fits."


def _certainty(ledger: Ledger) -> str:
    """Say how far the squares can be trusted."""
    if not ledger.unknown:
        return (
            "The working memory of a step (activations) was found by running the real step without a card; "
            "until it is measured on a card, the sum may be 15 % off."
        )
    phases = " and ".join(PHASE_WORDS[phase].lower() for phase in ledger.unknown)
    return (
        f"The working memory of {phases} (activations) is not known yet for this model and method, and is "
        "left out; it grows with the size of the pictures and with the batch. The command line's verb "
        "trace finds it, without a card."
    )


def _computer(plan: Plan, ledger: Ledger) -> str:
    """What the plan needs of main memory and disk."""
    places = {"memory": "main memory", "disk": "disk"}
    rows = [
        tag(
            "tr",
            tag("th", words.safe(need.what.capitalize()), scope="row")
            + tag("td", places[need.where])
            + tag("td", words.size(need.bytes), "number"),
        )
        for need in storage.needs(plan, ledger)
    ]
    head = tag("tr", "".join(tag("th", word, scope="col") for word in ("For", "Where", "Size")))
    return tag("h3", "Of this computer") + tag("table", head + "".join(rows))


def _sums(ledger: Ledger, phase: str) -> dict[str, float]:
    rows = [row for row in ledger.rows if row.phase == phase]
    return {
        what: sum(r.bytes for r in rows if r.what == what)
        for what in ORDER
        if any(r.what == what for r in rows)
    }


def _phases(ledger: Ledger, total: int) -> str:
    rows = [
        tag(
            "tr",
            tag("th", PHASE_WORDS[phase], scope="row") + tag("td", words.size(ledger.held(phase)), "number"),
        )
        for phase in PHASES
    ]
    head = tag("tr", tag("th", "Phase", scope="col") + tag("th", "Held on the card", "number", scope="col"))
    return tag("h3", "By phase") + tag("table", head + "".join(rows))


def _choices(plan: Plan | None) -> str:
    if plan is None or not plan.choices:
        return ""
    titles = {k.path: k.title for k in knobs()}
    head = tag("tr", "".join(tag("th", word, scope="col") for word in ("Setting", "Chosen", "Because")))
    rows = [
        tag(
            "tr",
            tag("th", words.safe(titles.get(c.path, c.path)), scope="row")
            + tag("td", words.safe(words.value(c.value)))
            + tag("td", words.safe(c.why)),
        )
        for c in plan.choices
    ]
    return tag("h3", "Decided automatically") + tag("table", head + "".join(rows))
