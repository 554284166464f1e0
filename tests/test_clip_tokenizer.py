"""The tokenizer that ships with the app numbers words as CLIP does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from sdtrainer.families.clip_tokenizer import (
    END,
    MERGES,
    OPENCLIP_PAD,
    clip_tokenizer,
    vocabulary,
    with_whole_words,
)


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


def test_the_padding_in_a_folder_does_not_cut_words_either(tokenizer: Any, tmp_path: Path) -> None:
    """As SDXL's second tokenizer lies in its folder, with a word of our own besides."""
    cut = of_cut_words(tmp_path)
    assert cut("wow!! yes!", add_special_tokens=False).input_ids == [2781, 0, 0, 1958, 0]
    cut.add_tokens(["<zib>"])
    whole = with_whole_words(cut)
    first = clip_tokenizer()
    first.add_tokens(["<zib>"])
    for text in ("a dog!", "wow!!!", "a! dog", "! !", "yes!<zib>no!"):
        ids = [t(text, add_special_tokens=False).input_ids for t in (whole, first)]
        assert ids[0] == ids[1], text
    assert (whole.pad_token_id, whole.eos_token_id, len(whole)) == (0, 49407, 49409)
    assert with_whole_words(tokenizer) is tokenizer


def of_cut_words(folder: Path) -> Any:
    clip_tokenizer(OPENCLIP_PAD).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_the_licence_lies_beside_it() -> None:
    text = (MERGES.parent / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in text and "OpenAI" in text and "Gabriel Ilharco" in text
