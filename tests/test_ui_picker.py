"""Choosing another method keeps what both have, and never leaves a form that cannot be trained."""

from __future__ import annotations

from itertools import permutations
from typing import Any
from xml.etree import ElementTree

import gradio as gr
import pytest
from conftest import Trainer

from sdtrainer import config as configs
from sdtrainer import planner, presets
from sdtrainer.config import Config
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.memory import estimate
from sdtrainer.methods import METHODS, method_of
from sdtrainer.presets import Preset
from sdtrainer.ui import destinations, figure, picker
from sdtrainer.ui.form import Form

SECTIONS = tuple(Config.model_fields)
STARTER = presets.preset("starter")


@pytest.fixture(scope="module")
def form() -> Form:
    form = Form()
    with gr.Blocks():
        form.place_kind()
        for level in ("basic", "advanced"):
            form.place_level(SECTIONS, level)
    return form


class Filled:
    """A form in a browser: components keep what they hold until something is sent to them."""

    def __init__(self, form: Form, values: dict[str, Any]) -> None:
        self.form, self.held = form, {part: part.value for part in form.components}
        self.fill(values)

    def fill(self, values: dict[str, Any]) -> None:
        sent = self.form.fill(values)
        self.held |= {part: sent[part] for part in self.form.components & sent.keys()}

    def switch(self, kind: str, preset: Preset | None = None) -> Config:
        values = self.form.read(self.held)
        offered = self.form.read_kind(self.held, kind)
        self.fill(picker.switched(values["method"], offered, values, preset))
        return configs.build(self.form.read(self.held))


@pytest.mark.parametrize(("first", "second"), permutations(METHODS, 2))
def test_every_method_can_be_chosen_after_every_other(form: Form, first: str, second: str) -> None:
    before = configs.build({"method": {"kind": first}, "export": {"formats": [*method_of(first).formats]}})
    after = Filled(form, before.values()).switch(second)
    assert after.method.kind == second
    assert set(after.export.formats) <= set(method_of(second).formats) and after.export.formats
    shared = type(before.method).model_fields.keys() & type(after.method).model_fields.keys() - {"kind"}
    for name in shared:
        kept, own = getattr(before.method, name), getattr(type(after.method)(), name)
        assert getattr(after.method, name) in (kept, own)


def test_what_both_methods_have_is_kept_and_the_rest_comes_back(form: Form) -> None:
    page = Filled(
        form, configs.build({"method": {"kind": "lora", "rank": 7, "targets": "attention"}}).values()
    )
    loha = page.switch("loha").method
    assert (loha.rank, loha.targets) == (7, "attention")
    page.switch("hypernetwork")
    lora = page.switch("lora").method
    assert (lora.rank, lora.targets) == (7, "attention")


def test_a_value_that_the_other_method_does_not_allow_is_left_behind(form: Form) -> None:
    page = Filled(form, configs.build({"method": {"kind": "lora", "rank": 1000}}).values())
    assert page.switch("loha").method.rank == method_of("loha").Section().rank


def test_a_learning_rate_is_not_carried_to_a_method_that_would_burn_at_it(form: Form) -> None:
    values = presets.apply(Config().values(), STARTER)
    assert values["optim"]["lr"] > 0
    page = Filled(form, values)
    assert page.switch("full", STARTER).optim.lr == 0
    assert page.switch("lora", STARTER).optim.lr == values["optim"]["lr"]


def test_a_preset_says_which_settings_of_another_method_it_drops() -> None:
    held = Config().values()["method"] | {"alpha": 3.0, "dropout": 0.2}
    assert "Alpha" in picker.dropped(held, "full") and "Rank" not in picker.dropped(held, "full")
    assert picker.dropped(held, "lora") == []


@pytest.mark.parametrize("kind", METHODS)
def test_a_card_says_what_a_method_is_good_for(kind: str) -> None:
    card, drawn = method_of(kind).card, picker.cards(kind, False, ())
    for text in (card.about, card.size, *card.pros, *card.cons, *card.uses):
        assert picker.words.safe(text) in drawn
    assert drawn.count('aria-pressed="true"') == 1


def test_dreambooth_takes_the_preset_that_fits_the_card() -> None:
    known = [Preset(f"dreambooth-{g}", "", "", "", {}, {"vram_gib": g}) for g in (24, 8, 16)]
    assert [picker.for_card(known, gib).promises["vram_gib"] for gib in (None, 6, 12, 80)] == [8, 8, 8, 24]  # type: ignore[union-attr]
    assert picker.for_card([STARTER], 8) is None


@pytest.mark.parametrize("kind", METHODS)
def test_the_picture_draws_every_block_once_and_lights_what_learns(trainer: Trainer, kind: str) -> None:
    config = configs.build(trainer.values | {"method": {"kind": kind}, "export": {}})
    plan = planner.draft(config, trainer.workspace, CPU_ONLY).plan
    ledger = estimate(plan)
    drawn = ElementTree.fromstring(f"<div>{figure.model(ledger.blocks, ledger.trained)}</div>")
    rects = [rect for rect in drawn.iter("rect") if rect.find("title") is not None]
    shown = [b for b in ledger.blocks if b.kind != "others"]
    assert len(rects) == len(shown) > 10
    looks = [rect.get("class") for rect in rects]
    for name in {b.kind for b in shown}:
        assert looks.count(f"lit-{name}") == sum(b.kind == name and b.trained > 0 for b in shown)
    assert any(look != "unlit" for look in looks)


@pytest.mark.parametrize("kind", METHODS)
def test_the_page_says_who_reads_each_file_by_its_own_name(kind: str) -> None:
    config = configs.build({"method": {"kind": kind}, "run": {"name": "zib"}})
    every = config.model_copy(
        update={"export": config.export.model_copy(update={"formats": list(method_of(kind).formats)})}
    )
    said = destinations.table(every, "sd")
    for program in ("A1111 / Forge", "ComfyUI", "diffusers"):
        assert said.count(program) >= len(method_of(kind).formats)
    assert ":name" not in said and "&quot;name" not in said
