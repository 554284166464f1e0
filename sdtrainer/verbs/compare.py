"""compare [RUN.toml] [path=value ...] [--methods all|lora,full] [--seeds N] [--quick] [--runs DIR]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import config as configs
from .. import workspace
from ..__main__ import parser
from ..config import Config
from ..presets import preset
from ..section import UserError
from .train import config_of

if TYPE_CHECKING:
    from ..compare.contestants import Contestant

STEPS, QUICK_STEPS = 120, 40
"""Of a run without a run file, which all methods together finish in about an hour; and of --quick."""


def main(argv: Sequence[str]) -> int:
    from ..compare.contestants import choose

    arguments = parser("compare")
    arguments.add_argument(
        "words",
        nargs="*",
        help="a run file (the starter's preset if not given), then path=value to change it",
    )
    arguments.add_argument("--methods", default="all", help="all, or some by name: lora,full")
    arguments.add_argument("--seeds", type=int, default=3, help="runs of each method that differ by chance")
    arguments.add_argument(
        "--quick", action="store_true", help="one seed, one learning rate, few steps and pictures"
    )
    arguments.add_argument("--runs", type=Path, help="where the comparison's folder is made")
    given = arguments.parse_intermixed_args(argv)
    run = given.words.pop(0) if given.words and "=" not in given.words[0] else None
    if given.seeds < 1:
        raise UserError(f"--seeds is {given.seeds}.", "Give 1 or more; 3 is usual.")
    contestants = choose(given.methods)
    config = _config(run, given.words, given.quick)
    home = (given.runs or workspace.default().root / "comparisons").expanduser().resolve()
    return _compare(config, contestants, home, given.seeds, given.quick)


def _compare(
    config: Config, contestants: Sequence[Contestant], home: Path, seeds: int, is_quick: bool
) -> int:
    """Compare, write what was found, and print where it is; 1 if a method failed."""
    from ..compare import course, report, sheet
    from ..compare.progress import Progress
    from ..hardware import detect

    course.check(config)
    scale = course.QUICK if is_quick else course.Scale(seeds=seeds)
    progress = Progress(sys.stderr, scale.work(contestants))
    compared = course.Course(config, scale, home, progress)
    now = report.circumstances(detect(), compared.values, scale)
    try:
        outcome = compared.run(contestants, lambda so_far: report.save(compared.root, so_far, now))
    finally:
        progress.close()
    sheet.save(compared.root, compared.home.runs, outcome)
    failed = [score for score in outcome.scores if score.failure]
    for score in failed:
        print(f"{score.title}: {score.failure}", file=sys.stderr)
    print(compared.root / "compare.md", flush=True)
    return 1 if failed else 0


def _config(run: str | None, settings: Sequence[str], is_quick: bool) -> Config:
    """The run file, or the starter's preset with fewer steps, and settings laid over it."""
    if run is not None:
        return config_of(Path(run), [*([f"train.steps={QUICK_STEPS}"] if is_quick else []), *settings])
    steps = f"train.steps={QUICK_STEPS if is_quick else STEPS}"
    return configs.build(configs.with_changes(preset("starter").values, [steps, *settings]))
