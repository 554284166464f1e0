"""The plan at the side: what will happen, in one sentence, what to mind, and the Train button."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..methods import method_of
from ..plan import Plan, output_names
from ..seams import DENOISER
from ..section import UserError
from . import words
from .outlook import Outlook, Reading
from .words import tag

if TYPE_CHECKING:
    from ..fitting import Fit

CLICKS = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('click', {...button.dataset});
});"""
"""Lets an HTML component report which of its buttons was clicked."""


@dataclass(frozen=True)
class Costs:
    """What a run will cost, as far as it is known."""

    peak_bytes: int | None = None
    misses_activations: bool = False
    file_bytes: int | None = None
    seconds: float | None = None


class Panel:
    """Always visible."""

    def build(self) -> None:
        with gr.Column(scale=1, min_width=300, elem_id="plan") as self.column:
            self.plan = gr.HTML(
                tag("h2", "Plan") + tag("p", "Looking at the settings.", "quiet"), elem_id="plan-text"
            )
            self.advice = gr.HTML(js_on_load=CLICKS, elem_id="plan-advice")
            self.train = gr.Button("Train", variant="primary", interactive=False, elem_id="train")
            self.why_not = gr.HTML(elem_id="why-not")

    @property
    def shows(self) -> list[Any]:
        return [self.plan, self.advice, self.train, self.why_not]

    def show(self, outlook: Outlook, costs: Costs, is_busy: bool) -> dict[Any, Any]:
        """Show the plan; `is_busy`: a run is going on, so this one would wait."""
        label = "Add to the queue" if is_busy else "Train"
        error = outlook.error
        return {
            self.plan: _plan(outlook, costs),
            self.advice: _advice(outlook),
            self.train: gr.update(value=label, interactive=error is None),
            self.why_not: _why_not(error) if error else "",
        }


def _why_not(error: UserError) -> str:
    """Say what stands in the way; pictures that are still being read are no fault."""
    looks = "quiet" if isinstance(error, Reading) else "bad"
    return tag("p", f"{words.safe(error.what)} {words.safe(error.hint)}", looks)


def _plan(outlook: Outlook, costs: Costs) -> str:
    plan = outlook.plan
    if plan is None:
        return tag("h2", "Plan") + tag("p", "No plan yet.", "quiet")
    showings = plan.images_per_epoch / max(1, plan.num_images)
    rows = [
        (
            "Images",
            f"{words.count(plan.num_images, 'image')}"
            + (f" x {showings:.3g} repeats" if showings != 1 else ""),
        ),
        ("Length", f"{words.count(plan.total_steps, 'step')}, {_epochs(plan.epochs)}"),
        ("Size", ", ".join(f"{r}" for r in plan.resolutions) + f" px, {plan.batch_size} per step"),
        ("Model", plan.facts.title),
        ("Method", method_of(plan.config.method.kind).title),
        ("Learning rate", _rates(plan)),
        ("Computes in", f"{plan.precision} on {_place(plan.device)}"),
    ]
    if costs.seconds is not None:
        rows.append(("Takes", f"about {words.duration(costs.seconds)}, as the last run like it"))
    if costs.peak_bytes is not None:
        more = " and activations" if costs.misses_activations else ""
        rows.append(("Memory", words.size(costs.peak_bytes) + more))
    size = f", {words.size(costs.file_bytes)}" if costs.file_bytes else ""
    rows.append(("Makes", ", ".join(output_names(plan)) + size))
    body = "".join(tag("dt", words.safe(k)) + tag("dd", words.safe(v)) for k, v in rows)
    return tag("h2", "Plan") + tag("dl", body)


def _epochs(number: float) -> str:
    shown = f"{number:.3g}"
    return f"{shown} epoch{'' if shown == '1' else 's'}"


def _rates(plan: Plan) -> str:
    """Say at which rates the trained parts learn, and which were chosen automatically."""
    parts = plan.trained_parts
    rates = [("", plan.lrs.denoiser, plan.config.optim.lr)] if DENOISER in parts else []
    if any(part in plan.facts.encoders for part in parts):
        own = plan.config.optim.text_encoder_lr or plan.config.optim.lr
        rates.append(("text encoder " if rates else "", plan.lrs.text_encoder, own))
    return ", ".join(f"{name}{'' if given else 'auto: '}{words.number(rate)}" for name, rate, given in rates)


def _place(device: str) -> str:
    return {"cuda": "the graphics card", "mps": "the Apple GPU", "cpu": "the processor"}[device]


def _advice(outlook: Outlook) -> str:
    if outlook.plan is None:
        return ""
    rows = [_misfit(outlook.fit)] if outlook.fit and outlook.fit.fits is False else []
    for number, advice in enumerate(outlook.plan.advice):
        fix = (
            tag("button", "Fix", "small", type="button", data_act="fix", data_number=number)
            if advice.fix
            else ""
        )
        rows.append(tag("span", words.safe(advice.text)) + fix)
    return tag("ul", words.items(rows), "advice") if rows else ""


def _misfit(fit: Fit) -> str:
    """Say that the plan does not fit this machine's card."""
    assert fit.room
    peak = words.gigabytes(fit.ledger.held(fit.ledger.peak_phase))
    said = f"This does not fit your card: it needs {peak}, and {words.gigabytes(fit.room)} may be used."
    more = "The tab VRAM lists what would make it fit."
    show = tag("button", "Show", "small", type="button", data_act="vram", aria_label="Show the tab VRAM")
    return tag("span", f"{said} {more}") + show
