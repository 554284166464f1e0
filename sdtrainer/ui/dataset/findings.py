"""How the doctor's report looks: groups that open, and in each the findings with pictures and buttons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...doctor import report
from .. import words
from ..words import picture, tag

PER_PAGE = 12
PICTURES = 4
LIGHTS = {"red": "bad", "yellow": "warn", "green": "good"}
LEVELS = {"bad": ("bad", "Mend"), "warn": ("warn", "Look"), "note": ("idle", "Note")}
NAMES = {"good": "Good", "warn": "Look", "bad": "Problem"}

Copy = Callable[[str], str]
"""From a path in the folder to its thumbnail, empty where there is no picture to show."""


def headline(colour: str, verdict: str) -> str:
    level = LIGHTS[colour]
    return tag("p", tag("span", NAMES[level], f"light {level}") + words.safe(verdict), "found")


def groups(found: Sequence[Mapping[str, Any]], opened: str, page: int, copy: Copy) -> str:
    """Return all groups; the one whose name is `opened` shows its findings."""
    return "".join(_group(group, group["name"] == opened, page, copy) for group in found)


def _group(group: Mapping[str, Any], is_open: bool, page: int, copy: Copy) -> str:
    level, word = LEVELS[group["level"]]
    number = report.number(group)
    title = tag("span", word, f"light {level}") + tag("b", words.safe(group["title"]))
    title += f" ({number:,})" if number else ""
    state = "true" if is_open else "false"
    head = _button("open", title, group["name"], "finding-head", aria_expanded=state)
    return tag("section", head + (_opened(group, page, copy) if is_open else ""), "findings")


def _opened(group: Mapping[str, Any], page: int, copy: Copy) -> str:
    findings, name = group["findings"], group["name"]
    page = max(0, min(page, (len(findings) - 1) // PER_PAGE))  # some may have been answered
    first = page * PER_PAGE
    rows = "".join(_row(name, finding, copy) for finding in findings[first : first + PER_PAGE])
    labels = list(dict.fromkeys(fix["label"] for finding in findings for fix in finding["fixes"]))
    buttons = ""
    if len(findings) > 1:
        buttons = "".join(
            _button("fix-all", f"{words.safe(label)}: all", name, "small", data_fix=label) for label in labels
        )
        buttons += _button("ignore-all", "Ignore all", name, "small")
    pager = _pager(name, page, len(findings))
    return tag("p", words.safe(group["about"]), "quiet") + tag("div", buttons, "buttons") + rows + pager


def _row(name: str, finding: Mapping[str, Any], copy: Copy) -> str:
    files = finding["files"]
    shown = [(path, file) for path in files[:PICTURES] if (file := copy(path))]
    images = "".join(picture(file, path) for path, file in shown)
    if len(files) > PICTURES:
        images += tag("span", f"+{len(files) - PICTURES:,}", "quiet")
    name = report.subject(finding)
    about = tag("b", words.safe(name)) + " " if name else ""
    said = tag("p", about + words.safe(finding["sentence"]))
    where = {"data_file": files[0] if files else ""}
    buttons = "".join(
        _button("fix", words.safe(fix["label"]), name, "small", data_fix=fix["label"], **where)
        for fix in finding["fixes"]
    )
    buttons += _button("ignore", "Ignore", name, "small", **where)
    looks = tag("div", images, "finding-pictures") if images else ""
    return tag("div", looks + tag("div", said + tag("div", buttons, "buttons")), "finding")


def _pager(name: str, page: int, total: int) -> str:
    pages = -(-total // PER_PAGE)
    if pages < 2:
        return ""
    back = _button("page", "Back", name, "small", data_page=page - 1) if page else ""
    on = _button("page", "More", name, "small", data_page=page + 1) if page + 1 < pages else ""
    return tag("div", back + tag("span", f"{page + 1} of {pages}", "quiet") + on, "buttons")


def _button(act: str, inner: str, check: str, class_: str, **data: Any) -> str:
    return tag("button", inner, class_, type="button", data_act=act, data_check=check, **data)
