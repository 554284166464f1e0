"""The tokenizer that ships with the app numbers words as CLIP does."""

from __future__ import annotations

from typing import Any

import pytest

from sdtrainer.families.clip_tokenizer import END, MERGES, OPENCLIP_PAD, clip_tokenizer, vocabulary


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return clip_tokenizer()


def test_it_has_the_words_of_clip(tokenizer: Any) -> None:
    """Numbers that CLIP's published vocab.json gives."""
    words = vocabulary(MERGES.read_text(encoding="utf-8").splitlines())
    known = {"!": 0, "!</w>": 256, "i</w>": 328, "a</w>": 320, "of</w>": 539, "cat</w>": 2368, END: 49407}
    assert {word: words[word] for word in known} == known
    assert len(words) == len(tokenizer) == 49408
    assert tokenizer("A photo  of a CAT").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.mark.parametrize(("pad", "number"), [(END, 49407), (OPENCLIP_PAD, 0)])
def test_the_padding_does_not_cut_words(pad: str, number: int) -> None:
    found = clip_tokenizer(pad)
    assert found.pad_token_id == number
    assert found("wow!! yes!", add_special_tokens=False).input_ids == [2781, 748, 1958, 256]
    assert found("cat", padding="max_length", max_length=5).input_ids == [49406, 2368, 49407, number, number]


def test_the_licence_lies_beside_it() -> None:
    text = (MERGES.parent / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in text and "OpenAI" in text and "Gabriel Ilharco" in text
