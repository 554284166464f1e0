"""starter STAGE: make the starter model anew, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    from .. import starter

    return starter.main(list(argv))
