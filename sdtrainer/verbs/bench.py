"""bench [--steps N] | bench memory | bench settings [RUN.toml] | bench dataset | bench toolbox: measure this
machine.

bench alone: the trainer against a bare loop. bench memory: what runs hold, against what was estimated.
bench settings: what each setting costs on your own model. bench dataset: how long many images take.
bench toolbox: extraction against a plain decomposition, and every tool, on models of full size.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import config as configs
from .. import files
from .. import workspace as workspaces
from ..__main__ import parser
from ..presets import preset
from ..section import UserError, override
from ..workspace import Workspace, create_run
from .train import config_of

if TYPE_CHECKING:
    from ..bench.cells import Cell


def main(argv: Sequence[str]) -> int:
    own = {"memory": _memory, "settings": _settings, "dataset": _dataset, "toolbox": _toolbox}
    own |= {"cell": _cell}
    if argv and argv[0] in own:
        return own[argv[0]](argv[1:])
    return _speed(argv)


def _speed(argv: Sequence[str]) -> int:
    from ..bench.speed import BLOCK, QUIET, measure

    arguments = parser("bench")
    arguments.add_argument("--steps", type=int, default=200, help="of each of the two")
    arguments.add_argument(
        "--preset", default="starter", help="what to train; the small starter shows overhead best"
    )
    arguments.add_argument("settings", nargs="*", help="path=value, laid over the preset")
    given = arguments.parse_intermixed_args(argv)
    values = configs.with_changes(override(preset(given.preset).values, QUIET), given.settings)
    with tempfile.TemporaryDirectory() as home:
        workspace = Workspace(Path(home))
        ours, bare = measure(
            create_run(workspace.runs, configs.build(values)), workspace, given.steps // BLOCK
        )
    print(f"trainer   {1 / ours:.2f} steps/s\nbare loop {1 / bare:.2f} steps/s\nratio     {bare / ours:.3f}")
    return 0


def _memory(argv: Sequence[str]) -> int:
    from ..bench import cells, child, course, report

    arguments = parser("bench")
    arguments.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a small grid")
    arguments.add_argument("--only", default="", help="words that a run's name must hold: lora,1.5")
    arguments.add_argument("--list", action="store_true", help="name the runs and stop")
    arguments.add_argument("--again", action="store_true", help="also what was measured before")
    arguments.add_argument("--estimate", type=Path, metavar="FILE", help="estimate anew what FILE measured")
    arguments.add_argument("--out", type=Path, default=workspaces.PROJECT / "docs" / "measurements")
    given = arguments.parse_args(argv)
    words = [word.strip() for word in given.only.split(",") if word.strip()]
    if given.estimate:
        return _estimate(given.estimate, cells.choose(cells.ON_A_CARD + cells.ON_A_PROCESSOR, words))
    chosen = cells.choose(cells.ON_A_CARD if given.device == "cuda" else cells.ON_A_PROCESSOR, words)
    if given.list:
        print("\n".join(cell.name for cell in chosen))
        return 0
    seen = _seen(given.device)
    file = report.file_for(given.out, seen)
    kept = course.read(file) | {"circumstances": course.circumstances(seen)}
    return _told(course.run(chosen, kept, given.again, child.measure, child.predict), kept, file, len(chosen))


def _estimate(file: Path, chosen: Sequence[Cell]) -> int:
    """Estimate anew what was measured, on this machine or another."""
    from ..bench import child, course

    kept = course.read(file)
    if not kept["cells"]:
        raise UserError(f"{file} holds no measurements.", "Give the .json that bench memory wrote.")
    known = [cell for cell in chosen if cell.name in kept["cells"]]
    return _told(course.estimate(known, kept, child.predict), kept, file, len(known))


def _seen(device: str) -> dict[str, Any]:
    """Look at this machine, from outside. Raises UserError if it has no card and should."""
    from ..bench import child

    seen = child.look()
    if device == "cuda" and seen["device"] != "cuda":
        raise UserError(
            "bench memory: torch finds no NVIDIA card here.",
            "Add --device cpu for a small bench on the processor.",
        )
    return seen | ({"device": "cpu", "card": None} if device == "cpu" else {})


def _told(names: Iterator[str], kept: dict[str, Any], file: Path, total: int) -> int:
    """Tell of each run as it is done, and keep all of them; the last line is the page."""
    from ..bench import report, rows

    began, page = time.monotonic(), report.save(file, kept)
    for number, name in enumerate(names, 1):
        page = report.save(file, kept)
        found = [row for row in rows.rows({name: kept["cells"][name]}) if row.kind == "train"]
        said = "".join(f" {100 * row.error:+.1f} %" for row in found) or " no numbers"
        gone = time.monotonic() - began
        print(f"[{number}/{total}] {name}:{said}, {gone:.0f} s gone", file=sys.stderr, flush=True)
    print(report.as_text(rows.rows(kept["cells"])), file=sys.stderr)
    print(page, flush=True)
    return 0


def _settings(argv: Sequence[str]) -> int:
    from ..bench import child, drawing, outcomes, settings
    from ..fitting import draft

    arguments = parser("bench")
    arguments.add_argument(
        "words",
        nargs="*",
        help="a run file (the starter's preset if not given), then path=value to change it",
    )
    arguments.add_argument("--images", type=int, default=settings.IMAGES, help="shown in each run")
    arguments.add_argument("--json", action="store_true", help="for programs")
    arguments.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the time of a step")
    given = arguments.parse_intermixed_args(argv)
    run = given.words.pop(0) if given.words and "=" not in given.words[0] else None
    values = configs.with_changes(preset("starter").values, given.words)
    config = config_of(Path(run), given.words) if run else configs.build(values)
    home, machine = workspaces.default(), child.machine_of(child.look())
    plan = draft(config, home, machine)[0].plan
    for progress in settings.compare(plan, machine, home, given.images, child.setting):
        if progress.now:
            left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
            said = f"[{progress.done + 1}/{progress.total}] {progress.now}{left}"
            print(said, file=sys.stderr, flush=True)
    if given.picture:
        files.write_text(given.picture, drawing.bars(outcomes.times(progress.found), "Seconds per step"))
    print(outcomes.as_json(progress.found) if given.json else outcomes.as_text(progress.found), flush=True)
    return 0


def _dataset(argv: Sequence[str]) -> int:
    from ..bench import dataset, many_images

    arguments = parser("bench")
    arguments.add_argument("--images", type=int, default=100_000, help="made for this, and removed again")
    given = arguments.parse_args(argv)
    if given.images < 1:
        raise UserError(f"--images is {given.images}.", "Write a number above 0.")
    with tempfile.TemporaryDirectory() as home:
        folder, began = Path(home) / "images", time.monotonic()
        for number in many_images.write(folder, given.images):
            if time.monotonic() - began > 1 or number == given.images:
                began = time.monotonic()
                print(f"{number:,} of {given.images:,} images made", file=sys.stderr, flush=True)
        workspace = Workspace(Path(home) / "workspace")
        print(dataset.as_text(dataset.measure(folder, workspace)), flush=True)
        from ..ui import opening  # not before, as it fills the memory that is measured

        print(opening.as_text(opening.measure(folder, workspace)), flush=True)
    return 0


def _toolbox(argv: Sequence[str]) -> int:
    from ..bench import toolbox
    from ..families import published

    arguments = parser("bench")
    arguments.add_argument("--model", choices=tuple(published.MODELS), default="SD1", help="its structure")
    arguments.add_argument("--rank", type=int, default=32, help="of the LoRA that is extracted")
    arguments.add_argument(
        "--each", type=int, default=0, help="of each shape, how many matrices are decomposed plainly; 0: all"
    )
    given = arguments.parse_args(argv)
    with tempfile.TemporaryDirectory() as home:
        print("Making two models of full size", file=sys.stderr, flush=True)
        base, tuned = toolbox.make(Path(home), given.model)
        done = []
        for verb in toolbox.verbs(base, tuned, given.rank):
            done.append(verb)
            print(f"{verb.name:<18}{verb.seconds:9.1f} s   {verb.peak / 2**30:6.2f} GB", flush=True)
        for plain in toolbox.plain(base, tuned, done[0].found, given.rank, given.each):
            said = f"{plain.decomposed} matrices decomposed plainly, {plain.seconds:.0f} s"
            print(said, file=sys.stderr, flush=True)
        print("\n".join(toolbox.lines(done[0], plain)))
    return 0


def _cell(argv: Sequence[str]) -> int:
    """Used by the app itself: do what the JSON on standard input asks, and answer in JSON."""
    from ..bench import child

    child.serve()
    return 0
