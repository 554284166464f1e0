"""Answers and edits cross on their way: what a person typed is kept, and nothing else is taken for it."""

from __future__ import annotations

from typing import Any

from sdtrainer.section import override
from sdtrainer.ui.held import KEPT, Held
from sdtrainer.ui.project import Project
from sdtrainer.ui.remembered import Remembered
from sdtrainer.workspace import Workspace

LORA = {"method": {"kind": "lora", "rank": 16}, "train": {"steps": "100", "batch_size": 1}}
LOHA = {"method": {"kind": "loha", "rank": 8}, "train": {"steps": "100", "batch_size": 1}}


def with_(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return override(values, {path.replace("__", "."): value for path, value in changes.items()})


def test_only_what_a_person_changed_is_taken() -> None:
    held = Held()
    number, sent = held.fill("page", LORA)
    assert sent == {"method.kind", "method.rank", "train.steps", "train.batch_size"}
    assert held.take("page", number, LORA) == {}
    typed = with_(LORA, train__steps="200")
    assert held.take("page", number, typed) == {"train.steps": "200"}
    assert held.take("page", number, typed) == {}
    assert held.take("page", number, LORA) == {"train.steps": "100"}


def test_a_form_that_has_not_heard_of_a_change_does_not_undo_it() -> None:
    held = Held()
    old, _ = held.fill("page", LORA)
    held.fill("page", LOHA)  # on its way
    assert held.take("page", old, LORA) == {} and held.is_behind("page", old)
    assert held.take("page", old, with_(LORA, train__steps="7")) == {"train.steps": "7"}


def test_a_filling_sends_only_what_the_page_does_not_hold() -> None:
    held = Held()
    number, _ = held.fill("page", LORA)
    held.take("page", number, with_(LORA, train__steps="200"))
    number, sent = held.fill("page", with_(LORA, train__steps="200", train__batch_size=2))
    assert sent == {"train.batch_size"} and not held.is_behind("page", number)
    assert held.fill("page", LOHA)[1] == {"method.kind", "method.rank", "train.batch_size", "train.steps"}
    assert held.fill("another page", LOHA)[1] >= {"train.steps"}


def test_another_methods_fields_are_sent_even_if_they_are_named_and_set_alike() -> None:
    held = Held()
    held.fill("page", LORA)
    assert held.fill("page", with_(LOHA, method__rank=16))[1] == {"method.kind", "method.rank"}


def test_of_a_page_from_before_a_restart_everything_counts() -> None:
    held = Held()
    assert held.take("page", 3, LORA) == {"train.steps": "100", "train.batch_size": 1} | {
        "method.kind": "lora",
        "method.rank": 16,
    }
    assert not held.is_behind("page", 3)


def test_pages_that_are_long_gone_are_forgotten() -> None:
    held, remembered = Held(), Remembered("")
    for number in range(KEPT + 10):
        held.fill(f"page {number}", LORA)
        remembered[f"page {number}"] = "run"
    assert held.fill("page 0", LORA) == (1, {"method.kind", "method.rank", "train.steps", "train.batch_size"})
    assert remembered["page 0"] == "" and remembered[f"page {KEPT}"] == "run"


def test_changes_made_in_another_methods_form_leave_the_method_alone(workspace: Workspace) -> None:
    project = Project(workspace)
    project.change(with_(project.values, method__kind="loha"), "page")
    assert project.lay({"method.rank": 99, "train.steps": "7"}, "lora", "page")
    assert project.values["method"] == {"kind": "loha"} and project.values["train"]["steps"] == "7"
    assert project.lay({"method.rank": 99}, "loha", "page") and project.values["method"]["rank"] == 99
    assert not project.lay({"method.rank": 5}, "lora", "page")
    assert project.lay({"method.kind": "lora", "method.rank": 5}, "lora", "page")
    assert project.values["method"] == {"kind": "lora", "rank": 5}
