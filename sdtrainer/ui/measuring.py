"""Two buttons of the VRAM tab: measure the plan on this machine's card, and compare settings on it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import gradio as gr

from ..bench import child, measured, settings
from ..bench.child import Hand
from ..plan import Plan
from ..section import UserError
from . import costs, words
from .desk import Desk
from .errand import Doing, Tell
from .listen import Given
from .outlook import Outlook
from .words import tag

Kind = Literal["measure", "compare"]
ABOUT_MEASURE = (
    "The estimate is made without your card. This loads the base model and takes a training step with your "
    "settings at your largest pictures. Nothing is learnt, and no run is made."
)
ABOUT_COMPARE = (
    "Trains your own settings for a moment, then each setting changed alone: precision, resolution, gradient "
    f"checkpointing, optimizer, caching. Every run sees {settings.IMAGES} images. "
    "Stop it whenever you like: what was found stays."
)


class Measuring:
    """Both need the card for themselves: never beside a run or each other; a run that starts ends them."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def build(self) -> None:
        self.measured = gr.HTML(elem_id="measured")
        with gr.Row(elem_classes="controls"):
            self.measure = gr.Button("Measure", size="sm", elem_id="measure")
            self.stop_measure = gr.Button("Stop", size="sm", interactive=False, elem_id="stop-measure")
        self.compared = gr.HTML(elem_id="compared")
        with gr.Row(elem_classes="controls"):
            self.compare = gr.Button(
                "Compare settings on this machine", size="sm", elem_id="compare-settings"
            )
            self.stop_compare = gr.Button("Stop", size="sm", interactive=False, elem_id="stop-compare")

    @property
    def shows(self) -> list[Any]:
        buttons = [self.measure, self.stop_measure, self.compare, self.stop_compare]
        return [self.measured, self.compared, *buttons]

    def show(self, outlook: Outlook) -> dict[Any, Any]:
        return {
            self.measured: self._measured(outlook),
            self.compared: self._compared(outlook),
            **self._buttons("measure", self.measure, self.stop_measure),
            **self._buttons("compare", self.compare, self.stop_compare),
        }

    def wire(self) -> None:
        on, shown = self.desk.on, self.shows
        on(self.measure.click, lambda g: self._begin("measure"), (), shown, trigger_mode="once")
        on(self.compare.click, lambda g: self._begin("compare"), (), shown, trigger_mode="once")
        on([self.stop_measure.click, self.stop_compare.click], self._stop, (), shown, trigger_mode="once")

    def trust(self, outlook: Outlook) -> str:
        """Say how far the estimate was right for this model on this machine's card; empty if not known."""
        if outlook.plan is None:
            return ""
        return measured.trust(measured.load(outlook.plan, self.desk.machine, self.desk.workspace))

    def _buttons(self, kind: Kind, start: Any, stop: Any) -> dict[Any, Any]:
        doing = self._doing(kind)
        is_free = self.desk.errands.has_card is None
        can_stop = doing is not None and not doing.is_stopping
        return {start: gr.update(interactive=is_free), stop: gr.update(interactive=can_stop)}

    def _doing(self, kind: Kind) -> Doing | None:
        return self.desk.errands.doing.get(kind)

    def _measured(self, outlook: Outlook) -> str:
        title, doing = tag("h3", "Measured on this machine"), self._doing("measure")
        if doing:
            said = "Stopping" if doing.is_stopping else doing.progress or "Starting"
            return title + tag("p", f"{words.safe(said)} …", "found")
        ended, plan = costs.ended(self.desk.errands.ended.get("measure", "")), outlook.plan
        if plan is None:
            return title + ended + tag("p", "There is no plan yet.", "quiet")
        kept = measured.load(plan, self.desk.machine, self.desk.workspace)
        one, ledger = kept.of(plan), outlook.fit.ledger if outlook.fit else None
        if one is None:
            trust = tag("p", words.safe(measured.trust(kept)))
            return title + ended + tag("p", ABOUT_MEASURE, "quiet") + (trust if kept.errors else "")
        lines = measured.lines(one.measured, ledger) if ledger else one.lines
        return title + ended + costs.measurement(one, lines, kept.card)

    def _compared(self, outlook: Outlook) -> str:
        title, doing = tag("h3", "Settings compared on this machine"), self._doing("compare")
        if doing:
            said = costs.progress(doing.progress, doing.is_stopping)
            found = costs.table(doing.progress.found) if doing.progress else ""
            return title + said + found
        ended = costs.ended(self.desk.errands.ended.get("compare", ""))
        found = settings.load(outlook.plan.config, self.desk.workspace) if outlook.plan else None
        about = tag("p", ABOUT_COMPARE, "quiet")
        return title + ended + (costs.comparison(found) if found and found.rows else about)

    def _begin(self, kind: Kind) -> dict[Any, Any]:
        plan = self._plan()
        work = self._measure if kind == "measure" else self._compare
        self.desk.errands.begin(kind, partial(work, plan), needs_card=True)
        return self.show(self.desk.look())

    def _stop(self, given: Given) -> dict[Any, Any]:
        for kind in ("measure", "compare"):
            self.desk.errands.stop(kind)
        return self.show(self.desk.look())

    def _plan(self) -> Plan:
        """Return what would be trained. Raises UserError where nothing can be, or a run has the card."""
        jobs = self.desk.jobs.state()
        if jobs.current or jobs.waiting:
            raise UserError(
                f"'{jobs.current or jobs.waiting[0]}' is being trained and has the card.",
                "Measure when it is done, or stop it first.",
            )
        outlook = self.desk.look()
        if outlook.error:
            raise outlook.error
        if outlook.plan is None or outlook.fit is None:
            raise UserError("The model is still being counted.", "Try again in a moment.")
        return outlook.plan

    def _measure(self, plan: Plan, hand: Hand, tell: Tell) -> None:
        from .. import memory

        hand.hear, machine = tell, self.desk.machine
        found = child.dry(plan, hand)
        measured.keep(plan, machine, self.desk.workspace, found, memory.estimate(plan))

    def _compare(self, plan: Plan, hand: Hand, tell: Tell) -> None:
        run = partial(child.setting, hand=hand, timeout=child.LONG)
        for progress in settings.compare(plan, self.desk.machine, self.desk.workspace, run=run):
            tell(progress)
