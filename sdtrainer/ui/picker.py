"""The choice of method as cards, and what becomes of the settings when another one is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..families import ASSETS
from ..methods import METHODS, method_of
from ..presets import Preset
from ..seams import Card, Facts
from . import words
from .words import tag

DREAMBOOTH = "dreambooth"
_DREAMBOOTH = Card(
    about="Teaches one subject while showing the model class images, other things of the same kind, so that "
    "it learns yours without forgetting the rest. It is a way of training, with full fine-tuning or with a "
    "small file such as a LoRA.",
    pros=("the highest likeness", "other things of its kind stay as they were"),
    cons=("class images take time to draw", "each step shows twice as many pictures"),
    uses=("a certain person, pet or object",),
    size="that of its method",
)

KEEP_FOCUS = """
let last = null;
element.addEventListener('focusin', event => { last = event.target.closest('[data-act]'); });
watch('value', () => {
  if (!last || document.activeElement !== document.body) return;
  const same = button => JSON.stringify(button.dataset) === JSON.stringify(last.dataset);
  [...element.querySelectorAll('[data-act]')].find(same)?.focus();
});"""
"""Gives the keyboard back its place after the buttons were drawn anew."""


def cards(chosen: str, has_class_images: bool, known: Sequence[Preset]) -> str:
    """Draw a card for each method; DreamBooth's is one of them where there is a preset for it."""
    drawn = [_card(method_of(kind).title, method_of(kind).card, kind == chosen, kind) for kind in METHODS]
    if any(DREAMBOOTH in preset.name for preset in known):
        drawn.append(_card("DreamBooth", _DREAMBOOTH, has_class_images, DREAMBOOTH))
    return tag("div", "".join(drawn), "cards", role="group", aria_label="Method")


def switched(
    held: Mapping[str, Any], offered: Mapping[str, Any], values: Mapping[str, Any], preset: Preset | None
) -> dict[str, Any]:
    """Return the settings with another method chosen.

    `offered` are the new method's settings with its kind, `held` the old one's, and `values` all settings.
    What both methods have is kept where the new one allows it; a learning rate is kept where the same rates
    suit both, and formats where the new method writes them.
    """
    old, new = method_of(held["kind"]), method_of(offered["kind"])
    section = {
        name: held[name] if _allows(new.Section, name, held) else value for name, value in offered.items()
    }
    optim, export = dict(values.get("optim", {})), dict(values.get("export", {}))
    if old.lrs != new.lrs:
        own = preset.values.get("optim", {}) if preset and _is_for(preset, new.kind) else {}
        optim |= {name: own.get(name, 0.0) for name in ("lr", "text_encoder_lr")}
    export["formats"] = [f for f in export.get("formats", ()) if f in new.formats] or [new.formats[0]]
    return {**values, "method": section | {"kind": new.kind}, "optim": optim, "export": export}


def dropped(held: Mapping[str, Any], kind: str) -> list[str]:
    """Return the titles of a method's changed settings that another method does not have."""
    if held.get("kind") == kind:
        return []
    there = method_of(kind).Section.model_fields
    return [
        str(field.title)
        for name, field in method_of(held["kind"]).Section.model_fields.items()
        if name not in there and held.get(name) != field.get_default(call_default_factory=True)
    ]


def for_card(known: Sequence[Preset], card_gib: float | None) -> Preset | None:
    """Return the DreamBooth preset that uses most of a card of this size, else the smallest."""
    found = sorted(
        (p for p in known if DREAMBOOTH in p.name), key=lambda preset: preset.promises.get("vram_gib", 0)
    )
    fitting = [p for p in found if card_gib is not None and p.promises.get("vram_gib", 0) <= card_gib]
    return (fitting[-1:] or found[:1] or [None])[0]


def misfit(preset: Preset | None, facts: Facts | None, known: Sequence[Preset]) -> str:
    """Say that a preset is made for another base model than this one, and which to take; '' if it is not."""
    if preset is None or facts is None or facts.path == str(ASSETS / "starter-model"):
        return ""
    if preset.family == facts.family:
        return ""
    fitting = next((p.title.partition(":")[0] for p in known if p.family == facts.family), "")
    better = f" Choose one that begins with '{fitting}:'." if fitting else ""
    return f"This preset's learning rate and sizes are not made for {facts.title}.{better}"


def _is_for(preset: Preset, kind: str) -> bool:
    return preset.values.get("method", {}).get("kind", METHODS[0]) == kind


def _allows(section: type, name: str, held: Mapping[str, Any]) -> bool:
    if name == "kind" or name not in held:
        return False
    try:
        section(**{name: held[name]})
    except ValidationError:
        return False
    return True


def _card(title: str, card: Card, is_chosen: bool, kind: str) -> str:
    lists = (("For", card.uses), ("Good", card.pros), ("Mind", card.cons))
    rows = "".join(tag("dt", name) + tag("dd", words.safe(", ".join(texts))) for name, texts in lists)
    inner = (
        tag("b", words.safe(title))
        + tag("span", words.safe(card.about), "about")
        + tag("dl", rows + tag("dt", "File") + tag("dd", words.safe(card.size)))
    )
    return tag(
        "button",
        inner,
        "card chosen" if is_chosen else "card",
        type="button",
        data_act="kind",
        data_kind=kind,
        aria_pressed=str(is_chosen).lower(),
    )
