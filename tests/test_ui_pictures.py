"""The pictures on the page: what one page does and another sees, without a browser."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request

from sdtrainer import classes, planner
from sdtrainer import files as whole
from sdtrainer.chores import CHORES
from sdtrainer.data import caption_edits, prior
from sdtrainer.data.caption_edits import EditSection
from sdtrainer.data.caption_search import SearchSection
from sdtrainer.data.census import Problem
from sdtrainer.job import JobsState
from sdtrainer.section import UserError, override
from sdtrainer.ui.access import Access
from sdtrainer.ui.dataset.browse import Browse, _problems
from sdtrainer.ui.dataset.changes import WRITE
from sdtrainer.ui.dataset.class_images import ClassImages
from sdtrainer.ui.dataset.diffs import diff
from sdtrainer.ui.dataset.views import Moment, Sent
from sdtrainer.ui.desk import Desk
from sdtrainer.ui.errand import Doing
from sdtrainer.ui.listen import Given
from sdtrainer.ui.thumbnails import KEPT, Thumbnails
from sdtrainer.workspace import Workspace

NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browse]:
    home = tmp_path_factory.mktemp("pictures")
    (home / "set").mkdir()
    for name in NAMES:
        Image.new("RGB", (16, 16)).save(home / "set" / name)
        (home / "set" / name).with_suffix(".txt").write_text(f"{name[0]}, sky")
    workspace = Workspace(home / "workspace")
    desk = Desk(workspace, Access(workspace))
    desk.project.change(override(desk.project.values, {"data.folder": str(home / "set")}), "page")
    made = Browse(desk)
    with gr.Blocks():
        made.build()
    yield made
    desk.close()


@pytest.fixture(autouse=True)
def as_it_was(browse: Browse) -> None:
    overlay = browse.shelf.look().overlay
    while overlay.undo():
        pass
    browse.desk.look_again()
    assert captions(browse) == {name: f"{name[0]}, sky" for name in NAMES}


def captions(browse: Browse) -> dict[str, str]:
    return {path: sample.caption for path, sample in browse.shelf.look().by_path.items()}


def acts(browse: Browse, page: str, act: str, text: str, picture: str, **more: Any) -> dict[Any, Any]:
    done = {"act": act, "picture": picture, "text": text, "was": "", "number": time.monotonic_ns()} | more
    return browse.editor._act(Given({}, "owner", page, {"acts": [done]}), browse._show)


def opens(browse: Browse, page: str, picture: str) -> dict[Any, Any]:
    return browse._open(Given({}, "owner", page, {"act": "open", "picture": picture}))


def test_what_is_typed_is_kept_and_the_field_is_left_alone(browse: Browse) -> None:
    opens(browse, "one", "a.png")
    told = acts(browse, "one", "type", "a dog ", "a.png")
    assert browse.editor.text not in told and browse.editor.about in told
    assert captions(browse)["a.png"] == "a dog"
    assert "Caption of a.png" in told[browse.changes.undo]["value"]
    acts(browse, "one", "next", "a red dog", "a.png")
    assert captions(browse) == {"a.png": "a red dog", "b.png": "b, sky", "c.png": "c, sky"}
    assert browse.views["one"].open == "b.png"
    assert [what for _, what in browse.shelf.look().overlay.history] == ["Caption of a.png"]


def test_words_that_come_late_do_not_win_nor_go_to_another_picture(browse: Browse) -> None:
    opens(browse, "late", "a.png")
    acts(browse, "late", "type", "newer", "a.png", number=time.monotonic_ns() + 10**9)
    acts(browse, "late", "type", "older", "a.png")
    assert captions(browse)["a.png"] == "newer"
    acts(browse, "late", "next", "newer", "a.png", number=time.monotonic_ns() + 2 * 10**9)
    acts(browse, "late", "type", "typed before", "a.png", number=time.monotonic_ns() + 3 * 10**9)
    assert captions(browse)["b.png"] == "b, sky" and browse.views["late"].open == "b.png"


def test_what_was_done_during_an_answer_is_done_once_and_in_turn(browse: Browse) -> None:
    def done(number: int, act: str, was: str, text: str) -> dict[str, Any]:
        return {"act": act, "picture": "a.png", "was": was, "text": text, "number": number}

    def hears(*said: dict[str, Any]) -> dict[Any, Any]:
        return browse.editor._act(Given({}, "owner", "quick", {"acts": list(said)}), browse._show)

    opens(browse, "quick", "a.png")
    first = done(1, "type", "a, sky", "a dog")
    hears(first)
    hears(first, done(2, "type", "a dog", "a, sky"), done(3, "next", "a, sky", "a, sky"))
    assert captions(browse)["a.png"] == "a, sky" and browse.views["quick"].open == "b.png"
    browse.shelf.apply("elsewhere", {"a.png": "new"})
    hears(first, done(3, "next", "a, sky", "a, sky"), done(4, "next", "a, sky", "a, sky"))
    assert captions(browse)["a.png"] == "new" and browse.views["quick"].open == "c.png"


def test_what_the_page_marked_itself_is_drawn_anew_when_nothing_is_selected(browse: Browse) -> None:
    page, grid = Given({}, "owner", "picks"), browse.grid
    before = browse._show(page)[grid.grid]
    clicked = Given({}, "owner", "picks", {"act": "pick", "on": True, "pictures": ["a.png", "b.png"]})
    assert grid.grid not in grid._pick(clicked, browse._show)
    after = grid._select(page, False, browse._show)[grid.grid]
    assert "picked" not in after.replace("data-picks", "") and after != before, "gradio would leave the marks"


def test_another_page_shows_the_same(browse: Browse) -> None:
    opens(browse, "one", "a.png")
    opens(browse, "two", "a.png")
    acts(browse, "one", "type", "a dog", "a.png")
    told = browse._show(Given({}, "owner", "two"))
    assert "a dog" in told[browse.editor.text]
    assert browse._show(Given({}, "owner", "two")) == {}
    browse.changes._step("undo")
    assert "a, sky" in browse._show(Given({}, "owner", "one"))[browse.editor.text]


def test_an_older_answer_never_comes_last(browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    page, answers, began, go_on = Given({}, "owner", "order"), [], threading.Event(), threading.Event()
    browse.shelf.apply("First", {"a.png": "a dog"})

    def slow(moment: Moment) -> dict[Any, Any]:
        updates = type(browse.changes).render(browse.changes, moment)
        if not began.is_set():
            began.set()
            go_on.wait(10)
        return updates

    def undone() -> None:
        browse.changes._step("undo")
        answers.append(browse._show(page))

    monkeypatch.setattr(browse.changes, "render", slow)
    older = threading.Thread(target=lambda: answers.append(browse._show(page)))
    newer = threading.Thread(target=undone)
    older.start()
    assert began.wait(10)
    newer.start()
    newer.join(0.2)
    go_on.set()
    for thread in (older, newer):
        thread.join(10)
    assert [answer[browse.changes.undo]["value"] for answer in answers] == ["Undo: First", "Undo"]


def test_quick_undos_count_each(browse: Browse) -> None:
    for number in range(6):
        browse.shelf.apply(f"Round {number}", {"a.png": f"{number}"})
    clicked = [threading.Thread(target=browse.changes._step, args=("undo",)) for _ in range(5)]
    for thread in clicked:
        thread.start()
    for thread in clicked:
        thread.join(10)
    assert browse.shelf.look().overlay.undoable == "Round 0" and captions(browse)["a.png"] == "0"


def test_a_search_is_left_with_one_click_and_the_order_stays(browse: Browse) -> None:
    page, finder = Given({}, "owner", "all"), browse.finder
    browse.views.change("all", search=SearchSection(sort="newest"))
    assert finder.look_for(page, "b").items() >= {finder.fields["search"].widget: "b"}.items()
    assert browse._show(page)[browse.grid.clear]["visible"]
    fields = finder.look_for_all(page)
    assert {name: fields[field.widget] for name, field in finder.fields.items()} == {
        "search": "", "search_by": "text", "only": "all", "sort": "newest"
    }  # fmt: skip
    assert not browse._show(page)[browse.grid.clear]["visible"]


def test_many_changes_are_said_before_and_after(browse: Browse) -> None:
    page, bulk = "bulk", browse.bulk

    def said(**edit: Any) -> str:
        browse.views.change(page, edit=EditSection(**edit))
        return bulk.render(Moment(browse.views[page], browse.shelf.look(), browse.shelf.find(
            browse.shelf.look(), SearchSection())))[bulk.preview]  # fmt: skip

    assert "Changes 1 caption of all 3" in said(do="remove", text="a")
    assert "Changes 3 captions of all 3" in said(do="remove", text="sky")
    assert "Changes nothing in all 3" in said(do="remove", text="moon")


def test_tags_as_frequent_stand_in_the_order_of_letters(browse: Browse) -> None:
    browse.shelf.apply("Tags", {"a.png": "sky, d, c", "b.png": "b, sky", "c.png": ""})
    moment = Moment(browse.views["page"], browse.shelf.look(), ())
    names = re.findall('data-tag="(.*?)"', browse.tags.render(moment)[browse.tags.chart])
    assert names[:4] == ["sky", "b", "c", "d"]


def test_tags_are_removed_and_added(browse: Browse) -> None:
    opens(browse, "tags", "b.png")
    told = acts(browse, "tags", "untag", "b, sky, <i>", "b.png", tag="b")
    assert captions(browse)["b.png"] == "sky, <i>" and "&lt;i&gt;" in told[browse.editor.text]
    acts(browse, "tags", "add", "sky, <i>", "b.png", tag="night, sky")
    assert captions(browse)["b.png"] == "sky, <i>, night"
    acts(browse, "tags", "next", "sky, <i>, night", "b.png")
    acts(browse, "tags", "untag", "sky, <i>, night", "b.png", tag="<i>")  # clicked before the next one came
    assert captions(browse) == {"a.png": "a, sky", "b.png": "sky, night", "c.png": "c, sky"}


def test_a_picture_that_no_longer_fits_the_search_can_be_left(browse: Browse) -> None:
    browse.finder.look_for(Given({}, "owner", "found"), "a")
    opens(browse, "found", "a.png")
    acts(browse, "found", "type", "other", "a.png")
    acts(browse, "found", "next", "other", "a.png")
    assert browse.views["found"].open == "a.png"
    told = acts(browse, "found", "close", "other", "a.png")
    assert "No picture is like this" in told[browse.grid.grid]


TEXTS = st.lists(st.sampled_from(["sky", "Sky", "a dog", "x_y", ""]), max_size=3).map(", ".join)


@settings(max_examples=30)
@given(rounds=st.lists(st.dictionaries(st.sampled_from(NAMES), TEXTS, min_size=1), min_size=1, max_size=4))
def test_tags_counted_bit_by_bit_are_those_counted_at_once(
    browse: Browse, rounds: list[dict[str, str]]
) -> None:
    for number, texts in enumerate(rounds):
        browse.shelf.apply(f"Round {number}", texts)
        shelved = browse.shelf.look()
        assert browse.shelf.tags(shelved) == caption_edits.frequencies(captions(browse).values())


def clicks(browse: Browse, event: Any) -> dict[Any, Any]:
    """Do what a click on a button of the changes does; return all that the page shows afterwards."""
    changes, given = browse.changes, Given({}, "owner", "page")
    {"write": lambda: changes._ask(given, True), "no": lambda: changes._ask(given, False),
     "yes": lambda: changes._write(given), "stop": lambda: browse.desk.errands.stop(WRITE),
     "undo": lambda: changes._step("undo")}[event]()  # fmt: skip
    return shown(browse)


def shown(browse: Browse) -> dict[Any, Any]:
    shelved = browse.shelf.look()
    return browse.changes.render(Moment(browse.views["page"], shelved, ()))


def files(browse: Browse) -> dict[str, str]:
    folder = browse.shelf.look().census.folder
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".png"}


def until_written(browse: Browse) -> dict[Any, Any]:
    deadline = time.monotonic() + 30
    while WRITE in browse.desk.errands.doing:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return shown(browse)


def test_captions_are_written_into_the_folder_when_confirmed_and_taken_back(browse: Browse) -> None:
    changes, before = browse.changes, files(browse)
    assert not shown(browse)[changes.write]["interactive"]
    browse.shelf.apply("Captions", {"a.png": "new a", "c.png": "caf\u00e9"})
    asked = clicks(browse, "write")
    assert asked[changes.box]["visible"] and asked[changes.yes]["value"] == "Write 2 text files"
    assert "2 text files will be written" in asked[changes.question]
    assert not clicks(browse, "no")[changes.box]["visible"] and files(browse) == before
    clicks(browse, "write")
    clicks(browse, "yes")
    done = until_written(browse)
    assert files(browse) == {"a.txt": "new a", "b.txt": "b, sky", "c.txt": "caf\u00e9"}
    assert "2 text files written into" in done[changes.news] and not done[changes.stop]["visible"]
    assert not done[changes.box]["visible"] and not done[changes.write]["interactive"]
    undone = clicks(browse, "undo")
    assert files(browse) == before and captions(browse)["a.png"] == "new a"
    assert undone[changes.news] == "" and undone[changes.write]["interactive"]


def test_writing_is_stopped_between_two_files_and_nothing_is_lost(
    browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, before, real = browse.changes, files(browse), whole.write_bytes
    began = threading.Event()

    def slow(path: Path, content: bytes) -> None:
        real(path, content)
        if path.suffix == ".txt":
            began.set()
            hand, _ = browse.desk.errands._hands[WRITE]
            while not hand.is_stopped:
                time.sleep(0.01)

    new = {name: f"new {name}" for name in NAMES}
    browse.shelf.apply("Captions", new)
    with monkeypatch.context() as patch:
        patch.setattr(whole, "write_bytes", slow)
        clicks(browse, "yes")
        assert began.wait(10) and shown(browse)[changes.stop]["visible"]
        stopped = clicks(browse, "stop")
    assert "No caption is lost" in stopped[changes.news] and stopped[changes.write]["interactive"]
    assert files(browse) == before | {"a.txt": "new a.png"} and captions(browse) == new
    clicks(browse, "yes")
    until_written(browse)
    assert files(browse) == {f"{name[0]}.txt": text for name, text in new.items()}
    clicks(browse, "undo")
    clicks(browse, "undo")
    assert files(browse) == before and captions(browse) == new


def test_a_page_is_sent_what_is_new_to_it(browse: Browse) -> None:
    sent = Sent()
    assert sent.news("one", {"grid": "x", "said": "y"}) == {"grid": "x", "said": "y"}
    assert sent.news("one", {"grid": "x", "said": "z"}) == {"said": "z"}
    assert sent.news("two", {"grid": "x"}) == {"grid": "x"}


WORDS = st.lists(st.sampled_from(["a", "dog", "<b>", ",", "\u732b", " "]), max_size=6).map("".join)


@given(before=WORDS, after=WORDS)
def test_a_difference_holds_both_texts(before: str, after: str) -> None:
    import html
    import re

    shown = diff(before, after)
    assert html.unescape(re.sub(r"<ins>.*?</ins>|</?del>", "", shown)) == before
    assert html.unescape(re.sub(r"<del>.*?</del>|</?ins>", "", shown)) == after


def test_only_pictures_that_were_shown_have_an_address(tmp_path: Path) -> None:
    Image.new("RGB", (600, 300), "red").save(tmp_path / "a.png")
    thumbnails = Thumbnails(Workspace(tmp_path / "workspace"))
    address = thumbnails.address(tmp_path / "a.png")
    assert not (tmp_path / "workspace").exists()  # nothing is made until it is asked for

    def ask(key: str) -> Any:
        return thumbnails.answer(Request({"type": "http", "path_params": {"key": key}}))

    answer = ask(address.split("/")[1])
    assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
    with Image.open(answer.path) as copy:
        assert copy.size == (256, 128)
    assert ask("0" * 24).status_code == 404
    (tmp_path / "a.png").unlink()
    assert thumbnails.address(tmp_path / "a.png") == "thumbnail/gone"
    assert ask("gone").status_code == 404 and KEPT > 10_000


def test_a_problem_of_many_pictures_is_said_once(browse: Browse) -> None:
    def problem(file: str, sentence: str) -> Problem:
        return Problem(file, "caption missing", sentence, "warning")

    bare = [problem(f"{number:02d} <b>.png", "It has no caption.") for number in range(40)]
    said = _problems((*bare, problem("torn.png", "It ends too early.")))
    assert said.count("It has no caption.") == 1 and "40 files" in said and "00 &lt;b&gt;.png" in said
    assert "<b>torn.png</b> It ends too early." in said and said.count("<li>") == 2


def class_images(browse: Browse, count: int) -> tuple[ClassImages, Path]:
    """The part, with so many pictures of the set that the settings ask for; they ask for three."""
    desk = browse.desk
    changes = {"prior.class_prompt": "a dog", "prior.images": 3}
    desk.project.change(override(desk.project.values, changes), "owner")
    outlook = desk.look()
    assert outlook.config and outlook.facts, outlook.error
    home = planner.class_image_folder(outlook.config, outlook.facts, desk.workspace)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8)).save(home / f"{number:05d}.png")
    part = ClassImages(desk)
    with gr.Blocks():
        part.build()
    return part, home


def clicked(*pictures: str) -> Given:
    return Given({}, "owner", "class", {"on": True, "pictures": list(pictures)})


def test_bad_class_images_go_to_the_trash_and_spare_ones_stand_in(browse: Browse) -> None:
    part, home = class_images(browse, 4)
    page = Given({}, "owner", "class")
    shown = part.show(browse.desk.look(), page)
    assert "All 3 pictures" in shown[part.said] and "1 more" in shown[part.said]
    assert not shown[part.drawing]["visible"]
    assert shown[part.all]["interactive"] and not shown[part.bad]["interactive"]
    picked = part._pick(clicked("00001.png"))[part.bad]
    assert picked == gr.update(value="Throw 1 picture away", interactive=True)
    part.desk.errands.doing["classes"] = Doing("classes")
    shown = part.show(browse.desk.look(), page)
    assert not shown[part.all]["interactive"] and not shown[part.bad]["interactive"], "while they are drawn"
    with pytest.raises(UserError, match="being drawn"):
        part._throw_bad(page)
    del part.desk.errands.doing["classes"]
    shown = part.show(browse.desk.look(), page)
    assert shown[part.all]["interactive"] and shown[part.bad]["interactive"]
    part._throw_bad(page)
    assert prior.thrown_away(home) == {1} and not (home / "00001.png").exists()
    part._pick(clicked("../../project.toml"))
    part._throw_bad(page)
    assert prior.thrown_away(home) == {1}
    part._pick(clicked("00002.png"))
    shown = part._throw_bad(page)  # number 4 stands in, which is not drawn yet
    assert "2 of 3 pictures" in shown[part.said] and shown[part.drawing]["visible"]
    assert shown[part.card.start] == gr.update(value="Draw 1 picture now", interactive=True)
    part._throw_all(page)
    assert not home.exists()
    trash = sorted(browse.desk.workspace.trash.iterdir())
    assert len(trash) == 3 and all(path.name.startswith("a-dog-") for path in trash)
    with pytest.raises(UserError, match="no longer there"):
        part._throw_all(page)


def test_class_images_are_drawn_now_with_all_settings_of_the_project(
    browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, _ = class_images(browse, 1)
    begun: list[Any] = []
    monkeypatch.setattr(browse.desk, "begin", lambda verb, values: begun.append((verb, values)))
    part._draw(Given({}, "owner", "class"))
    ((verb, values),) = begun
    assert classes.config_of(CHORES[verb].check(values)) == browse.desk.look().config
    monkeypatch.setattr(browse.desk.jobs, "state", lambda: JobsState("a-run", ()))
    with pytest.raises(UserError, match="A run is going on"):
        part._draw(Given({}, "owner", "class"))
