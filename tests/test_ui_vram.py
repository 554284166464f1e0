"""The VRAM tab: any card, the verdict, what would help, and finding out what is not known."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import sd15
from conftest import Trainer

from sdtrainer import activations, hardware
from sdtrainer.hardware import GIB, imagined
from sdtrainer.section import UserError, override
from sdtrainer.ui import pictures, tracing
from sdtrainer.ui.access import Access
from sdtrainer.ui.answers import Answers
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.listen import Given
from sdtrainer.ui.panel import Costs, Panel
from sdtrainer.ui.tracing import Task, Tracer
from sdtrainer.ui.vram import AS_SET, Vram

TABLE = '{"about": "", "terms": [], "saved": [], "moments": [[0]]}'


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stable Diffusion 1.5, without weights."""
    return str(sd15.write(tmp_path_factory.mktemp("models") / "sd15"))


@pytest.fixture
def desk(trainer: Trainer, published: str) -> Iterator[Desk]:
    desk = Desk(trainer.workspace, Access(trainer.workspace))
    desk.is_warm, desk.machine = True, imagined(12)
    full = {"kind": "full", "train_text_encoder": True}
    own = {"base.path": published, "method": full, "optim.name": "adamw", "train.resolution": 512}
    desk.project.change(override(trainer.values, own), "test")
    yield desk
    desk.close()


@pytest.fixture
def vram(desk: Desk) -> Vram:
    with gr.Blocks():
        vram = Vram(desk)
        vram.build()
    vram.open(given(vram))
    return vram


def until(found: Callable[[], Any]) -> Any:
    """Wait for what is done in the background."""
    deadline = time.monotonic() + 60
    while not (answer := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def given(vram: Vram, card: Any = None, clicked: dict[str, Any] | None = None, **tried: Any) -> Given:
    chosen = {widget: tried.get(path.split(".")[1], AS_SET) for path, widget in vram.what_if.items()}
    return Given({vram.card: card, **chosen}, "owner", "page", clicked or {})


def shown(vram: Vram, card: Any = None, **tried: Any) -> dict[Any, Any]:
    """What the tab shows when everything in the background is done."""

    def show() -> dict[Any, Any] | None:
        updates = vram.show(vram.desk.look(), given(vram, card, **tried))
        waits = any(word in str(updates) for word in ("being counted", "Looking for"))
        return None if waits else updates

    return until(show)


# -- the card ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gib"), [("11", 11), ("11 GB", 11), (" 7.5gb", 7.5), ("7,5", 7.5), ("16GiB", 16)]
)
def test_a_card_may_be_typed_in_any_usual_way(text: str, gib: float) -> None:
    assert hardware.gib_of(text) == gib


@pytest.mark.parametrize("text", ["much", "-4", "", "0", "9999", "8 MB", "nan", "1e2", "4 8"])
def test_nonsense_is_no_card(text: str) -> None:
    with pytest.raises(UserError, match="no size of a card in GB"):
        hardware.gib_of(text)


def test_nonsense_turns_the_field_red_and_stays_there(vram: Vram) -> None:
    wrong, right = shown(vram, "much"), shown(vram, "7.5")
    assert wrong[vram.card]["elem_classes"] == ["wrong"] and "Card is 'much'" in wrong[vram.card]["info"]
    assert right[vram.card]["elem_classes"] == [] and "7.1 GB may be used" in right[vram.picture]
    assert "value" not in wrong[vram.card] | right[vram.card], "what is typed is left alone"


# -- the verdict and what would help -------------------------------------------------------------------


def test_the_verdict_has_the_numbers(vram: Vram) -> None:
    small, large = shown(vram, 12), shown(vram, 24)
    assert "Does not fit" in small[vram.picture] and "11.4 GB may be used" in small[vram.picture]
    assert "Fits" in large[vram.picture] and large[vram.changes] == ""
    assert small[vram.picture].count('class="over"') > 0 == large[vram.picture].count('class="over"')


