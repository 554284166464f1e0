"""Which program reads the files of a run, and where to put them, in plain words. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..config import Config
from ..formats.readers import Reader, readers_of
from ..methods import method_of
from . import words
from .words import tag

READS_WORDS = {"yes": "reads it", "no": "does not", "converted": "after converting"}
READS_LIGHTS = {"yes": "good", "no": "idle", "converted": "warn"}
LAYOUT_WORDS = {
    "webui": "The webui file",
    "diffusers": "The diffusers export",
    "pt": "The .pt file",
}

_NAME = re.compile(r"(?<=:)name\b|(?<=[\"'])name(?=[.\-])")
"""Where a sentence of the table names the file, as in <lora:name:1> and "name.safetensors"."""


def table(config: Config, family: str, name: str = "") -> str:
    """Say for each format of a run what each program does with its file. `name` is what the run's files are
    called where that is not the run's own name.
    """
    method = method_of(config.method.kind)
    stem = Path(method.outputs(config.method, name or config.run.name, method.formats[:1])[0]).stem
    found = [(layout, readers_of(method.kind, family, layout)) for layout in config.export.formats]
    return "".join(_table(layout, readers, stem, len(found) > 1) for layout, readers in found if readers)


def _table(layout: str, readers: Sequence[Reader], name: str, is_named: bool) -> str:
    rows = [
        tag(
            "tr",
            tag("th", words.safe(r.program), scope="row")
            + tag("td", tag("span", READS_WORDS[r.reads], f"light {READS_LIGHTS[r.reads]}"))
            + tag("td", words.safe(_NAME.sub(lambda _: name, r.how))),
        )
        for r in readers
    ]
    head = tag("h4", LAYOUT_WORDS[layout]) if is_named else ""
    return head + tag("table", "".join(rows), "readers")
