"""The Check tab: the report by itself, a remedy at a click, and back again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from test_doctor import SIDE, check, good, hole, redraw, write  # noqa: F401
from test_ui_project import wait_for

from sdtrainer.data.overlay import overlay_for
from sdtrainer.section import UserError, override
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset.doctor import Doctor
from sdtrainer.ui.dataset.source import _found
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.listen import Given
from sdtrainer.workspace import Workspace


@pytest.fixture
def folder(good: Path, workspace: Workspace) -> Path:  # noqa: F811
    folder = workspace.uploads / "set"
    shutil.copytree(good, folder)
    redraw(hole)(folder)
    write("08.png", b"")(folder)
    write("09 <b>.png", b"no picture")(folder)
    return folder


@pytest.fixture
def doctor(workspace: Workspace, folder: Path) -> Doctor:
    desk = Desk(workspace, Access(workspace))
    changes = {"data.folder": str(folder), "data.trigger": "zib", "train.resolution": SIDE}
    desk.project.change(override(desk.project.values, changes), "")
    doctor = Doctor(desk)
    with gr.Blocks(), gr.Tab("Check") as doctor.tab:
        doctor.build()
    return doctor


def asked(**clicked: Any) -> Given:
    return Given({}, "owner", "page", clicked)


def test_the_report_comes_by_itself_and_is_kept(doctor: Doctor, folder: Path) -> None:
    """Real children do it, once for each state of the folder."""
    desk = doctor.desk
    shown = doctor.show(desk.look(), asked())
    assert "Nothing was checked yet" in shown[doctor.verdict] and not doctor.card.doing, "not while it starts"
    desk.is_warm = True
    doctor.show(desk.look(), asked())
    assert doctor.card.doing
    wait_for(lambda: not doctor.card.doing)
    shown |= doctor.show(desk.look(), asked())
    assert "Worth a look: cannot be read (1), empty files (1)" in shown[doctor.verdict]
    assert not doctor.card.doing, "nothing changed"
    made = doctor.newest(desk.look())
    assert made["looked_inside"] and "Worth a look" in _found(desk.look(), made)
    desk.project.change(override(desk.project.values, {"run.goal": "style"}), "")
    doctor._next = 0.0
    doctor.show(desk.look(), asked())
    assert doctor.card.doing, "another goal asks for other pictures"
    wait_for(lambda: not doctor.card.doing)
    shown |= doctor.show(desk.look(), asked())
    assert "Number of pictures" in shown[doctor.groups] and not doctor.card.doing
    desk.project.change(override(desk.project.values, {"run.goal": "subject"}), "")
    doctor._next = 0.0
    shown |= doctor.show(desk.look(), asked())
    assert "Number of pictures" not in shown[doctor.groups] and not doctor.card.doing, "what was known is"


def test_a_remedy_is_one_click_and_so_is_its_undo(doctor: Doctor, folder: Path, workspace: Workspace) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    check(folder, workspace)
    shown = doctor._clicked(asked(act="open", check="transparent"))
    assert shown[doctor.groups].count('aria-expanded="true"') == 1
    assert shown[doctor.groups].count("data-fix=") == 3
    shown |= doctor._clicked(asked(act="fix", check="transparent", fix="Black", file="03.png"))
    overlay = overlay_for(workspace.root, folder)
    assert overlay.entries("backgrounds") == {"03.png": "black"}
    assert "Transparent" not in shown[doctor.groups] and shown[doctor.undo]["value"] == "Undo: Black: 03.png"
    assert 'aria-expanded="true"' not in shown[doctor.groups]
    shown |= doctor._undo(asked())
    assert overlay.entries("backgrounds") == {} and "Transparent" in shown[doctor.groups]
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_all_of_a_group_are_answered_at_once(doctor: Doctor, folder: Path, workspace: Workspace) -> None:
    (folder / "10.png").write_bytes(b"no picture either")
    check(folder, workspace)
    click = {"act": "fix-all", "check": "undecodable", "fix": "Leave out"}
    doctor._clicked(asked(**click))
    assert set(overlay_for(workspace.root, folder).entries("left_out")) == {"09 <b>.png", "10.png"}
    with pytest.raises(UserError, match="answered already"):
        doctor._clicked(asked(**click))
    shown = doctor._clicked(asked(act="ignore-all", check="empty-file"))
    assert "Empty files" not in shown[doctor.groups]
    assert overlay_for(workspace.root, folder).undoable == "Ignored: Empty files (1)"


def test_what_files_are_called_is_text(doctor: Doctor, folder: Path, workspace: Workspace) -> None:
    check(folder, workspace)
    shown = doctor._clicked(asked(act="open", check="undecodable"))
    assert "09 &lt;b&gt;.png" in shown[doctor.groups] and "<b>.png" not in shown[doctor.groups]


def test_many_findings_come_in_pages(doctor: Doctor, folder: Path, workspace: Workspace) -> None:
    for number in range(30):
        (folder / f"none {number}.png").write_bytes(b"no picture")
    check(folder, workspace)
    first = doctor._clicked(asked(act="open", check="undecodable"))[doctor.groups]
    third = doctor._clicked(asked(act="page", check="undecodable", page="2"))
    assert first.count('class="finding"') == 12 and "1 of 3" in first
    assert third[doctor.groups].count('class="finding"') == 7 and "3 of 3" in third[doctor.groups]
    for number in range(24, 30):
        third |= doctor._clicked(
            asked(act="fix", check="undecodable", fix="Leave out", file=f"none {number}.png")
        )
    assert third[doctor.groups].count('class="finding"') == 1
    third |= doctor._clicked(asked(act="ignore", check="undecodable", file="none 9.png"))
    assert third[doctor.groups].count('class="finding"') == 12 and "2 of 2" in third[doctor.groups]
    with pytest.raises(UserError, match="answered already"):
        doctor._clicked(asked(act="ignore", check="undecodable", file="none 9.png"))


def test_without_a_report_a_click_says_what_to_do(doctor: Doctor) -> None:
    with pytest.raises(UserError, match="Check everything"):
        doctor._clicked(asked(act="open", check="transparent"))


def test_a_click_is_answered_at_once(doctor: Doctor, folder: Path, workspace: Workspace) -> None:
    check(folder, workspace)
    doctor._clicked(asked(act="open", check="transparent"))  # copies of the pictures are made once
    began = time.process_time()
    doctor._clicked(asked(act="open", check="transparent"))
    assert time.process_time() - began < 0.1
