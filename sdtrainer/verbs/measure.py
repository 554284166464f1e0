"""measure RUN.toml [path=value ...] [--json]: take one step of a run, and say what it held.

The run's own plan on its base model, at its largest pictures, in a process of its own. Nothing is learnt and
no run folder is made. That the memory runs out is a result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .. import fitting, memory, storage
from .. import workspace as workspaces
from ..__main__ import parser
from ..bench import child, measured
from ..bench.measured import Line, Measurement
from ..hardware import GIB
from .train import config_of

_WORDS = {"weights": "weights", "cache": "preparing", "train": "training", "sample": "drawing"}


def main(argv: Sequence[str]) -> int:
    arguments = parser("measure")
    arguments.add_argument("run", type=Path, help="a run file (TOML)")
    arguments.add_argument("settings", nargs="*", help="path=value, laid over the run file")
    arguments.add_argument("--json", action="store_true", help="for programs")
    given = arguments.parse_intermixed_args(argv)
    config, home = config_of(given.run, given.settings), workspaces.default()
    machine = child.machine_of(child.look())
    fit = fitting.draft(config, home, machine)[1]
    plan = fit.plan
    storage.check(plan, fit.ledger, machine, home.disk_free)
    try:
        found = child.dry(plan, child.Hand(lambda words: print(words, file=sys.stderr, flush=True)))
    except child.Failed as error:
        print(f"The step could not be measured: {error}.", file=sys.stderr)
        return 1
    made = measured.keep(plan, machine, home, found, memory.estimate(plan))
    if given.json:
        print(json.dumps(asdict(made) | {"card": measured.card_name(machine)}, indent=1))
        return 0
    told = [as_text(made, measured.card_name(machine)), measured.trust(measured.load(plan, machine, home))]
    print("\n".join([*filter(None, told), str(measured.file_for(plan, machine, home))]))
    return 0


def as_text(made: Measurement, card: str) -> str:
    head = f"{'':10} {'measured':>12} {'estimated':>12}"
    rows = [f"On {card}: {made.plan}", head, *map(_row, made.lines)]
    if ended := made.measured.ended:
        rows.append(f"The memory ran out while {_WORDS[ended]}.")
    return "\n".join(rows)


def _row(line: Line) -> str:
    numbers = f"{_WORDS[line.what]:10} {_size(line.measured):>12}"
    if not line.estimated:
        return f"{numbers} {'not known':>12}"
    return f"{numbers} {_size(line.estimated):>12} {100 * line.error:+6.1f} %"


def _size(value: int) -> str:
    return f"{value / GIB:.2f} GiB" if value >= GIB / 4 else f"{value / 2**20:.2f} MiB"
