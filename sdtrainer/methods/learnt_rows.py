"""A table of token embeddings with learnt rows at its end.

Shapes: K learnt rows, D width of the text encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import embedding


class LearntRows(torch.nn.Module):
    """Looks up `rows` for the ids from `first` on, and the frozen table for those below.

    The table itself stays untouched, and an optimizer sees K x D numbers. `tokenizer` is the one that the
    text encoder had before, None on the meta device.
    """

    def __init__(
        self, table: torch.nn.Embedding | LearntRows, rows: torch.Tensor, first: int, tokenizer: Any
    ) -> None:
        super().__init__()
        self.table, self.first, self.tokenizer = table, first, tokenizer
        self.rows = torch.nn.Parameter(rows)
        self.register_buffer("usual_norm", mean_norm(self.weight), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table, (words, D)."""
        return self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(..., T) ids to (..., T, D) in the table's precision."""
        is_learnt = ids >= self.first
        known = self.table(ids.masked_fill(is_learnt, 0))
        learnt = embedding((ids - self.first).clamp(min=0), self.rows)  # gradients, be they 0, each time
        return torch.where(is_learnt.unsqueeze(-1), learnt.to(known.dtype), known)

    def norm_error(self) -> torch.Tensor:
        """(mean norm of the rows - mean norm of the table)^2, a single number."""
        return (mean_norm(self.rows) - self.usual_norm).square()


def mean_norm(vectors: torch.Tensor) -> torch.Tensor:
    """The mean length of (N, D) vectors, in fp32."""
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32).mean()
