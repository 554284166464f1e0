"""Common claims on methods, each decided from the numbers and their spread. Pure.

Two contestants are told apart where their means differ by more than their spreads together: with three
seeds each, chance alone does that once in twelve times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from .numbers import COLUMNS, Numbers, Summary

Decision = Literal["confirmed", "contradicted", "not separable", "not measured"]
Summaries = Mapping[str, Summary]

NEARLY = 0.9
"""The part of full fine-tuning's gain that is nearly as good."""
CARRIED = 0.5
"""A file carries over if the robot is seen at least so often on the second base as on its own."""
LIGHT = ("lora", "loha", "lokr", "textual_inversion", "hypernetwork")
"""What DreamBooth is compared with: the methods with a small file."""

_WRITTEN = {column.name: column.written for column in COLUMNS}
_TITLES = {column.name: column.title for column in COLUMNS}


@dataclass(frozen=True)
class Finding:
    """One comparison that a claim rests on, and its numbers in words."""

    decision: Decision
    words: str


@dataclass(frozen=True)
class Claim:
    """`needs` are the contestants without which nothing can be said; `findings` must all hold."""

    text: str
    needs: tuple[str, ...]
    findings: Callable[[Summaries], list[Finding]]


@dataclass(frozen=True)
class Decided:
    text: str
    decision: Decision
    findings: tuple[Finding, ...]


def decide(summaries: Summaries) -> tuple[Decided, ...]:
    """Decide every claim from the contestants' numbers."""
    return tuple(decide_one(claim, summaries) for claim in CLAIMS)


def decide_one(claim: Claim, summaries: Summaries) -> Decided:
    """A claim is confirmed if all its findings are, and contradicted if one is."""
    missing = [name for name in claim.needs if not (name in summaries and summaries[name].numbers)]
    if missing:
        return Decided(
            claim.text, "not measured", (Finding("not measured", f"without {', '.join(missing)}"),)
        )
    findings = tuple(claim.findings(summaries))
    decisions = {finding.decision for finding in findings}
    worst: tuple[Decision, ...] = ("contradicted", "not separable", "confirmed")
    return Decided(claim.text, next(word for word in worst if word in decisions), findings)


def compare(smaller: Numbers, larger: Numbers) -> Decision:
    """Decide whether one number is smaller than another, given how both vary between seeds."""
    gap = larger.mean - smaller.mean
    noise = smaller.spread + larger.spread
    if math.isnan(noise) or abs(gap) <= noise:
        return "not separable"
    return "confirmed" if gap > 0 else "contradicted"


def _less(one: Summary, other: Summary, column: str) -> Finding:
    """That `one` has less of a column than `other`."""
    return _found(compare(one[column], other[column]), column, one, other)


def _more(one: Summary, other: Summary, column: str) -> Finding:
    return _found(compare(other[column], one[column]), column, one, other)


def _found(decision: Decision, column: str, one: Summary, other: Summary) -> Finding:
    said = " against ".join(f"{s.title} {_said(s[column], column)}" for s in (one, other))
    return Finding(decision, f"{_TITLES[column]}: {said}")


def _said(numbers: Numbers, column: str) -> str:
    return _WRITTEN[column](numbers.mean)


def _mean_of(column: str) -> Callable[[Summary], float]:
    return lambda one: one[column].mean


def _learns_best_but_is_heavy(known: Summaries) -> list[Finding]:
    """Against the one of the light methods that comes nearest in each."""
    one = known["dreambooth"]
    others = [known[name] for name in LIGHT if name in known and known[name].numbers]
    return [
        _less(one, min(others, key=_mean_of("learnt_loss")), "learnt_loss"),
        _more(one, max(others, key=_mean_of("file")), "file"),
        _more(one, max(others, key=_mean_of("memory")), "memory"),
    ]


def _prior_keeps_more(known: Summaries) -> list[Finding]:
    pairs = (("dreambooth", "full"), ("lora_prior", "lora"))
    return [_less(known[one], known[other], "kept_loss") for one, other in pairs]


def _tiny_but_limited(known: Summaries) -> list[Finding]:
    """The file against the smallest of the other methods', what is learnt against LoRA."""
    one, lora = known["textual_inversion"], known["lora"]
    others = [s for name, s in known.items() if s.numbers and not name.startswith("textual_inversion")]
    smallest = min(others, key=_mean_of("file"))
    return [_less(one, smallest, "file"), _more(one, lora, "learnt_loss"), _less(one, lora, "learnt")]


def _nearly_as_good(known: Summaries) -> list[Finding]:
    lora, full = known["lora"]["learnt_loss"], known["full"]["learnt_loss"]
    wanted = full.mapped(lambda loss: 1 - NEARLY * (1 - loss))
    words = (
        f"{_TITLES['learnt_loss']}: LoRA {_said(lora, 'learnt_loss')}; {100 * NEARLY:.0f} % of full "
        f"fine-tuning's {_said(full, 'learnt_loss')} are {_said(wanted, 'learnt_loss')}"
    )
    return [Finding(compare(lora, wanted), words)]


def _initial_text_helps(known: Summaries) -> list[Finding]:
    return [_less(known["textual_inversion"], known["textual_inversion_random"], "learnt_loss")]


def _norm_helps(known: Summaries) -> list[Finding]:
    return [_less(known["textual_inversion"], known["textual_inversion_free"], "learnt_loss")]


def _carries_over(known: Summaries) -> list[Finding]:
    embedding, network = known["textual_inversion"], known["hypernetwork"]
    return [_carried(embedding, is_claimed=True), _carried(network, is_claimed=False)]


def _carried(one: Summary, is_claimed: bool) -> Finding:
    """Whether the robot is still seen on the second base, if it was learnt at all."""
    own, there = one["learnt"], one["transfer"]
    limit = own.mapped(lambda part: CARRIED * part)
    words = (
        f"{one.title}: the robot is named in {_said(own, 'learnt')} of its pictures, on the second base in "
        f"{_said(there, 'transfer')}"
    )
    if own.mean == 0:
        return Finding("not separable", f"{words}; what was not learnt cannot be carried over")
    return Finding(compare(limit, there) if is_claimed else compare(there, limit), words)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "DreamBooth learns best but is heavy",
        ("dreambooth", "lora", "textual_inversion"),
        _learns_best_but_is_heavy,
    ),
    Claim(
        "Prior preservation reduces forgetting",
        ("dreambooth", "full", "lora_prior", "lora"),
        _prior_keeps_more,
    ),
    Claim("Textual inversion is tiny but limited", ("textual_inversion", "lora"), _tiny_but_limited),
    Claim("LoRA is nearly as good as full fine-tuning", ("lora", "full"), _nearly_as_good),
    Claim(
        "A good initial text helps textual inversion",
        ("textual_inversion", "textual_inversion_random"),
        _initial_text_helps,
    ),
    Claim(
        "Norm regularisation helps textual inversion",
        ("textual_inversion", "textual_inversion_free"),
        _norm_helps,
    ),
    Claim(
        "Textual inversion carries over to another base model, a hypernetwork does not",
        ("textual_inversion", "hypernetwork"),
        _carries_over,
    ),
)
