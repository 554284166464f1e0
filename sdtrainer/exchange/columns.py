"""Which columns of a Parquet file hold pictures and captions, and what a cell of them says.

Source: https://huggingface.co/docs/datasets/en/about_dataset_features (Image: a struct of bytes and path).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import parquet
from ..data.texts import TEXT_FIELDS
from ..section import UserError
from .pieces import COUNTS

if TYPE_CHECKING:
    import pyarrow as pa

PICTURE, CAPTION, MASK = "image", "text", "loss_mask"
"""What the columns are called that this program writes."""
PICTURES = (PICTURE, "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "file_name")
"""What columns of pictures are called, the likeliest first."""
SHOWN = 12


@dataclass(frozen=True)
class Shard:
    """One file of a data set. `caption` is empty where no column is known to hold captions; `others` could
    hold them, too.
    """

    path: Path
    picture: str
    caption: str
    others: tuple[str, ...]
    more: tuple[str, ...]
    num_rows: int
    num_bytes: int

    @property
    def columns(self) -> list[str]:
        return [self.picture, *filter(None, [self.caption]), *self.more]

    @property
    def about_captions(self) -> str:
        """Where the captions are from, in a sentence."""
        if not self.caption:
            hint = f" 'Caption column' may name one of {_list(self.others)}." if self.others else ""
            return f"There are no captions: no column is called text, caption or prompt.{hint}"
        others = f"; 'Caption column' may name {_list(self.others)} instead" if self.others else ""
        return f"Captions are from the column '{self.caption}'{others}."


def shard(path: Path, column: str) -> Shard:
    """Look at the columns of a file; `column` shall hold the captions, if it is not empty.

    Raises:
        UserError: there is no column of pictures, or not that column; the file is damaged.
    """
    kinds = parquet.columns(path)
    words = {name.casefold(): name for name, kind in kinds.items() if _is_text(kind)}
    pictures = {name.casefold(): name for name, kind in kinds.items() if _is_picture(kind)}
    named = {name: words[name] for name in PICTURES if name in words}
    picture = next(
        (found[name] for found in (pictures, named) for name in PICTURES if name in found),
        next(iter(pictures.values()), None),
    )
    if picture is None:
        what = f"{path.name} holds no pictures: none of its columns ({_list(kinds)}) is one of images."
        raise UserError(what, "Choose a data set with a column 'image'.", "source")
    if column and column not in words.values():
        there = _list(words.values())
        what = f"Caption column: {path.name} has no column of words '{column}'; it has {there}."
        raise UserError(what, "Choose one of these, or leave it empty.", "caption_column")
    usual = [words[name] for name in TEXT_FIELDS if name in words and words[name] != picture]
    caption = column or next(iter(usual), "")
    others = tuple(name for name in usual or words.values() if name not in (caption, picture))
    more = tuple(name for name in (MASK, *COUNTS) if name in kinds)
    return Shard(path, picture, caption, others, more, *parquet.size(path))


def picture_in(cell: Any) -> tuple[str, bytes | None]:
    """Return what a cell says of a picture: where it was or is, and what it holds."""
    if isinstance(cell, dict):
        path, content = cell.get("path"), cell.get("bytes")
        return path if isinstance(path, str) else "", content if isinstance(content, bytes) else None
    return cell if isinstance(cell, str) else "", cell if isinstance(cell, bytes) else None


def words_in(cell: Any) -> str:
    """Return the caption in a cell, the first of several."""
    several = cell if isinstance(cell, list) else [cell]
    return next((text for text in several if isinstance(text, str) and text.strip()), "")


def _is_picture(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        inner = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
        return _is_bytes(inner.get("bytes")) or _is_text(inner.get("path"))
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType | None) -> bool:
    import pyarrow.types as types

    if kind is None:
        return False
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: pa.DataType | None) -> bool:
    import pyarrow.types as types

    if kind is None:
        return False
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name[:60]}'" for name in list(names)[:SHOWN]) or "none"
