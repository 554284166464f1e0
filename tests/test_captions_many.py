"""Many captions at once: searched, changed, looked at first, and taken back exactly."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdtrainer.__main__ import main
from sdtrainer.chores import CHORES
from sdtrainer.data import caption_edits, patterns
from sdtrainer.data.caption_edits import OPERATIONS, EditSection, same_tag, tags_of
from sdtrainer.data.caption_search import Known, SearchSection, found
from sdtrainer.data.census import Sample
from sdtrainer.data.overlay import Overlay, overlay_for
from sdtrainer.events import Progress
from sdtrainer.families import clip_tokenizer
from sdtrainer.section import UserError, checked
from sdtrainer.workspace import Workspace

TAGS = st.sampled_from(["dog", "Dog", "red_hat", "red hat", "sky", "a  b", "^_^", "x.y", ""])
CAPTIONS = st.one_of(st.lists(TAGS, max_size=6).map(", ".join), st.text(max_size=20).map(str.strip))


def made(caption, do, of=(), **settings):
    return caption_edits.edit_of(EditSection(do=do, **settings), of)(caption)


@pytest.mark.parametrize(
    "do, settings, before, after",
    [
        ("replace", {"text": "DOG", "new": "cat"}, "a dog, hotdog", "a cat, hotcat"),
        ("replace", {"text": "DOG", "new": "cat", "match_case": True}, "a dog", "a dog"),
        ("replace", {"text": ".", "new": r"\1"}, "a.b", r"a\1b"),
        ("replace", {"text": r"(\w+) dog", "new": r"dog \1", "is_pattern": True}, "red dog", "dog red"),
        ("add", {"text": "zib, Sky"}, "sky, sea", "zib, sky, sea"),
        ("add", {"text": "zib", "place": "back"}, "", "zib"),
        ("remove", {"text": "red_hat,sky"}, "Red hat, sky, sea", "sea"),
        ("rename", {"text": "sky", "new": "blue sky"}, "sky, sea, Sky", "blue sky, sea"),
        ("prefix", {"text": "photo of"}, "a dog", "photo of a dog"),
        ("suffix", {"text": ", 4k"}, "a dog", "a dog, 4k"),
        ("dedupe", {}, "sky, red_hat, Sky, red hat", "sky, red_hat"),
        ("sort", {"order": "alphabet", "keep": 1}, "z, c, b", "z, b, c"),
        ("shorten", {"most": 2}, "a, b, c", "a, b"),
        ("letters", {"letters": "Sentence case"}, "a DOG", "A dog"),
        ("underscores", {"to": "spaces"}, "red_hat, ^_^", "red hat, ^_^"),
        ("underscores", {"to": "underscores"}, "red hat, sky", "red_hat, sky"),
        ("tidy", {}, " a   dog,, sky ,", "a dog, sky"),
    ],
)
def test_each_operation(do, settings, before, after):
    assert made(before, do, **settings) == after


def test_every_operation_is_shown_by_an_example_above():
    (mark,) = test_each_operation.pytestmark
    assert {example[0] for example in mark.args[1]} == set(OPERATIONS)
    used = {name for kind in OPERATIONS.values() for name in kind.uses}
    assert used == set(EditSection.model_fields) - {"do", "separator"}


def test_frequent_tags_come_first():
    of = ["sky, dog", "sky, cat", "Sky, dog, dog"]
    assert made("cat, dog, sky", "sort", of) == "sky, dog, cat"
    assert made("sky, dog, cat", "sort", of, order="rare first") == "cat, dog, sky"


ONCE = ["add", "remove", "prefix", "suffix", "dedupe", "sort", "shorten", "letters",
        "underscores", "tidy"]  # fmt: skip


@given(caption=CAPTIONS, do=st.sampled_from(ONCE))
def test_done_twice_is_done_once(caption, do):
    text = {"text": "sky"} if OPERATIONS[do].needs else {}
    once = made(caption, do, [caption], **text)
    assert made(once, do, [caption], **text) == once


@given(caption=CAPTIONS)
def test_operations_on_tags_keep_to_their_word(caption):
    tags = tags_of(caption)
    without = tags_of(made(caption, "dedupe"))
    assert sorted(map(same_tag, without)) == sorted({same_tag(tag) for tag in tags})
    assert sorted(tags_of(made(caption, "sort", order="alphabet"))) == sorted(tags)
    assert tags_of(made(caption, "shorten", most=2)) == tags[:2]
    gone = made(caption, "remove", text="dog")
    assert "dog" not in map(same_tag, tags_of(gone)) and len(tags_of(gone)) == sum(
        same_tag(tag) != "dog" for tag in tags
    )


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"text": "(", "is_pattern": True}, "Regular expression"),
        ({"text": "a{99999999999}", "is_pattern": True}, "Regular expression"),
        ({"text": "a", "new": r"\7", "is_pattern": True}, "New text"),
        ({"text": ""}, "Text: it is empty"),
    ],
)
def test_wrong_settings_are_sentences(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        caption_edits.edited({"a": "aaa"}, EditSection(do="replace", **settings), ["aaa"])


def test_a_pattern_that_takes_years_is_given_up(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    section = EditSection(do="replace", text="(a|aa|aaa)*(b|c)*$", is_pattern=True)
    with pytest.raises(UserError, match="too long"):
        caption_edits.edited({"a": "a" * 5000 + "!"}, section, [])
    with pytest.raises(UserError, match="too long") as raised:
        found([sample("a.png", "a" * 5000 + "!")], by("(a|aa|aaa)*(b|c)*$", "pattern"), known())
    assert raised.value.path == "search"


PAIRS = st.dictionaries(st.sampled_from(["a.png", "b.png", "sub/c.png"]), CAPTIONS, min_size=1)
EDITS = st.builds(
    EditSection,
    do=st.sampled_from(sorted(OPERATIONS)),
    text=st.sampled_from(["sky", "dog, zib"]),
    new=st.sampled_from(["x", "sea"]),
    letters=st.sampled_from(["UPPER CASE", "lower case"]),
)


@given(captions=PAIRS, edits=st.lists(EDITS, max_size=4))
def test_undo_takes_bulk_edits_back_exactly(tmp_path_factory, captions, edits):
    home = tmp_path_factory.mktemp("bulk")
    overlay = Overlay(home / "edits.jsonl", home)
    overlay.apply("Captions", captions)
    states = [dict(overlay.captions)]
    for number, section in enumerate(edits):
        after = caption_edits.edited(states[-1], section, list(states[-1].values()))
        if overlay.apply(f"{number} {caption_edits.words_for(section)}", after):
            states.append(dict(overlay.captions))
    for state in reversed(states[:-1]):
        overlay.undo()
        assert dict(overlay.captions) == state
    for state in states[1:]:
        overlay.redo()
        assert dict(overlay.captions) == state


def sample(path, caption="", source=".txt", num_bytes=1, mtime=1):
    return Sample(path, Path(), 8, 8, caption, source, "", 1, num_bytes, mtime)


def known(**changes):
    none = Known("zib", lambda s: s.caption, lambda texts: [len(text.split()) for text in texts])
    return dataclasses.replace(none, **changes)


def by(search="", search_by="text", **more):
    return SearchSection(search=search, search_by=search_by, **more)


SET = (
    sample("img2.png", "Sky, red_hat", "the app", num_bytes=9, mtime=1),
    sample("img10.png", "a zib dog, red hat", num_bytes=5, mtime=3),
    sample("long.png", "word " * 76, num_bytes=1, mtime=9),
    sample("notes.png", "", "", num_bytes=7, mtime=2),
)


@pytest.mark.parametrize(
    "query, names",
    [
        (by(), "img2 img10 long notes"),
        (by("RED"), "img2 img10"),
        (by("NOTES", "file name"), "notes"),
        (by("red hat", "tag"), "img2 img10"),
        (by("zib", "tag"), ""),
        (by("^a .*hat$", "pattern"), "img10"),
        (by(only="without a caption"), "notes"),
        (by(only="too long"), "long"),
        (by(only="without the trigger word"), "img2 long notes"),
        (by(only="with problems"), "notes"),
        (by(only="edited here"), "img2"),
        (by(source="the app"), "img2"),
        (by("hat", only="without the trigger word"), "img2"),
        (by(sort="longest caption"), "long img10 img2 notes"),
        (by(sort="shortest caption"), "notes img2 img10 long"),
        (by(sort="newest"), "long img10 notes img2"),
        (by(sort="oldest"), "img2 notes img10 long"),
        (by(sort="largest file"), "img2 notes img10 long"),
        (by(sort="smallest file"), "long img10 notes img2"),
    ],
)
def test_pictures_are_found_and_put_in_order(query, names):
    told = known(troubled={"notes.png"}, edited={"img2.png"})
    assert [s.path.removesuffix(".png") for s in found(SET, query, told)] == names.split()


def test_windows_of_75_tokens_begin_where_the_tokenizer_says():
    caption = ", ".join(f"word{n}" for n in range(60))
    assert clip_tokenizer.count_tokens([caption, ""]) == [229, 0]
    starts = clip_tokenizer.window_starts(caption, 75)
    assert len(starts) == 3
    for window, start in enumerate(starts, 1):
        before = clip_tokenizer.count_tokens([caption[:start]])[0]
        assert before == 75 * window or caption[start - 1].isalnum()  # a word may be cut


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(tmp_path / "workspace"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, caption in {"a": "dog, sky", "b": "Dog, sea", "c": "sea"}.items():
        Image.new("RGB", (16, 16)).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(caption)
    return pictures


def run(capsys, *words):
    assert main(["captions", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_the_command_line_looks_changes_undoes_and_writes(folder, tmp_path, capsys):
    edits = overlay_for(tmp_path / "workspace", folder)
    said = run(capsys, folder, "rename", "--text", "dog", "--new", "zib cat", "--preview")
    assert "- dog, sky" in said and "+ zib cat, sky" in said and "2 of 3 captions would change" in said
    assert not edits.captions
    run(capsys, folder, "rename", "--text", "dog", "--new", "zib cat")
    assert overlay_for(tmp_path / "workspace", folder).captions == {
        "a.png": "zib cat, sky",
        "b.png": "zib cat, sea",
    }
    run(capsys, folder, "add", "--text", "4k", "--search", "sea", "--search-by", "tag")
    assert "Undone: Tags added: 4k. 2 pictures." in run(capsys, folder, "undo")
    assert "2 text files written" in run(capsys, folder, "write")
    assert (folder / "a.txt").read_text() == "zib cat, sky" and (folder / "c.txt").read_text() == "sea"
    run(capsys, folder, "undo")
    assert (folder / "a.txt").read_text() == "dog, sky"
    answer = json.loads(run(capsys, folder, "undo", "--json"))
    assert answer["said"].startswith("Undone: Tag renamed: dog to zib cat")
    assert "nothing left" in run(capsys, folder, "undo")


def test_settings_that_would_do_nothing_are_refused(folder, capsys):
    assert main(["captions", str(folder), "tidy", "--text", "x"]) == 2
    assert "'tidy' does not use it" in capsys.readouterr().err
    assert main(["captions", str(folder), "replcae"]) == 2
    assert "one of replace, add" in capsys.readouterr().err
    with pytest.raises(UserError, match="lies outside"):
        from sdtrainer.ui.access import Access
        from sdtrainer.workspace import Workspace

        access = Access(Workspace(folder / "elsewhere"), is_public=True)
        access.check_section(checked(CHORES["captions"].settings, {"folder": str(folder)}, "captions"))


def test_writing_and_taking_back_say_how_far_they_are(folder, tmp_path):
    home = Workspace(tmp_path / "workspace")
    overlay_for(home.root, folder).apply("Captions", {"a.png": "one", "b.png": "two"})
    chore = CHORES["captions"]
    for do in ("write", "undo", "redo"):
        doing = chore.do(chore.check({"folder": str(folder), "do": do}), home)
        *_, last = (event for event in doing if isinstance(event, Progress))
        assert (last.done, last.total, last.unit) == (2, 2, "text files")
    assert (folder / "a.txt").read_text() == "one"
