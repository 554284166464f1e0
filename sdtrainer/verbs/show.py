"""show [--markdown]: every setting with its default, what it does and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tomlkit

from ..__main__ import parser
from ..config import knobs
from ..methods import METHODS
from ..presets import presets
from ..section import Knob

_INTRODUCTION = """\
# Settings

Made by `python -m sdtrainer show --markdown`; a test holds it up to date.

A run file is TOML with one table for each section below, such as `[train]`; what it leaves out keeps its
default. On the command line `path=value` words are laid over it: `method.rank=8`, `data.trigger="zib robot"`.
Lengths are steps (`1500`), epochs (`"10 epochs"`) or a part of the run (`"25%"`)."""


def main(argv: Sequence[str]) -> int:
    arguments = parser("show")
    arguments.add_argument("--markdown", action="store_true", help="as tables for the documentation")
    given = arguments.parse_args(argv)
    print(markdown() if given.markdown else plain())
    return 0


def plain() -> str:
    lines = [f"method.kind = {as_toml(METHODS[0])}", f"    Method. Allowed: one of {', '.join(METHODS)}."]
    for knob in knobs():
        kind = f" [{knob.kind}]" if knob.kind else ""
        lines += [
            f"{knob.path}{kind} = {_default(knob)}",
            f"    {knob.title}: {knob.help}",
            f"    Allowed: {knob.allowed()}.",
        ]
    lines += ["", "Presets:"] + [f"  {p.name}: {p.title}. {p.about}" for p in presets()]
    return "\n".join(lines)


def markdown() -> str:
    lines, section = [_INTRODUCTION], ""
    for knob in knobs():
        heading = f'{knob.section} (kind = "{knob.kind}")' if knob.kind else knob.section
        if heading != section:
            section = heading
            table = ["| setting | default | allowed | what it does |", "|---|---|---|---|"]
            lines += ["", f"## {heading}", "", *table]
        lines.append(_row(knob))
    lines += [
        "",
        "## Presets",
        "",
        "| preset | what it is for | where its values come from |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{p.name}` | **{_cell(p.title)}.** {_cell(p.about)} | {_cell(p.source)} |" for p in presets()
    ]
    return "\n".join(lines)


def as_toml(value: Any) -> str:
    """Return a value as it is written in a run file."""
    return tomlkit.item(value).as_string()


def _row(knob: Knob) -> str:
    what = f"**{knob.title}.** {_cell(knob.help)}"
    return f"| `{knob.path}` | `{_default(knob)}` | {_cell(knob.allowed())} | {what} |"


def _default(knob: Knob) -> str:
    return f"{as_toml(knob.default)} {knob.unit}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
