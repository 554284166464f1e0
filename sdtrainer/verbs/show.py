"""show [--markdown]: every setting with its default, what it does and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from ..__main__ import parser
from ..config import knobs
from ..presets import presets
from ..section import Knob


def main(argv: Sequence[str]) -> int:
    arguments = parser("show")
    arguments.add_argument("--markdown", action="store_true", help="as tables for the documentation")
    given = arguments.parse_args(argv)
    print(markdown() if given.markdown else plain())
    return 0


def plain() -> str:
    lines = []
    for knob in knobs():
        kind = f" [{knob.kind}]" if knob.kind else ""
        unit = f" {knob.unit}" if knob.unit else ""
        lines += [
            f"{knob.path}{kind} = {knob.default!r}{unit}",
            f"    {knob.title}: {knob.help}",
            f"    Allowed: {knob.allowed()}.",
        ]
    lines += ["", "Presets:"] + [f"  {p.name}: {p.title}. {p.about}" for p in presets()]
    return "\n".join(lines)


def markdown() -> str:
    lines, section = ["# Settings", ""], ""
    for knob in knobs():
        heading = f"{knob.section}{f' ({knob.kind})' if knob.kind else ''}"
        if heading != section:
            section = heading
            lines += [
                "",
                f"## {heading}",
                "",
                "| setting | default | allowed | what it does |",
                "|---|---|---|---|",
            ]
        lines.append(_row(knob))
    return "\n".join(lines)


def _row(knob: Knob) -> str:
    unit = f" {knob.unit}" if knob.unit else ""
    return f"| `{knob.path}` | `{knob.default!r}`{unit} | {knob.allowed()} | **{knob.title}.** {knob.help} |"
