"""The tokenizer that all CLIP text encoders of Stable Diffusion share, from a list that ships with us."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..formats import tokenizer_files

MERGES = Path(__file__).parents[2] / "assets" / "clip-tokenizer" / "merges.txt"
START, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
OPENCLIP_PAD = "!"
"""OpenCLIP fills up with the token 0, which is this word; CLIP with the end token."""


def clip_tokenizer(pad: str = END) -> Any:
    """Return transformers' CLIPTokenizer of 49,408 words, without asking the hub."""
    return _padded(_read(_texts()), pad)


def of_texts(texts: Mapping[str, str]) -> Any:
    """Return the CLIPTokenizer whose files these are, by name."""
    return with_whole_words(_read(texts))


def with_whole_words(tokenizer: Any) -> Any:
    """Return a CLIPTokenizer that numbers "!" as the word that it is, even where it is the padding.

    Told of such a padding in its files, transformers cuts it out of the words of a caption, which OpenCLIP
    does not. Source: mlfoundations/open_clip, tokenizer.py, by which SDXL and SD3 learnt their words.
    """
    if tokenizer.pad_token != OPENCLIP_PAD:
        return tokenizer
    texts = tokenizer_files.files_of(tokenizer)
    texts.pop(tokenizer_files.NEW_FORM)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        texts[name] = json.dumps(json.loads(texts[name]) | {"pad_token": str(tokenizer.eos_token)})
    whole = _read(texts)
    known = whole.get_vocab()
    whole.add_tokens([word for word in tokenizer.get_added_vocab() if word not in known])
    return _padded(whole, OPENCLIP_PAD)


def _padded(tokenizer: Any, pad: str) -> Any:
    """Choose the padding afterwards, so that no word is cut."""
    tokenizer.pad_token = pad
    return tokenizer


def _read(texts: Mapping[str, str]) -> Any:
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer_files.write(texts, Path(folder))
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@functools.cache
def shared() -> Any:
    """Return the one tokenizer for counting, made at its first use."""
    return clip_tokenizer()


def count_tokens(captions: Sequence[str]) -> list[int]:
    """Return how many tokens each caption has, without start and end."""
    read = (
        shared()(list(captions), add_special_tokens=False, verbose=False) if captions else {"input_ids": []}
    )
    return [len(ids) for ids in read["input_ids"]]


def window_starts(caption: str, tokens: int) -> list[int]:
    """Return at which letters of a caption each further window of so many tokens begins."""
    read = shared()(caption, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [start for start, _ in read["offset_mapping"][tokens::tokens]]


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Return the number of each word: bytes, bytes that end a word, joined pairs, start and end.

    Source: Radford et al. 2021, github.com/openai/CLIP, clip/simple_tokenizer.py.
    """
    letters = list(_letters())
    words = [*letters, *(letter + END_OF_WORD for letter in letters)]
    words += [pair.replace(" ", "") for pair in merges]
    return {word: number for number, word in enumerate([*words, START, END])}


def _letters() -> Iterator[str]:
    """A letter for each of the 256 bytes: itself where it can be printed, then others from code 256 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printed)
    yield from map(chr, range(256, 512 - len(printed)))


def _texts() -> dict[str, str]:
    merges = MERGES.read_text(encoding="utf-8").splitlines()
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    return {
        "vocab.json": json.dumps(vocabulary(merges), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": json.dumps(config | special),
        "special_tokens_map.json": json.dumps(special),
    }
