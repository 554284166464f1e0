"""Captions as trained: trigger, tags and dropout, with and without chance."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtrainer.data import templates
from sdtrainer.data.captions import chunks_needed, compose, is_fixed, variants
from sdtrainer.data.section import DataSection, why_no_text_cache

quick = settings(deadline=None, max_examples=60)
TAGS = "red hat, blue sky, a dog, old car, tall tree, wet road"


@pytest.mark.parametrize(
    ("caption", "settings", "expected"),
    [
        ("a dog", {}, "a dog"),
        ("a dog", {"trigger": "ohwx"}, "ohwx, a dog"),
        ("", {"trigger": "ohwx"}, "ohwx"),
        ("a photo of {trigger} running", {"trigger": "ohwx"}, "a photo of ohwx running"),
        ("an ohwx dog", {"trigger": "ohwx"}, "an ohwx dog"),
        ("an ohwxy dog", {"trigger": "ohwx"}, "ohwx, an ohwxy dog"),
        ("a dog", {"prefix": "photo of", "trigger": "ohwx"}, "photo of ohwx, a dog"),
        ("a dog", {"prefix": "{trigger} style,", "trigger": "ohwx"}, "ohwx style, a dog"),
        ("a dog", {"suffix": ", sharp"}, "a dog, sharp"),
        ("a dog", {"suffix": "in snow"}, "a dog in snow"),
        ("a dog", {"trigger": "ohwx", "tag_separator": "|"}, "ohwx| a dog"),
        ("one,two , three", {}, "one,two , three"),
        ("a dog", {"trigger": "ohwx", "templates": ["a photo of [trigger]"]}, "a photo of ohwx"),
        ("a dog", {"trigger": "ohwx", "templates": ["[trigger] with [caption]"]}, "ohwx with a dog"),
        ("", {"trigger": "ohwx", "templates": ["[trigger], [caption]"]}, "ohwx"),
        ("a dog", {"trigger": "ohwx", "templates": ["only [caption]"]}, "ohwx, only a dog"),
        ("[trigger]", {"trigger": "ohwx", "templates": ["see: [caption]"]}, "ohwx, see: [trigger]"),
        ("a dog", {"prefix": "wow", "templates": ["", "it is [caption]"]}, "wow it is a dog"),
    ],
)
def test_caption_is_composed_of_prefix_trigger_and_suffix(caption, settings, expected):
    assert compose(caption, DataSection(**settings), None) == expected


def test_class_word_stands_in_for_an_empty_caption_only():
    section = DataSection()
    assert compose(" ", section, None, "dog") == "dog"
    assert compose("a cat", section, None, "dog") == "a cat"


def test_without_chance_nothing_is_shuffled_or_dropped():
    section = DataSection(shuffle_tags=True, tag_dropout=1, caption_dropout=1)
    assert compose(TAGS, section, None) == TAGS


@quick
@given(seed=st.integers(), keep=st.integers(0, 8))
def test_shuffling_keeps_every_tag_and_the_first_ones_in_place(seed, keep):
    tags = compose(TAGS, DataSection(shuffle_tags=True, keep_tags=keep), Random(seed)).split(", ")
    assert sorted(tags) == sorted(TAGS.split(", "))
    assert tags[:keep] == TAGS.split(", ")[:keep]


@quick
@given(seed=st.integers(), dropout=st.floats(0, 1), keep=st.integers(0, 8))
def test_tag_dropout_keeps_order_first_tags_and_trigger(seed, dropout, keep):
    section = DataSection(tag_dropout=dropout, keep_tags=keep, trigger="tall tree")
    tags = compose(TAGS, section, Random(seed)).split(", ")
    assert "tall tree" in tags
    left = [tag for tag in TAGS.split(", ") if tag in tags]
    assert tags in (left, ["tall tree", *(tag for tag in left if tag != "tall tree")])
    assert len([tag for tag in TAGS.split(", ")[:keep] if tag not in tags]) == 0


def test_tags_are_dropped_as_often_as_asked():
    section = DataSection(tag_dropout=0.25)
    left = [len(compose(TAGS, section, Random(seed)).split(", ")) for seed in range(2000)]
    assert sum(left) / len(left) == pytest.approx(6 * 0.75, rel=0.05)


def test_captions_are_dropped_whole_as_often_as_asked():
    section = DataSection(caption_dropout=0.1, trigger="ohwx")
    captions = [compose("a dog", section, Random(seed)) for seed in range(3000)]
    assert set(captions) == {"", "ohwx, a dog"}
    assert captions.count("") / len(captions) == pytest.approx(0.1, abs=0.02)


def test_caption_dropout_alone_leaves_captions_cacheable():
    assert is_fixed(DataSection(caption_dropout=0.5))
    assert not is_fixed(DataSection(shuffle_tags=True))
    assert not is_fixed(DataSection(tag_dropout=0.1))


@quick
@given(
    lines=st.lists(
        st.sampled_from(["subject", "style", "my [trigger]", "[caption] and [trigger]"]), min_size=1
    ),
    seed=st.integers(),
)
def test_a_template_is_drawn_from_those_there_are_and_holds_the_trigger_word(lines, seed):
    section = DataSection(trigger="ohwx", templates=lines)
    drawn = compose("a dog", section, Random(seed))
    assert "ohwx" in drawn and "[" not in drawn
    assert drawn in variants("a dog", section)
    assert drawn == compose("a dog", section, Random(seed))
    assert compose("a dog", section, None) == variants("a dog", section)[0]


@pytest.mark.parametrize("name", sorted(templates.BUILT_IN))
def test_built_in_templates_are_short_different_and_all_drawn(name):
    lines = templates.BUILT_IN[name]
    assert 12 <= len(set(lines)) == len(lines) <= 20
    assert all(line.count(templates.TRIGGER) == 1 and len(line) < 60 for line in lines)
    section = DataSection(trigger="ohwx", templates=[name])
    assert {compose("", section, Random(seed)) for seed in range(500)} == set(variants("", section))


def test_several_templates_rule_out_cached_text_and_one_does_not():
    assert is_fixed(DataSection(templates=["a photo of [trigger]", " "]))
    for section in (DataSection(templates=["subject"]), DataSection(templates=["one", "two"])):
        assert not is_fixed(section)
        assert "templates" in why_no_text_cache(section)
    assert not why_no_text_cache(DataSection(templates=["a photo of [trigger]"]))


@quick
@given(caption=st.text(), prefix=st.text(max_size=20), suffix=st.text(max_size=20), seed=st.integers())
def test_any_text_is_composed(caption, prefix, suffix, seed):
    section = DataSection(trigger="ohwx", prefix=prefix, suffix=suffix, shuffle_tags=True, tag_dropout=0.5)
    assert "ohwx" in compose(caption, section, Random(seed)).lower()


@pytest.mark.parametrize(("lengths", "chunks"), [([], 1), ([0], 1), ([75], 1), ([3, 76], 2), ([226], 4)])
def test_chunks_hold_the_longest_caption(lengths, chunks):
    assert chunks_needed(["x" * length for length in lengths], len) == chunks
