"""Settling what the base model predicts, where its file does not say so: the model itself is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from .. import diffusion, probe
from ..events import Event, Said
from ..plan import Plan
from ..seams import Family, Parts


def settled(
    plan: Plan,
    family: Family,
    parts: Parts,
    autocast: torch.dtype | None,
    bring: Callable[[Sequence[str]], None],
) -> tuple[Plan, Iterator[Event]]:
    """Ask the model; return the plan with facts that are decided, which the parts are given too, and what to
    say of it.

    Raises:
        UserError: a setting of the noise does not go with what the model predicts.
    """
    likely = plan.facts.prediction_type
    answer = probe.ask(family, parts, plan.device, autocast, bring)
    facts = answer.of(plan.facts)
    diffusion.check(plan.config.noise, facts.prediction_type)
    parts.facts = facts
    return replace(plan, facts=facts), _said(answer, likely)


def _said(answer: probe.Answer, likely: diffusion.PredictionType) -> Iterator[Event]:
    begin = "The base model's file does not say what it predicts."
    if answer.type is None:
        yield Said(
            "warning",
            f"{begin} It was asked, but {answer.why}; {likely} is taken, as such models usually predict. If "
            "pictures turn to mud, set Prediction type.",
        )
        return
    yield Said("info", f"{begin} The model was asked: {answer.why}, so it predicts {answer.type}.")
    if answer.type != likely:
        yield Said(
            "warning",
            f"The plan was made for a model that predicts {likely}. If this one was made for another size, "
            "set Resolution.",
        )