def test_a_change_that_helps_is_made_with_a_click(vram: Vram) -> None:
    drawn = shown(vram)
    assert "Optimizer" in drawn[vram.changes] and "Use it" in drawn[vram.changes]
    outlook = vram.desk.look()
    found = vram.desk.changes(outlook, vram.desk.machine)
    assert found
    number, change = next((i, c) for i, c in enumerate(found) if c.path == "optim.name")
    with pytest.raises(UserError, match="out of date"):
        vram._take(given(vram, clicked={"number": number, "setting": "train.steps"}))
    vram._take(given(vram, clicked={"number": number, "setting": change.path}))
    after = vram.desk.look()
    assert after.config and after.config.optim.name == change.value == "auto"
    assert after.fit and after.fit.fits is change.fits


def test_another_method_comes_with_its_own_settings(vram: Vram) -> None:
    shown(vram)
    found = vram.desk.changes(vram.desk.look(), vram.desk.machine) or ()
    number, change = next((i, c) for i, c in enumerate(found) if c.path == "method.kind")
    old_rate = vram.desk.project.values["optim"]["lr"]
    vram._take(given(vram, clicked={"number": number, "setting": change.path}))
    config = until(lambda: vram.desk.look().fit) and vram.desk.look().config
    assert config and config.method.kind == "lora" and not config.method.train_text_encoder
    assert config.optim.lr != old_rate, "the old method's rate would burn"


def test_what_is_tried_is_shown_and_not_kept_until_it_is_taken(vram: Vram) -> None:
    before = vram.desk.project.values
    mine, tried = (shown(vram, **v)[vram.picture] for v in ({}, {"name": "adamw8bit", "checkpointing": "on"}))
    assert "Does not fit" in mine and "Fits" in tried
    assert "not your settings" in tried and "not your settings" not in mine
    assert vram.desk.project.values == before
    assert set(vram._take_all(given(vram, resolution=256)).values()) == {AS_SET}
    assert vram.desk.project.values["train"]["resolution"] == 256


def test_the_panel_says_what_does_not_fit_and_lets_it_train(vram: Vram) -> None:
    with gr.Blocks():
        panel = Panel()
        panel.build()
    shown(vram)
    told = panel.show(vram.desk.look(), Costs(), False)
    assert "does not fit your card" in told[panel.advice] and 'data-act="vram"' in told[panel.advice]
    assert told[panel.train]["interactive"]


def test_memory_of_other_programs_is_not_free(vram: Vram) -> None:
    card = imagined(12).card
    assert card
    taken = hardware.Card(card.name, card.total_bytes, card.free_bytes - 4 * GIB, card.capability)
    vram.desk.machine = hardware.Machine("cuda", taken, 32 * GIB, 24 * GIB)
    drawn = shown(vram)[vram.picture]
    assert "other programs" in drawn and "7.6 GB may be used" in drawn


def test_the_usual_ways_are_drawn_beside(vram: Vram) -> None:
    drawn = shown(vram)[vram.classics]
    assert drawn.count("<figure") == 6 and "weights 3.97, gradients 3.66, optimizer 7.32" in drawn
    assert drawn.count("does not fit 16 GB") == 2


def test_a_bar_is_as_long_as_what_it_stands_for() -> None:
    drawn = pictures.stack({"weights": 2.0, "gradients": 1.0}, 4.0)
    assert 'class="part-weights" x="0.00" y="0" width="50.00"' in drawn
    assert 'class="part-gradients" x="50.00" y="0" width="25.00"' in drawn


# -- finding out what is not known ---------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables are kept, and no patience needed."""
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(tracing, "PATIENCE_SECONDS", 0.02)
    folder = activations.made_here()
    folder.mkdir(parents=True)
    return folder


