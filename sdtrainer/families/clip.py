"""CLIP text encoders: captions as windows of 77 tokens, and the layer at which a text is taken.

Shapes: B texts, T tokens, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..seams import Parts

if TYPE_CHECKING:
    import torch

WINDOW = 77
_OLD_END = 2
"""What older configs say is the end of text; the true one is the last word of CLIP's vocabulary."""


def tokenize(parts: Parts, captions: Sequence[str], chunks: int) -> dict[str, torch.Tensor]:
    """Return token ids by text encoder of CLIP, (B, chunks x 77)."""
    import torch

    texts = [parts.written_out(caption) for caption in captions]
    return {
        encoder: torch.tensor(
            [_windows(parts.tokenizers[encoder], text, chunks) for text in texts], dtype=torch.long
        )
        for encoder in parts.facts.learning_encoders
    }


def count_tokens(parts: Parts, caption: str) -> int:
    """Return how many tokens a caption has; the encoders of a model share their words."""
    tokenizer = parts.tokenizers[parts.facts.encoders[0]]
    return len(tokenizer(parts.written_out(caption), add_special_tokens=False).input_ids)


def run(encoder: torch.nn.Module, ids: torch.Tensor, keep_layers: bool) -> Any:
    """Run the windows of (B, T) ids through an encoder: transformers' output, if asked with what every layer
    said as `hidden_states`.
    """
    return encoder(ids.reshape(-1, WINDOW), output_hidden_states=keep_layers)


def joined(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Put what was said of the windows of (B, T) ids one behind the other: (B, T, D)."""
    return hidden.reshape(*ids.shape, -1)


def pooled(encoder: torch.nn.Module, output: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the projected end of text, (B, P); of several windows that of the first."""
    end = encoder.config.eos_token_id
    end = encoder.config.vocab_size - 1 if end == _OLD_END else end
    return encoder.text_projection(at_end(joined(output.last_hidden_state, ids), ids, end))


def at_end(hidden: torch.Tensor, ids: torch.Tensor, end: int) -> torch.Tensor:
    """Return what stands at the first end of text in each row: (B, T, D), (B, T) to (B, D)."""
    import torch

    rows = torch.arange(len(ids), device=ids.device)
    return hidden[rows, (ids == end).int().argmax(-1)]


def _windows(tokenizer: Any, text: str, chunks: int) -> list[int]:
    """Token ids of a text as `chunks` windows of start, 75 tokens, end, padding."""
    ids, row = tokenizer(text, add_special_tokens=False).input_ids, []
    for chunk in range(chunks):
        words = ids[chunk * (WINDOW - 2) : (chunk + 1) * (WINDOW - 2)]
        padding = [tokenizer.pad_token_id] * (WINDOW - 2 - len(words))
        row += [tokenizer.bos_token_id, *words, tokenizer.eos_token_id, *padding]
    return row
