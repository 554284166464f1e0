"""Textual inversion: the model stays as it is, and a new word is learnt (Gal et al. 2022,
https://arxiv.org/abs/2208.01618, eq. 2: v* = arg min E |eps - eps_theta(z_t, t, c_theta(y))|^2).

Owns the settings, how a word gets vectors of its own in tokenizer and text encoder, and its files.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..formats import embedding
from ..seams import GOALS, Card, ExportOrder, Facts, LearningRates, Method, ParamGroup, Parts, Precision
from ..section import Section, UserError, knob

if TYPE_CHECKING:
    import torch

    from .learnt_rows import LearntRows

RANDOM, RANDOM_WORDS = "random", "random words"
_HEADER_BYTES = 250


class TextualInversionSection(Section):
    """New words whose meaning is learnt; nothing in the model changes."""

    kind: Literal["textual_inversion"] = "textual_inversion"
    tokens: list[str] = knob(
        ["<mine>"],
        "New words",
        "The words that will call up what you teach. Invent words such as <mine>: one that the "
        "model knows is refused. While no trigger word is given, the first one is it.",
        level="basic",
        lines=2,
    )
    vectors: int = knob(
        4,
        "Vectors per word",
        "How much one word can hold: 1-4 for an object, 4-8 for a person, up to 16 for a style. Each takes "
        "the place of one of the 75 words of a prompt; too many learn the pictures by heart.",
        level="basic",
        ge=1,
        le=75,
    )
    init: list[str] = knob(
        ["*"],
        "Begin from",
        "Text that comes near what you teach, such as 'cat': its words are spread over the vectors. One text "
        "for all new words, or one for each. 'random words' begins from words drawn by chance, 'random' from "
        "numbers. A good beginning saves half the steps.",
        level="basic",
        lines=2,
    )
    init_from: str = knob(
        "",
        "Begin from a file",
        "An embedding to train further, as .safetensors or .pt, with as many vectors as one word has here. "
        "It takes the place of the text above.",
        is_path=True,
    )
    norm_weight: float = knob(
        0.0,
        "Keep usual length",
        "Pulls the average length of the learnt vectors towards that of ordinary words, which keeps the new "
        "word from drowning the rest of a prompt. 0 is off; 1-100 is usual.",
        ge=0,
        le=10000,
    )


class TextualInversion(Method):
    kind = "textual_inversion"
    title = "Textual inversion"
    Section = TextualInversionSection
    card = Card(
        about="Invents a word and learns what it must mean for the model to draw your pictures. The model "
        "itself stays as it is: the file is a few kilobytes, and works with other models of the same kind.",
        pros=("a file of kilobytes", "cannot harm the model", "several words go into one prompt"),
        cons=("shows only what the model can draw already", "learns more slowly than LoRA", "weak on faces"),
        uses=("an object", "a style", "a negative prompt in one word"),
        size="3-30 KB",
    )
    formats = ("webui", "pt", "diffusers")
    lrs = dict.fromkeys(GOALS, LearningRates(5e-3, 5e-3))

    def suits(self, section: TextualInversionSection, facts: Facts) -> None:
        _check_words(section.tokens)
        if len(section.init) not in (1, len(section.tokens)) or not all(t.strip() for t in section.init):
            raise UserError(
                f"Begin from: there are {len(section.init)} lines for {len(section.tokens)} new words.",
                "Write one line for all of them, or one line for each, none of them empty.",
                "method.init",
            )
        if section.init_from:
            _check_beginning(section, facts)

    def trains(self, section: TextualInversionSection, facts: Facts) -> tuple[str, ...]:
        return facts.learning_encoders

    def words(self, section: TextualInversionSection) -> tuple[str, ...]:
        return tuple(section.tokens)

    def add_words(self, parts: Parts, section: TextualInversionSection) -> None:
        for word in section.tokens:
            if any(len(_ids(tokenizer, word)) == 1 for tokenizer in _tokenizers(parts).values()):
                raise UserError(
                    f"New words: '{word}' is a word that the model knows already.",
                    f"Invent one, such as <{word}>.",
                    "method.tokens",
                )
        _name_rows(parts, dict.fromkeys(section.tokens, section.vectors))

    def attach(self, parts: Parts, section: TextualInversionSection, lrs: LearningRates) -> list[ParamGroup]:
        before = dict(parts.tokenizers)
        self.add_words(parts, section)
        groups = []
        for place, encoder in enumerate(parts.facts.learning_encoders):
            rows = _beginning(parts, encoder, before.get(encoder), section, place)
            learnt = _put_rows(parts, encoder, rows, before.get(encoder))
            groups.append(ParamGroup(encoder.replace("_", " "), [learnt.rows], lrs.text_encoder))
        return groups

    def penalty(self, parts: Parts, section: TextualInversionSection) -> torch.Tensor | None:
        """weight x (mean norm of the learnt vectors - mean norm of the others)^2, averaged over encoders."""
        if not section.norm_weight:
            return None
        return section.norm_weight * sum(table.norm_error() for table in _tables(parts)) / len(_tables(parts))

    def detach(self, parts: Parts, section: TextualInversionSection) -> None:
        for name in parts.facts.learning_encoders:
            encoder = parts.modules[name]
            learnt = encoder.get_input_embeddings()
            encoder.set_input_embeddings(learnt.table)
            if learnt.tokenizer is not None:
                parts.tokenizers[name] = learnt.tokenizer
        for word in section.tokens:
            parts.placeholders.pop(word, None)

    def outputs(self, section: TextualInversionSection, name: str, formats: Sequence[str]) -> tuple[str, ...]:
        stems = _stems(section.tokens, name)
        return tuple(stem + embedding.ENDINGS[layout] for layout in formats for stem in stems)

    def exported_bytes(self, parts: Parts, section: TextualInversionSection, precision: Precision) -> int:
        """The same in every precision: files of this size are always fp32."""
        return sum(4 * t.rows.numel() for t in _tables(parts)) + _HEADER_BYTES * len(section.tokens)

    def provenance(self, section: TextualInversionSection) -> dict[str, Any]:
        return {}  # such a file has no rank

    def export(self, parts: Parts, section: TextualInversionSection, order: ExportOrder) -> list[Path]:
        learnt = [table.rows.detach().split(section.vectors) for table in _tables(parts)]
        vectors = list(zip(*learnt, strict=True))
        written = []
        for layout in order.formats:
            names = self.outputs(section, order.name, (layout,))
            for word, of_word, name in zip(section.tokens, vectors, names, strict=True):
                others = tuple(other for other in names if other != name)
                content = embedding.Embedding(word, of_word, others)
                embedding.write(layout, order.folder / name, content, order.metadata)
                written.append(order.folder / name)
        return written

    def reads(self, file: Path) -> bool:
        return embedding.is_one(file)

    def put_on(self, parts: Parts, file: Path, strength: float) -> None:
        """Make the word of an embedding usable in prompts, and the other words of the same run if their files
        lie beside it. A word has no strength: 0 leaves it out, 1 puts it in.
        """
        if strength not in (0, 1):
            raise UserError(
                f"Strength: it is {strength:g}, and a learnt word has none.",
                "Leave it at 1; or use 0 to draw without the word.",
            )
        if not strength:
            return
        found = embedding.read(file)
        _put_word(parts, found.word or file.stem, found, file)
        for other in (file.with_name(name) for name in found.beside):
            if other.is_file():
                found = embedding.read(other)
                _put_word(parts, found.word or other.stem, found, other)


METHOD = TextualInversion()


def _check_words(words: Sequence[str]) -> None:
    """Raise UserError unless the words can be told apart, in a text and as file names."""
    lowered = [word.lower() for word in words]
    wrong = {
        "there is none": not words,
        "each must be one word, without spaces": any(not word or word.split() != [word] for word in words),
        "one stands inside another": any(
            a in b for i, a in enumerate(lowered) for j, b in enumerate(lowered) if i != j
        ),
        "two differ in signs alone": len(set(_stems(words, ""))) < len(words),
    }
    for reason, is_so in wrong.items():
        if is_so:
            raise UserError(
                f"New words: {', '.join(words) or 'empty'}; {reason}.",
                "Write words such as <cat1> and <dog1>, one per line.",
                "method.tokens",
            )


def _check_beginning(section: TextualInversionSection, facts: Facts) -> None:
    file = Path(section.init_from).expanduser()
    if not file.is_file():
        raise UserError(f"Begin from a file: there is no {file}.", "Choose a file.", "method.init_from")
    if len(section.tokens) > 1:
        raise UserError(
            f"Begin from a file: it is for one word, and there are {len(section.tokens)} new words.",
            "Keep one of them, or begin from text.",
            "method.init_from",
        )
    found = embedding.read(file)
    widths = [facts.config[name]["hidden_size"] for name in facts.learning_encoders]
    _check_fit(found, len(widths), sum(widths), file)
    if len(found.vectors[0]) != section.vectors:
        raise UserError(
            f"Vectors per word: it is {section.vectors}, and {file.name} has {len(found.vectors[0])}.",
            f"Write {len(found.vectors[0])}.",
            "method.vectors",
        )


def _check_fit(found: embedding.Embedding, num_encoders: int, width: int, file: Path) -> None:
    """Raise UserError unless the embedding has vectors for each encoder, together as wide as the text."""
    theirs = sum(v.shape[-1] for v in found.vectors)
    if len(found.vectors) != num_encoders or theirs != width:
        raise UserError(
            f"{file.name} is made for a text {theirs} wide; that of this base model is {width}.",
            "Choose the base model it was trained on (Stable Diffusion 1: 768, 2: 1024, SDXL: 2048).",
        )


def _stems(words: Sequence[str], name: str) -> list[str]:
    """File names without ending: the run's for one word, else with the word's letters added."""
    if len(words) == 1:
        return [name]
    return [f"{name}-{re.sub(r'[^a-z0-9-]+', '', word.lower()) or 'word'}" for word in words]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _name_rows(parts: Parts, counts: Mapping[str, int]) -> None:
    """Give each word as many tokens as it has vectors, in copies of the tokenizers.

    The tokens' own names are such as nobody writes; they end where the vocabulary of every encoder ended.
    """
    from transformers import AddedToken

    start = sum(len(text.split()) for text in parts.placeholders.values())
    for word, count in counts.items():
        names = [f"<|learnt{number}|>" for number in range(start, start + count)]
        parts.placeholders[word] = " ".join(names)
        start += count
    names = [name for word in counts for name in parts.placeholders[word].split()]
    for encoder, tokenizer in _tokenizers(parts).items():
        parts.tokenizers[encoder] = copy.deepcopy(tokenizer)
        parts.tokenizers[encoder].add_tokens([AddedToken(name, normalized=False) for name in names])


def _put_rows(parts: Parts, name: str, rows: torch.Tensor, tokenizer: Any) -> LearntRows:
    """Put rows (K, D) behind the token table of an encoder, for the ids behind `tokenizer`'s vocabulary."""
    from .learnt_rows import LearntRows

    encoder = parts.modules[name]
    table = encoder.get_input_embeddings()
    first = len(tokenizer) if tokenizer is not None else table.weight.shape[0]
    learnt = LearntRows(table, rows.to(table.weight.device).float(), first, tokenizer)
    encoder.set_input_embeddings(learnt)
    return learnt


