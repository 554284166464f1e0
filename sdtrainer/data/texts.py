"""Captions as people store them: text files in any encoding, metadata tables, words in file and folder names.

Reads text; knows nothing of images or of what becomes of a caption later.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import parquet

MAX_CAPTION_BYTES = 65536
MAX_REPEATS = 999
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TEXT_FIELDS = (
    "text", "caption", "prompt", "txt", "captions", "prompts", "description", "sentence",
    "additional_feature", "tags",
)  # fmt: skip
"""What columns of captions are called, the likeliest first."""
ROWS_AT_ONCE = 1024

CAMERA_WORDS = frozenset(
    word
    for line in (
        "img image photo photos picture pic dsc dscn dscf pxl mvimg wp whatsapp screenshot screen shot scan",
        "frame untitled unnamed download file copy final new signal telegram at am pm",
        "edited crop cropped resized",
    )
    for word in line.split()
)


def decode(content: bytes) -> str:
    """Return text from bytes: by byte-order mark, else UTF-8, else Windows-1252 (from older editors)."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def read_caption(path: Path) -> str:
    """Return a caption file as one line."""
    return one_line(decode(path.read_bytes()))


def one_line(text: str) -> str:
    """Return text without line breaks, NULs and half characters, which no file could hold."""
    return " ".join(text.replace("\0", "").encode("utf-8", "replace").decode().split())


@dataclass(frozen=True)
class Metadata:
    """A metadata table: caption by path relative to the image folder, and how many rows could not be used."""

    captions: dict[str, str]
    num_bad_rows: int


def read_metadata(root: Path, path: str) -> Metadata:
    """Read a table: `file_name` relative to it, and one of TEXT_FIELDS. Raises OSError, BadTable."""
    folder, captions, num_bad_rows = posixpath.dirname(path), {}, 0
    for row in table_rows(root / path, ("file_name", *TEXT_FIELDS)):
        name, text = row.get("file_name"), next((row[f] for f in TEXT_FIELDS if row.get(f) is not None), None)
        if isinstance(name, str) and isinstance(text, str):
            captions[same_path(posixpath.join(folder, name.replace("\\", "/")))] = one_line(text)
        else:
            num_bad_rows += 1
    return Metadata(captions, num_bad_rows)


def table_rows(path: Path, names: Collection[str]) -> Iterable[dict[str, Any]]:
    """Return the rows of one of METADATA_NAMES; of a Parquet table only the columns of these names.

    Raises: OSError, BadTable.
    """
    match path.suffix.lower():
        case ".parquet":
            there = [name for name in parquet.columns(path) if name in names]
            return parquet.rows(path, there, ROWS_AT_ONCE)
        case ".jsonl":
            return _json_rows(decode(path.read_bytes()))
        case _:
            return _csv_rows(decode(path.read_bytes()))


def same_path(path: str) -> str:
    """Return the one spelling of a relative path: no ./ and composed letters (macOS decomposes them)."""
    return unicodedata.normalize("NFC", posixpath.normpath(path))


def caption_of_name(stem: str) -> str:
    """Return the words of a file name as A1111 does: no number in front, and no copy's number behind."""
    stem = re.sub(r"^[-_\d\s.]+", "", stem)
    stem = re.sub(r"[-_\s]*(\(\d+\)|[-_\s]\d+)$", "", stem)
    return one_line(stem.replace("_", " "))


def describes(stem: str) -> bool:
    """Tell whether a file name is a description and no camera's number: two words that no camera writes."""
    name = caption_of_name(stem)
    words = [word for word in re.findall(r"[^\W\d_]+", name) if word.casefold() not in CAMERA_WORDS]
    return not re.search(r"\d", name) and len(words) >= 2 and max(map(len, words)) >= 3


def repeats_of_folder(name: str) -> tuple[int, str] | None:
    """Return (repeats, class words) of a kohya folder name such as "10_ohwx man"; None for any other name.

    A number beyond MAX_REPEATS is part of the name: "2024_holiday" does not ask for 2024 repeats.
    """
    match = re.match(r"(\d+)_(.*)$", name)
    return (int(match[1]), match[2].strip()) if match and int(match[1]) <= MAX_REPEATS else None


def _json_rows(content: str) -> list[dict[str, Any]]:
    """Return the objects of the lines; a line that holds none counts as an empty one."""
    rows = []
    for line in content.split("\n"):  # not splitlines: JSON strings may hold other line separators
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            rows.append(row if isinstance(row, dict) else {})
    return rows


def _csv_rows(content: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        rows.extend(csv.DictReader(io.StringIO(content.replace("\0", ""))))
    except csv.Error:
        rows.append({})
    return rows
