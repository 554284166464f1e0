"""What was measured, as words, tables and bars: a plan beside its estimate, settings compared. Pure HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..bench import measured
from ..bench.measured import Line, Measurement
from ..bench.outcomes import Comparison, Tried, conclusions
from ..bench.settings import Progress
from . import pictures, words
from .errand import STOPPED
from .words import tag

LINE_WORDS = {measured.WEIGHTS: "Weights", "cache": "Preparing", "train": "Training", "sample": "Drawing"}
LIGHTS = {"confirmed": "good", "contradicted": "bad", "not measurable here": "idle"}


def ended(said: str) -> str:
    """Say why the last try ended early; nothing if it did not."""
    return tag("p", words.safe(said), "found" if said == STOPPED else "bad") if said else ""


def measurement(one: Measurement, lines: Sequence[Line], card: str) -> str:
    """Show a plan's numbers beside what is estimated."""
    phases = [line for line in lines if line.what != measured.WEIGHTS]
    peak = max(phases, key=lambda line: line.measured, default=None)
    head = _ran_out(one, card) if one.measured.ended else ""
    if peak and not head:
        head = tag("p", words.safe(f"Measured on {card}: {_beside(peak)}."), "found")
    rows = [_row(LINE_WORDS[x.what], words.size(x.measured), _estimated(x), _error(x)) for x in lines]
    titles = ("", "Measured", "Estimated", "Off by")
    return (
        head
        + tag("div", _table(titles, rows), "scrolls")
        + tag("p", words.safe(f"{one.date}: {one.plan}."), "quiet")
    )


def _ran_out(one: Measurement, card: str) -> str:
    while_ = {"cache": "preparing", "train": "training", "sample": "drawing"}[one.measured.ended]
    said = f"The memory of {card} ran out while {while_}."
    return tag("p", tag("span", "Too little memory", "light bad") + words.safe(said), "found")


def _beside(line: Line) -> str:
    held = words.size(line.measured)
    if not line.estimated:
        return f"{held}; nothing was estimated"
    return f"{held}, estimated {_estimated(line)} ({_error(line)})"


def _estimated(line: Line) -> str:
    return words.size(line.estimated) if line.estimated else "not known"


def _error(line: Line) -> str:
    if not line.estimated:
        return ""
    part = round(100 * abs(line.error))
    return f"{part} % {'more' if line.error > 0 else 'less'}" if part else "under 1 %"


def progress(now: Progress | None, is_stopping: bool) -> str:
    """Say how far a comparison is, and how long still."""
    if now is None or is_stopping:
        return tag("p", "Stopping …" if is_stopping else "Starting …", "found")
    left = "" if now.seconds_left is None else f", about {words.duration(now.seconds_left)} left"
    bar = pictures.progress(now.done / now.total, "Settings compared")
    return bar + tag("p", words.safe(f"{now.done} of {now.total} done{left}. Now: {now.now}."))


def comparison(found: Comparison) -> str:
    """Show a comparison: bars, table, and what follows of the usual claims."""
    good = [row for row in found.rows if not row.outcome.failure]
    about = f"{found.date}, on {found.machine}. Memory is {found.counted}."
    charts = _chart("Time of a step", ((r, r.outcome.seconds_per_step, _seconds(r)) for r in good))
    charts += _chart("Memory", ((r, r.outcome.peak_bytes, words.size(r.outcome.peak_bytes)) for r in good))
    follows = "".join(
        tag(
            "li",
            tag("span", one.decision, f"light {LIGHTS[one.decision]}")
            + tag("b", words.safe(one.text))
            + tag("ul", words.items(words.safe(reason) + "." for reason in one.words)),
        )
        for one in conclusions(found.rows)
    )
    return (
        tag("ul", follows, "conclusions")
        + tag("div", charts, "charts")
        + table(found)
        + tag("p", words.safe(about), "quiet")
    )


def table(found: Comparison) -> str:
    """Show every number."""
    if not found.rows:
        return ""
    titles = ("Setting", "Step", "Images per second", "Memory", "Loss")
    return tag("div", _table(titles, [_tried(row) for row in found.rows]), "scrolls")


def _tried(row: Tried) -> str:
    one, name = row.outcome, row.setting.name
    if one.failure:
        return tag(
            "tr", tag("th", words.safe(name), scope="row") + tag("td", words.safe(one.failure), colspan=4)
        )
    loss = "-" if one.loss is None else f"{one.loss:.4f}"
    time = f"{_seconds(row)} ± {one.spread:.2g}"
    return _row(name, time, f"{one.images_per_second:.3g}", words.size(one.peak_bytes), loss)


def _seconds(row: Tried) -> str:
    return f"{row.outcome.seconds_per_step:.3g} s"


def _chart(title: str, rows: Iterable[tuple[Tried, float, str]]) -> str:
    told = [(row.setting.name, value, said) for row, value, said in rows]
    return tag("figure", tag("figcaption", title) + pictures.amounts(told)) if told else ""


def _row(name: str, *numbers: str) -> str:
    cells = "".join(tag("td", words.safe(number), "number") for number in numbers)
    return tag("tr", tag("th", words.safe(name), scope="row") + cells)


def _table(titles: Sequence[str], rows: Sequence[str]) -> str:
    first, *others = titles
    head = tag("th", first, scope="col") if first else tag("td", "")
    head += "".join(tag("th", title, "number", scope="col") for title in others)
    return tag("table", tag("tr", head) + "".join(rows), "measured")
