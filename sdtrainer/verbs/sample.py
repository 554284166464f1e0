"""sample RUNFOLDER|FILE --prompt TEXT: draw with a run's result, or an adapter file on its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..__main__ import parser
from ..families import BaseSection
from ..result import config_inside, exported_file, sampler
from ..sample import Request
from ..section import UserError
from ..workspace import RunFolder


def main(argv: Sequence[str]) -> int:
    given = _arguments(argv)
    if given.what.is_dir():
        folder = RunFolder(given.what)
        config, file = folder.config(), exported_file(folder)
    elif given.what.is_file():
        file = given.what
        config = config_inside(file)
    else:
        raise UserError(f"There is no run folder or file '{given.what}'.", "Check the path.")
    base = config.base if config else BaseSection(path="")
    base = base.model_copy(update={"path": given.base or base.path})
    if not base.path:
        raise UserError(f"{file.name} does not say which base model it belongs to.", "Add --base PATH.")
    sample = config.sample if config else None
    drawing = sampler(base, file, given.strength, bool(config and config.noise.zero_terminal_snr))
    facts = drawing.parts.facts
    for index, prompt in enumerate(given.prompt):
        request = Request(
            prompt=prompt,
            negative=given.negative,
            width=given.width or facts.resolution,
            height=given.height or facts.resolution,
            steps=given.steps or (sample.steps if sample else 0) or facts.sampling_steps,
            guidance=given.guidance or (sample.guidance if sample else 0) or facts.guidance,
            seed=given.seed + index,
            clip_skip=config.base.clip_skip if config else 0,
        )
        path = _free(given.out or Path.cwd(), file.stem)
        image = drawing.draw(request)
        files.write(path, lambda part, image=image: image.save(part, format="PNG"))
        print(path, flush=True)
    return 0


def _arguments(argv: Sequence[str]):  # type: ignore[no-untyped-def]
    arguments = parser("sample")
    arguments.add_argument("what", type=Path, help="a run folder, or an adapter file")
    arguments.add_argument(
        "--prompt", action="append", required=True, help="what to draw; may be given several times"
    )
    arguments.add_argument("--negative", default="", help="what the picture should not show")
    arguments.add_argument("--base", help="the base model, if the file does not say")
    arguments.add_argument(
        "--strength", type=float, default=1.0, help="of the adapter; 0 draws with the base alone"
    )
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--steps", type=int, default=0, help="0 takes the run's own")
    arguments.add_argument("--guidance", type=float, default=0.0, help="0 takes the run's own")
    arguments.add_argument("--width", type=int, default=0, help="0 takes the base model's own")
    arguments.add_argument("--height", type=int, default=0, help="0 takes the base model's own")
    arguments.add_argument("--out", type=Path, help="folder for the pictures; the current one if not given")
    given = arguments.parse_args(argv)
    given.what = given.what.expanduser().resolve()
    for name in ("width", "height"):
        if getattr(given, name) % 8 or getattr(given, name) < 0:
            raise UserError(f"--{name} is {getattr(given, name)}.", "Give a multiple of 8.")
    return given


def _free(folder: Path, stem: str) -> Path:
    """A file name that is not taken."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / f"{stem}-{number:03d}.png").exists():
        number += 1
    return path
