"""What a plan holds, in words and pictures: the verdict, squares, phases, what would help. Pure HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import storage
from ..config import knobs
from ..hardware import GIB, Machine
from ..methods import method_of
from ..plan import PHASES, Plan
from ..section import Knob
from . import pictures, words
from .project import METHOD
from .tracing import Progress
from .words import tag

if TYPE_CHECKING:
    from ..classics import Drawn
    from ..fitting import Change, Fit
    from ..memory import Ledger

PHASE_WORDS = {"cache": "Preparing", "train": "Training", "sample": "Drawing", "export": "Exporting"}
NUMBERS = ("On the card", "Size", "Saves")
"""Titles of columns of numbers."""
WAITING = "Looking for what would fit; this takes some seconds."


def plan(fit: Fit, machine: Machine, progress: Progress | None, trust: str = "") -> str:
    """Draw what a plan holds at its greatest moment on a card, and say whether it fits. `trust` says how far
    the estimate was right for this model on this card, if that was measured.
    """
    assert machine.card
    card, ledger = machine.card, fit.ledger
    parts: dict[str, float] = {**ledger.sums(ledger.peak_phase)}
    if (others := card.total_bytes - card.free_bytes) > 0.01 * card.total_bytes:
        parts["others"] = others
    free = card.total_bytes - sum(parts.values())
    squares = pictures.squares(parts, card.total_bytes) + pictures.legend(parts, free)
    return (
        _verdict(fit)
        + tag("div", squares, "vram")
        + tag("p", f"One square is 1 GB. {_certainty(ledger, progress, trust)}", "quiet")
        + _phases(ledger, card.total_bytes)
    )


def _verdict(fit: Fit) -> str:
    peak = fit.ledger.held(fit.ledger.peak_phase)
    phase = PHASE_WORDS[fit.ledger.peak_phase]
    needs = f"{phase} needs the most: {words.gigabytes(peak)}"
    if fit.room is None:
        return tag("p", f"{needs}.", "found")
    room = f"{words.gigabytes(fit.room)} may be used, and the rest stays free, for the sum is not exact."
    if fit.fits is None:
        known = f"What is known takes {words.gigabytes(peak)}; the working memory of a step comes on top."
        return _light("Not known yet", "idle", f"{known} {room}")
    if fit.fits:
        return _light("Fits", "good", f"{needs}. {room}")
    return _light("Does not fit", "bad", f"{needs}, with all saved that may be saved automatically. {room}")


def _light(state: str, look: str, sentence: str) -> str:
    return tag("p", tag("span", state, f"light {look}") + words.safe(sentence), "found")


def _certainty(ledger: Ledger, progress: Progress | None, trust: str) -> str:
    """Say how far the squares can be trusted."""
    if not ledger.unknown:
        found = "The working memory of a step (activations) was found by running the real step without a card"
        return f"{found}. {trust}" if trust else f"{found}; until it is measured, the sum may be 15 % off."
    phases = " and ".join(PHASE_WORDS[phase].lower() for phase in ledger.unknown)
    missing = (
        f"The working memory of {phases} (activations) is not known yet for this model and method, and is "
        "left out; it grows with the size of the pictures and with the batch."
    )
    return f"{missing} {_tracing(progress)}"


def _tracing(progress: Progress | None) -> str:
    if progress is None:
        return ""
    if progress.has_failed:
        return "It could not be found out for this model; log.txt in the workspace says why."
    done = f" {progress.done} of {progress.total} passes are done." if progress.done else ""
    return f"It is being found out in the background: a minute or two, once for a model and method.{done}"


def _phases(ledger: Ledger, total: int) -> str:
    rows = [
        tag(
            "tr",
            tag("th", PHASE_WORDS[phase], scope="row")
            + tag("td", pictures.stack(ledger.sums(phase), total), "wide")
            + tag("td", words.size(ledger.held(phase)), "number"),
        )
        for phase in PHASES
    ]
    return tag("h3", "By phase") + _table(("Phase", "", "On the card"), rows, "phases")


def computer(fit: Fit) -> str:
    """Show what a plan needs of main memory and disk."""
    places = {"memory": "main memory", "disk": "disk"}
    rows = [
        tag(
            "tr",
            tag("th", words.safe(need.what.capitalize()), scope="row")
            + tag("td", places[need.where])
            + tag("td", words.size(need.bytes), "number"),
        )
        for need in storage.needs(fit.plan, fit.ledger)
    ]
    return tag("h3", "Of this computer") + _table(("For", "Where", "Size"), rows)


def changes(found: Sequence[Change] | None) -> str:
    """Show what would help a plan that does not fit, each with a button; None: they are being looked for."""
    head = tag("h3", "What would make it fit")
    if found is None:
        return head + tag("p", WAITING, "quiet")
    if not found:
        return head + tag("p", "No single setting would save memory. Try a smaller model or a larger card.")
    rows = [_change(number, change) for number, change in enumerate(found)]
    return head + _table(("Setting", "Change to", "Saves", "Enough", ""), rows, "changes")


def _change(number: int, change: Change) -> str:
    title, chosen = title_of(change.path), value_of(change.path, change.value)
    button = tag(
        "button",
        "Use it",
        "small",
        type="button",
        data_act="use",
        data_number=number,
        data_setting=change.path,
        aria_label=f"Use {title} {chosen}",
    )
    enough = tag("span", "yes", "light good") if change.fits else "not alone"
    return tag(
        "tr",
        tag("th", words.safe(title), scope="row")
        + tag("td", words.safe(chosen))
        + tag("td", words.gigabytes(change.bytes), "number")
        + tag("td", enough)
        + tag("td", button),
    )


def choices(plan: Plan | None) -> str:
    """Show what was decided automatically, and why."""
    if plan is None or not plan.choices:
        return ""
    rows = [
        tag(
            "tr",
            tag("th", words.safe(title_of(choice.path)), scope="row")
            + tag("td", words.safe(value_of(choice.path, choice.value)))
            + tag("td", words.safe(choice.why[:1].upper() + choice.why[1:])),
        )
        for choice in plan.choices
    ]
    return tag("h3", "Decided automatically") + _table(("Setting", "Chosen", "Because"), rows, "choices")


def classics(drawn: Sequence[Drawn] | None, title: str, card_gib: int) -> str:
    """Draw the usual ways to fine-tune a model, small; None: they are being counted."""
    head = tag("h3", f"The usual ways to fine-tune {words.safe(title)}")
    if drawn is None:
        return head + tag("p", "They are being counted; the pictures appear in a moment.", "quiet")
    about = (
        f"Batch 1 on a card of {card_gib} GB, of which a little must stay free. Nothing is saved beyond "
        "what each says. A step's working "
        "memory goes while the gradients come: only what both need beyond all gradients is drawn of it."
    )
    figures = "".join(_classic(one, card_gib) for one in drawn)
    return head + tag("p", about, "quiet") + tag("div", figures, "classics")


def _classic(one: Drawn, card_gib: int) -> str:
    sums = ", ".join(f"{pictures.PART_WORDS.get(k, k)} {v / GIB:.2f}" for k, v in one.sums.items())
    look, said = {
        True: ("good", f"fits {card_gib} GB"),
        False: ("bad", f"does not fit {card_gib} GB"),
        None: ("idle", "not all is known"),
    }[one.fits]
    total = tag("b", words.gigabytes(one.bytes)) + " " + tag("span", said, f"light {look}")
    return tag(
        "figure",
        tag("figcaption", tag("b", words.safe(one.classic.title)))
        + pictures.squares(one.sums, card_gib * GIB)
        + tag("p", total)
        + tag("p", words.safe(one.classic.says), "quiet")
        + tag("p", words.safe(sums), "quiet"),
        "drawn" if one.classic.is_drawn else "",
    )


def title_of(path: str) -> str:
    """Return a setting's title."""
    return "Method" if path == METHOD else knobs_by_path()[path].title


def value_of(path: str, value: Any) -> str:
    """Return a setting's value as the page names it."""
    if path == METHOD:
        return method_of(value).title
    unit = knobs_by_path()[path].unit
    has_unit = unit and isinstance(value, int | float) and value not in (0, 1)
    return f"{words.value(value)} {unit}" if has_unit else words.value(value)


def knobs_by_path() -> dict[str, Knob]:
    return {knob.path: knob for knob in knobs()}


def _table(titles: Sequence[str], rows: Sequence[str], class_: str = "") -> str:
    head = tag("tr", "".join(_head(title) for title in titles))
    return tag("table", head + "".join(rows), class_)


def _head(title: str) -> str:
    return tag("th", title, "number" if title in NUMBERS else "", scope="col") if title else tag("td", "")