class Children:
    """Stands in for the children that trace."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        self.started: list[subprocess.Popen[str]] = []
        self.script = script
        monkeypatch.setattr(tracing, "start_child", self.start)

    def start(self, run: Path, gib: float) -> subprocess.Popen[str]:
        assert run.exists()
        command = [sys.executable, "-c", self.script]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.started.append(child)
        return child


def writes(home: Path, *keys: str) -> str:
    """A table is there whole or not at all, as the real child keeps it."""
    part, whole = f"f'{home}/{{k}}.part'", f"f'{home}/{{k}}.json'"
    return f"import os\nfor k in {keys}: open({part}, 'w').write('{TABLE}'); os.replace({part}, {whole})"


ENDLESS = "import time; time.sleep(600)"


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    said: list[str] = []
    tracer = Tracer(lambda: None, said.append)
    tracer.said = said  # type: ignore[attr-defined]
    yield tracer
    tracer.close()


def test_what_is_looked_at_is_found_out_once(
    tracer: Tracer, trainer: Trainer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(monkeypatch, writes(home, "one", "two"))
    task = Task(frozenset({"one", "two"}), trainer.config(), 8)
    first = tracer.want(task)
    assert first and (first.done, first.total, first.has_failed) == (0, 2, False)
    until(lambda: (tracer.want(task) or first).done == 2)
    assert tracer.want(None) is None and len(children.started) == 1


def test_what_fails_is_said_once_and_not_tried_again(
    tracer: Tracer, trainer: Trainer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(monkeypatch, writes(home, "one") + "\nraise SystemExit('no such layer')")
    task = Task(frozenset({"one", "two"}), trainer.config(), 8)
    until(lambda: (told := tracer.want(task)) and told.has_failed)
    tracer.want(Task(frozenset({"other"}), trainer.config(), 8))
    until(lambda: len(children.started) == 2)
    until(lambda: (told := tracer.want(task)) and told.has_failed)
    until(lambda: children.started[1].poll() is not None)
    assert len(children.started) == 2
    assert sum("no such layer" in text for text in tracer.said) <= 2 and "no such layer" in tracer.said[0]  # type: ignore[attr-defined]


def test_other_settings_cut_it_short_and_fewer_passes_of_the_same_do_not(
    tracer: Tracer, trainer: Trainer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(monkeypatch, ENDLESS)
    tracer.want(Task(frozenset({"one", "two"}), trainer.config(), 8))
    first = until(lambda: children.started)[0]
    left = tracer.want(Task(frozenset({"two"}), trainer.config(), 8))
    assert left and left.total == 2 and first.poll() is None
    told = tracer.want(Task(frozenset({"three"}), trainer.config(), 8))
    until(lambda: len(children.started) == 2)
    assert first.poll() is not None and told and not told.has_failed
    tracer.close()
    assert children.started[1].poll() is not None


def test_a_model_on_an_imagined_card_is_found_out_while_the_tab_is_open(
    trainer: Trainer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(monkeypatch, ENDLESS)
    desk = Desk(trainer.workspace, Access(trainer.workspace))
    desk.is_warm, desk.machine = True, hardware.CPU_ONLY
    desk.project.change(trainer.values, "test")
    with gr.Blocks():
        vram = Vram(desk)
        vram.build()
    assert vram.show(desk.look(), given(vram, 8)) == {}
    vram._turn(given(vram, 8, {"value": "VRAM"}))
    drawn = shown(vram, 8)[vram.picture]
    assert "Not known yet" in drawn and "found out in the background" in drawn
    until(lambda: children.started)
    assert vram._turn(given(vram, 8, {"value": "Method"})) == {}
    until(lambda: children.started[0].poll() is not None)
    desk.close()


def test_the_newest_question_is_answered_and_those_before_are_dropped() -> None:
    said: list[str] = []
    answers: Answers[int] = Answers(-1, lambda: None, said.append)
    assert until(lambda: answers.get("one", lambda: 1)) == 1
    assert until(lambda: answers.get("wrong", lambda: 1 // 0)) == -1 and "ZeroDivisionError" in said[0]
    assert answers.get("one", lambda: 2) == 1
