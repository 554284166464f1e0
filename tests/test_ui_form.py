"""The form has every setting once, and a config goes through it unchanged."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from conftest import Trainer

from sdtrainer import config as configs
from sdtrainer import planner
from sdtrainer.config import Config, knobs
from sdtrainer.hardware import CPU_ONLY, Machine, imagined
from sdtrainer.section import UserError, override
from sdtrainer.ui import panel, words
from sdtrainer.ui.form import Form, help_of, merged, shape
from sdtrainer.ui.method import AUTOS

SECTIONS = tuple(Config.model_fields)


@pytest.fixture(scope="module")
def form() -> Form:
    form = Form()
    with gr.Blocks():
        form.place("data.folder")
        form.place_kind()
        form.place_level(SECTIONS, "basic")
        form.place_level(SECTIONS, "advanced")
    return form


def held(form: Form, values: dict[str, Any]) -> dict[Any, Any]:
    """What the components hold once the page has been filled."""
    filled = form.fill(values)
    return {component: filled.get(component, component.value) for component in form.components}


def test_every_setting_has_one_component_with_its_title_and_help(form: Form) -> None:
    assert len(form.fields) == len(knobs()) > 60
    for field in form.fields.values():
        assert field.widget.label.startswith(field.knob.title) and field.widget.info == help_of(field.knob)


def test_a_config_goes_through_the_form_unchanged(form: Form) -> None:
    config = configs.build(
        {
            "train": {"resolution": [512, 768], "steps": "10 epochs", "batch_size": 3},
            "method": {"kind": "lora", "own_targets": ["*attn2.to_k"], "alpha": 0.5},
            "sample": {"prompts": ["a robot", "an apple, red"]},
            "optim": {"lr": 5e-6},
            "export": {"formats": ["webui", "diffusers"]},
        }
    )
    assert configs.build(form.read(held(form, config.values()))) == config


def test_the_defaults_go_through_the_form_unchanged(form: Form) -> None:
    assert configs.build(form.read(held(form, Config().values()))) == Config()


@pytest.mark.parametrize(
    ("pasted", "meant"),
    [
        ('"C:\\my dog"', "C:\\my dog"),
        (" '/home/a/my dog'\n", "/home/a/my dog"),
        ("file:///home/a/my%20dog", "/home/a/my dog"),
        ("file:///C:/my%20dog", "C:/my dog"),
        ("/home/a/it's", "/home/a/it's"),
        ('"', '"'),
    ],
)
def test_a_pasted_path_is_read_as_file_managers_copy_it(form: Form, pasted: str, meant: str) -> None:
    values = held(form, Config().values())
    values[form.field("data.folder", "").widget] = pasted
    values[form.field("data.trigger", "").widget] = pasted
    read = form.read(values)["data"]
    assert (read["folder"], read["trigger"]) == (meant, pasted), "and words are left as they are"


def test_a_field_gets_its_value_and_its_note_together(form: Form) -> None:
    lr = form.field("optim.lr", "lora")
    assert lr
    filled = form.fill(override(Config().values(), {"optim.lr": 0.5}))
    noted = form.explain({"optim.lr": "Now auto: 0.0001."}, ["optim.lr"], "lora")
    both = merged(filled, noted)
    assert both[lr.widget]["value"] == 0.5 and both[lr.widget]["info"].endswith("Now auto: 0.0001.")
    assert merged(both, filled)[lr.widget] == both[lr.widget]  # filled twice, as a page that is opened is
    assert form.explain({}, ["optim.lr"], "lora")[lr.widget]["info"] == lr.knob.help


@pytest.mark.parametrize("machine", [CPU_ONLY, imagined(8), imagined(24)])
def test_whatever_the_plan_decides_is_said_at_its_field(trainer: Trainer, machine: Machine) -> None:
    undecided = {"optim__lr": 0, "train__resolution": 0}
    plan = planner.draft(trainer.config(**undecided), trainer.workspace, machine).plan
    assert {"optim.lr", "train.resolution"} <= {choice.path for choice in plan.choices} <= set(AUTOS)
    assert f"auto: {words.number(plan.lrs.denoiser)}" in panel._rates(plan)


def test_a_wrong_field_is_marked_with_the_sentence_and_unmarked_again(form: Form) -> None:
    values = held(form, Config().values())
    rank = form.field("method.rank", "lora")
    assert rank
    values[rank.widget] = 0
    with pytest.raises(UserError) as caught:
        configs.build(form.read(values))
    marks = form.mark(caught.value.path, str(caught.value), "lora", "")
    assert "wrong" in marks[rank.widget]["elem_classes"] and "Rank" in marks[rank.widget]["info"]
    assert form.mark("", "", "lora", "method.rank")[rank.widget]["info"] == rank.knob.help


@pytest.mark.parametrize("text", ["", "abc", "512, x", "-5"])
def test_a_resolution_that_is_no_number_is_refused_by_name(form: Form, text: str) -> None:
    values = held(form, Config().values())
    field = form.field("train.resolution", "lora")
    assert field and shape(field.knob) == "sizes"
    values[field.widget] = text
    with pytest.raises(UserError) as caught:
        configs.build(form.read(values))
    assert caught.value.path == "train.resolution"


def test_an_empty_number_is_refused_by_name(form: Form) -> None:
    values = held(form, Config().values())
    field = form.field("train.batch_size", "lora")
    assert field
    values[field.widget] = None
    with pytest.raises(UserError) as caught:
        configs.build(form.read(values))
    assert caught.value.path == "train.batch_size"
