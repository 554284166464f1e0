"""The starter's tokenizer: a byte-level BPE in CLIP's layout, learned from its captions and a word list."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

from sdtrainer.starter.things import THINGS
from sdtrainer.starter.words import COMMON_WORDS
from sdtrainer.starter.world import BACKGROUNDS, draw_scene

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
MAX_LENGTH = 77
LARGEST_VOCABULARY = 4000

Pair = tuple[str, str]


def write_tokenizer(folder: Path, seed: int = 0) -> int:
    """Learn the merges, write a folder for CLIPTokenizer.from_pretrained, return the vocabulary size."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = byte_alphabet()
    base = alphabet + [letter + WORD_END for letter in alphabet]
    merges = learn_merges(_word_counts(seed), LARGEST_VOCABULARY - len(base) - 2)
    tokens = base + ["".join(pair) for pair in merges] + [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_settings(folder)
    return len(vocabulary)


def byte_alphabet() -> list[str]:
    """CLIP's 256 printable stand-ins for the 256 bytes, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def learn_merges(counts: Counter[str], most: int) -> list[Pair]:
    """Byte-pair merges, the most frequent pair first, until every word is whole or `most` is reached."""
    words = {word: _letters(word) for word in counts}
    merges: list[Pair] = []
    while len(merges) < most:
        pairs = _pair_counts(words, counts)
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in words.items():
            words[word] = _merged(pieces, best)
    return merges


def _word_counts(seed: int) -> Counter[str]:
    rng = random.Random(seed)
    captions = [draw_scene(rng, name).caption for name in THINGS for _ in range(20)]
    words = " ".join(captions).replace(",", " ").split()
    counts = Counter(words)
    counts.update([*BACKGROUNDS, *COMMON_WORDS])
    return counts


def _letters(word: str) -> tuple[str, ...]:
    return (*word[:-1], word[-1] + WORD_END)


def _pair_counts(words: dict[str, tuple[str, ...]], counts: Counter[str]) -> Counter[Pair]:
    pairs: Counter[Pair] = Counter()
    for word, pieces in words.items():
        for pair in pairwise(pieces):
            pairs[pair] += counts[word]
    return pairs


def _merged(pieces: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] = "".join(pair)
        else:
            result.append(piece)
    return tuple(result)


def _write_settings(folder: Path) -> None:
    # Plain strings: the one form that every release of transformers reads alike.
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    for name, content in (("special_tokens_map", special), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
