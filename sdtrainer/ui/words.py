"""Numbers and lists as a person says them. Pure text; knows nothing of training."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from typing import Any

from .. import files

GIB = 2**30


def duration(seconds: float) -> str:
    """Return "40 s", "3 min", "1 h 20 min"."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def size(num_bytes: float) -> str:
    """Return "640 KB", "37 MB", "7.1 GB" (binary units, as cards are sold)."""
    return files.told_size(num_bytes)


def gigabytes(num_bytes: float) -> str:
    """Return "15.2 GB": sizes that are compared with each other."""
    return f"{num_bytes / GIB:.1f} GB"


def count(number: int, word: str, plural: str = "") -> str:
    """Return "1 image", "1,500 steps"."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def when(at: float) -> str:
    """Return a time of day, with the date unless it is today's."""
    then, today = time.localtime(at), time.localtime()
    pattern = "%H:%M" if then[:3] == today[:3] else "%d %b %Y, %H:%M"
    return time.strftime(pattern, then)


def value(thing: Any) -> str:
    """Return a setting's value for reading."""
    if isinstance(thing, bool):
        return "on" if thing else "off"
    if isinstance(thing, list | tuple):
        return ", ".join(value(x) for x in thing) or "none"
    if isinstance(thing, float):
        return number(thing)
    return "empty" if thing is None or thing == "" else str(thing)


def number(value: float) -> str:
    """Return a number in full, as a person writes it: "0.000005", "0.5", "7"."""
    return f"{value:.12f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else f"{value:g}"


def safe(text: Any) -> str:
    """Return text for HTML."""
    return html.escape(str(text))


def tag(name: str, inner: str, class_: str = "", **attributes: Any) -> str:
    """Return an HTML element. `inner` is HTML; attributes are escaped, data_x becomes data-x."""
    given = ({"class": class_} if class_ else {}) | {k.replace("_", "-"): v for k, v in attributes.items()}
    words = "".join(f' {key}="{safe(v)}"' for key, v in given.items())
    return f"<{name}{words}>{inner}</{name}>"


def picture(file: str, label: str) -> str:
    """Return an <img> of a thumbnail, as gradio serves it."""
    return image(f"gradio_api/file={file}", label)


def image(address: str, label: str) -> str:
    return tag("img", "", src=address, alt=label, loading="lazy").removesuffix("</img>")


def items(rows: Iterable[str]) -> str:
    return "".join(f"<li>{row}</li>" for row in rows)
