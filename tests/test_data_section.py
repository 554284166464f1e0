"""The data settings: declared for people, and refused in words."""

import pytest

from sdtrainer.data.section import DataSection, why_no_latent_cache, why_no_text_cache
from sdtrainer.section import Section, walk


class _Tree(Section):
    data: DataSection = DataSection()


def test_every_setting_is_explained_in_one_sentence():
    knobs = list(walk(_Tree))
    assert len(knobs) == len(DataSection.model_fields) >= 20
    for knob in knobs:
        assert knob.title[0].isupper() and knob.help.endswith(".") and ". " not in knob.help, knob.path
        assert 40 < len(knob.help) < 230, knob.path
        assert "  " not in knob.help
    assert {knob.name for knob in knobs if knob.is_path} == {
        "folder",
        "validation_folder",
        "mask_folder",
    }


@pytest.mark.parametrize("colour", ["white", "#808080", "rgb(1, 2, 3)"])
def test_background_is_any_colour(colour):
    assert DataSection(background=colour).background == colour


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"background": "whitish"}, "no colour"),
        ({"bucket_step": 12}, "multiple of 8"),
        ({"tag_dropout": 1.5}, "less than or equal to 1"),
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"validation_split": 0.6}, "less than or equal to 0.5"),
        ({"tag_separator": ""}, "at least 1 character"),
    ],
)
def test_impossible_values_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DataSection(**settings)


def test_settings_that_rule_out_caches_say_why():
    assert why_no_latent_cache(DataSection()) == why_no_text_cache(DataSection()) == ""
    assert "crops" in why_no_latent_cache(DataSection(crop="random"))
    assert "shuffled" in why_no_text_cache(DataSection(shuffle_tags=True))
    assert "dropped" in why_no_text_cache(DataSection(tag_dropout=0.1))