def _put_word(parts: Parts, word: str, found: embedding.Embedding, file: Path) -> None:
    widths = [
        parts.modules[name].get_input_embeddings().weight.shape[1] for name in parts.facts.learning_encoders
    ]
    _check_fit(found, len(widths), sum(widths), file)
    before = dict(parts.tokenizers)
    _name_rows(parts, {word: len(found.vectors[0])})
    for name, vectors in zip(parts.facts.learning_encoders, found.vectors, strict=True):
        _put_rows(parts, name, vectors, before[name]).requires_grad_(False)


def _beginning(
    parts: Parts, encoder: str, tokenizer: Any, section: TextualInversionSection, place: int
) -> torch.Tensor:
    """The rows (K, D) from which an encoder's words begin; without values where there is no tokenizer."""
    import torch

    weight = parts.modules[encoder].get_input_embeddings().weight
    if tokenizer is None:
        return torch.empty(len(section.tokens) * section.vectors, weight.shape[1], device=weight.device)
    if section.init_from:
        return embedding.read(Path(section.init_from).expanduser()).vectors[place]
    texts = section.init * (len(section.tokens) if len(section.init) == 1 else 1)
    return torch.cat(
        [_rows_like(text.strip(), weight.detach(), tokenizer, section.vectors) for text in texts]
    )


def _rows_like(text: str, weight: torch.Tensor, tokenizer: Any, count: int) -> torch.Tensor:
    """`count` rows from a text: vector i begins as its token i x tokens / count, rounded down."""
    import torch

    if text == RANDOM:
        return torch.randn(count, weight.shape[1]).to(weight.device) * weight.float().std()
    if text == RANDOM_WORDS:
        return weight[torch.randint(len(weight), (count,)).to(weight.device)].float()
    ids = _ids(tokenizer, text)
    return weight[[ids[number * len(ids) // count] for number in range(count)]].float()


def _tables(parts: Parts) -> list[LearntRows]:
    return [parts.modules[name].get_input_embeddings() for name in parts.facts.learning_encoders]


def _tokenizers(parts: Parts) -> dict[str, Any]:
    """Of the text encoders that learn, as far as they are loaded."""
    return {name: t for name, t in parts.tokenizers.items() if name in parts.facts.learning_encoders}
