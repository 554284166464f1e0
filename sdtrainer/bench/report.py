"""What a memory bench writes to be read: the estimate's errors, and every number. Pure but for `save`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from . import drawing
from .course import Kept, write
from .rows import ON_THE_CARD, WANTED, Row, Summary, rows, summaries

_MEANINGS = {
    "cache": "the most bytes of tensors while pictures and captions are encoded",
    "train": "the most bytes of tensors in a training step",
    "sample": "the most bytes of tensors while a picture is drawn",
    "weights": "weights on the card while training",
    "optimizer": "the optimizer's state",
    ON_THE_CARD: "all that is taken from the card while training: what torch reserves, and CUDA's own",
}


def file_for(folder: Path, seen: Mapping[str, Any]) -> Path:
    """Return where the numbers of a machine are kept: memory-<card>.json."""
    name = seen["card"]["name"] if seen["card"] else "cpu"
    return folder / f"memory-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def save(file: Path, kept: Kept) -> Path:
    """Write the numbers, the plot and the page beside it; returns the page."""
    write(file, kept)
    picture, page = file.with_suffix(".svg"), file.with_suffix(".md")
    files.write_text(picture, drawing.scatter(rows(kept["cells"]), f"Estimated and held, {_where(kept)}"))
    files.write_text(page, as_markdown(kept, picture.name))
    return page


def as_markdown(kept: Kept, picture: str) -> str:
    found = rows(kept["cells"])
    parts = [
        [f"# Memory: estimated and measured, {_where(kept)}"],
        list(_how(kept)),
        _summary(summaries(found)),
        [
            f"- **{kind}**: {meaning}."
            for kind, meaning in _MEANINGS.items()
            if any(r.kind == kind for r in found)
        ],
        [f"![Estimated and held bytes of every run]({picture})"] if found else [],
        *(_table(kind, [row for row in found if row.kind == kind]) for kind in _MEANINGS),
        _without_numbers(kept["cells"]),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def as_text(found: Sequence[Row]) -> str:
    """The summary for a console."""
    return "\n".join(
        f"{s.kind:12} {s.within} of {s.count} within {100 * WANTED:.0f} %, median {100 * s.median:.1f} %, "
        f"worst {100 * s.worst.error:+.1f} % ({s.worst.cell})"
        for s in summaries(found)
    )


def _where(kept: Kept) -> str:
    card = kept["circumstances"]["machine"]["card"]
    return card["name"] if card else "a processor"


_ON_A_CARD = (
    "Every run is made as always, for a few steps and a picture, on models of full size whose weights are "
    "made by chance, each in a process of its own. Tensors are what torch's allocator gave out at most "
    "(max_memory_allocated); reserved is what it took from the card (max_memory_reserved)."
)
_ON_A_PROCESSOR = (
    "Every run is made as always, for a few steps and a picture, each in a process of its own. There is no "
    "card: tensors are counted as they are made and freed."
)


def _how(kept: Kept) -> list[str]:
    told, seen = kept["circumstances"], kept["circumstances"]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    on = f"CUDA {seen['cuda']}, driver {told['driver']}; " if seen["card"] else ""
    return [
        _ON_A_CARD if seen["card"] else _ON_A_PROCESSOR,
        f"Measured on {told['date']}; {on}{versions}.",
    ]


def _summary(found: Sequence[Summary]) -> list[str]:
    lines = [
        f"| Number | Runs | Within {100 * WANTED:.0f} % | Median error | Worst |",
        "| --- | --- | --- | --- | --- |",
    ]
    for s in found:
        worst = f"{100 * s.worst.error:+.1f} %: {s.worst.cell}"
        lines.append(f"| {s.kind} | {s.count} | {s.within} | {100 * s.median:.1f} % | {worst} |")
    return lines


def _table(kind: str, found: Sequence[Row]) -> list[str]:
    if not found:
        return []
    head = [
        f"## {kind.capitalize()}",
        "",
        "| Run | Estimated | Measured | Error |",
        "| --- | --- | --- | --- |",
    ]
    return head + [
        f"| {row.cell} | {_size(row.predicted)} | {_size(row.measured)} | {100 * row.error:+.1f} % |"
        for row in found
    ]


def _without_numbers(cells: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, one in cells.items():
        ended = (one["measured"] or {}).get("ended", "")
        if ended:
            lines.append(f"- {name}: out of memory ({_PHASE_WORDS[ended]}).")
        elif one["failed"]:
            lines.append(f"- {name}: failed, {one['failed']}")
    return ["## Without numbers", "", *lines] if lines else []


_PHASE_WORDS = {"cache": "while caching", "train": "while training", "sample": "while drawing"}


def _size(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**28 else f"{value / 2**20:.2f} MiB"
