"""demo [path=value ...] [--runs DIR]: teach the starter model a new character, and show before and after."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import config as configs
from .. import events, files, workspace
from ..__main__ import parser
from ..events import Validated
from ..presets import preset
from ..workspace import RunFolder, create_run
from .train import run

PICTURE = "before-after.png"


def main(argv: Sequence[str]) -> int:
    arguments = parser("demo")
    arguments.add_argument("settings", nargs="*", help="path=value, laid over the starter's preset")
    arguments.add_argument("--runs", type=Path, help="where run folders are made")
    given = arguments.parse_intermixed_args(argv)
    home = workspace.default()
    config = configs.build(configs.with_changes(preset("starter").values, given.settings))
    folder = create_run(given.runs or home.runs, config)
    exported = run(folder, home)
    if exported is None:
        return 1
    print("Drawing before and after ...", file=sys.stderr)
    print("\n".join(report(folder, exported)))
    print(folder.path / PICTURE)
    print(exported, flush=True)
    return 0


def report(folder: RunFolder, exported: Path) -> list[str]:
    """Save the before/after picture and say what was learnt and what was kept."""
    from .. import verdict
    from ..result import sampler

    base = folder.config().base
    before = verdict.judge(sampler(base), others=verdict.SHOWN_OTHERS)
    after = verdict.judge(sampler(base, exported))
    files.write(folder.path / PICTURE, lambda part: verdict.sheet(before, after, part))
    losses = [event.loss for event, _ in events.read(folder.events_file) if isinstance(event, Validated)]
    fall = 100 * (1 - losses[-1] / losses[0])
    return [
        f"learnt: {after.learnt} of {after.learnt_of} pictures show the robot (before: {before.learnt}); "
        f"validation loss {losses[0]:.3f} -> {losses[-1]:.3f} ({fall:.0f} % lower)",
        f"kept: {after.kept} of {after.kept_of} other things are named rightly",
    ]
