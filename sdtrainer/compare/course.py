"""The course of a comparison: which runs are made, in which order, and how it goes on after a kill.

Every run is an ordinary run folder, named by what it is; what was measured of it lies in it as trial.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from .. import config as configs
from .. import files, workspace
from ..config import Config
from ..events import Failed
from ..families import STARTER
from ..section import UserError, override
from ..starter.prompts import ROBOT_PROMPTS, WORLD_PROMPTS
from ..training.setup import decide
from ..workspace import RunFolder, Workspace
from . import child, measure, pictures
from .contestants import Contestant
from .numbers import Losses, Named, Score, Trial, best
from .progress import Progress

SHARED = {"sample.prompts": [], "train.validate_every": "0", "checkpoint.every": "50%", "checkpoint.keep": 1}
"""What no contestant decides: nothing is drawn or measured while training."""
SECOND_BASE = {"method.kind": "full", "optim.lr": 1e-4}
"""How the second base is made from the first."""
FIRST_SEED = 1
JUDGING = 0.4
"""How long judging takes, as a part of a training."""


@dataclass(frozen=True)
class Scale:
    """How much is done beside training; without `has_grid` only the usual learning rate is tried."""

    seeds: int = 3
    has_grid: bool = True
    num_robots: int = len(ROBOT_PROMPTS)
    num_others: int = len(WORLD_PROMPTS)
    drawing_steps: int = 10

    def rates(self, contestant: Contestant) -> tuple[float, ...]:
        return contestant.rates if self.has_grid else contestant.rates[1:2]

    def work(self, contestants: Sequence[Contestant]) -> float:
        """Return how much there is to do for them, in trainings."""
        trials = sum(len(self.rates(c)) + self.seeds - 1 for c in contestants)
        return 1 + trials + JUDGING * (2 + self.seeds * len(contestants))


QUICK = Scale(seeds=1, has_grid=False, num_robots=4, num_others=8)


@dataclass(frozen=True)
class Outcome:
    """All that was measured. `second_named` is what the second base draws by itself."""

    steps: int
    batch_size: int
    scores: tuple[Score, ...]
    base_losses: Losses
    base_named: Named
    second_named: Named
    prompts: tuple[str, ...]


_TRIAL, _OUTCOME = TypeAdapter(Trial), TypeAdapter(Outcome)
Train = Callable[[RunFolder, Workspace, child.Tell], int]


class Course:
    """A comparison in a folder below `home`, which is a workspace of its own.

    The same settings lead to the same folder, whichever methods and however many seeds: what is there is
    taken, what is missing is made.
    """

    def __init__(
        self, config: Config, scale: Scale, home: Path, progress: Progress, train: Train = child.train
    ) -> None:
        self.scale, self.progress, self._train = scale, progress, train
        self.values = override(config.values(), SHARED)
        self._eyes = measure.Eyes(config.base.path, scale.num_robots, scale.num_others, scale.drawing_steps)
        identity = {"scale": asdict(replace(scale, seeds=0)), "second": SECOND_BASE, **self.values}
        self.root = home / f"{config.run.name}-{fingerprint(identity)}"
        self.home = Workspace(self.root)
        self._others = self.root / "pictures" / "others"

    def run(self, contestants: Sequence[Contestant], save: Callable[[Outcome], None]) -> Outcome:
        """Train and measure all of them; `save` gets what there is after each."""
        self.progress.begin("drawing other things")
        pictures.draw_others(self._others, self._eyes.others, self._eyes.base)
        pictures.restyle(self._others, self.root / "pictures" / "brown")
        second = self._second_base()
        outcome = self._bases(second)
        for contestant in contestants:
            outcome = replace(outcome, scores=(*outcome.scores, self._score(contestant, second)))
            save(outcome)
        return outcome

    def _score(self, contestant: Contestant, second: RunFolder) -> Score:
        """All learning rates with the first seed; the best of them with the others."""
        name, title = contestant.name, contestant.title
        grid = tuple(self._trial(contestant, rate, FIRST_SEED) for rate in self.scale.rates(contestant))
        chosen = best(grid)
        if chosen.failure:
            return Score(name, title, grid, (chosen,))
        seeds = range(FIRST_SEED + 1, FIRST_SEED + self.scale.seeds)
        runs = [chosen, *(self._trial(contestant, chosen.rate, seed) for seed in seeds)]
        judged = tuple(self._judged(contestant, run, second) for run in runs)
        return Score(name, title, tuple(judged[0] if one is chosen else one for one in grid), judged)

    def _trial(self, contestant: Contestant, rate: float, seed: int) -> Trial:
        """Train, unless it is done, and measure cost and losses."""
        settings = dict(contestant.settings) | {"optim.lr": rate, "train.seed": seed}
        folder = self._folder(f"{contestant.name}-{rate:g}-seed{seed}", settings)
        self.progress.begin(f"{contestant.title}, learning rate {rate:g}, seed {seed}")
        kept = _kept(folder)
        if kept is None:
            kept = self._measured(folder, rate, seed)
            if not kept.failure:
                _keep(folder, kept)
                shutil.rmtree(folder.checkpoints, ignore_errors=True)
            self.progress.end(1, True)
        else:
            self.progress.end(1, False)
        return kept

    def _measured(self, folder: RunFolder, rate: float, seed: int) -> Trial:
        peak = self._train(folder, self.home, self.progress.tell)
        trial, ended = Trial(rate, seed, folder.name), child.ending(folder)
        if isinstance(ended, Failed):
            return replace(trial, failure=f"{ended.what} {ended.hint}".strip())
        file = folder.path / ended.path
        try:
            losses = measure.losses(folder, file, self._others, self.home)
        except UserError as error:
            return replace(trial, failure=str(error))
        return replace(trial, cost=measure.cost(folder, file, peak), losses=losses)

    def _judged(self, contestant: Contestant, trial: Trial, second: RunFolder) -> Trial:
        """Have the judge name what a trial draws, unless it is done or there is nothing to judge."""
        if trial.failure:
            return trial
        self.progress.begin(f"{contestant.title}, seed {trial.seed}: looking at pictures")
        is_new = trial.named is None
        if is_new:
            folder = RunFolder(self.home.runs / trial.folder)
            laid_on = None if contestant.is_whole else _file(second)
            named = self._eyes.named(_file(folder), laid_on, folder.path / "judged")
            trial = replace(trial, named=named)
            _keep(folder, trial)
        self.progress.end(JUDGING, is_new)
        return trial

    def _second_base(self) -> RunFolder:
        """Train the base further on brown pictures, unless it is done."""
        changes = {"data.folder": str(self.root / "pictures" / "brown"), "data.validation_folder": ""}
        folder = self._folder("second-base", SECOND_BASE | changes)
        self.progress.begin("making the second base model")
        is_new = not any(folder.output.iterdir())
        if is_new:
            self._train(folder, self.home, self.progress.tell)
        ended = child.ending(folder)
        if isinstance(ended, Failed):
            raise UserError(f"The second base model could not be made: {ended.what}", ended.hint)
        self.progress.end(1, is_new)
        return folder

    def _bases(self, second: RunFolder) -> Outcome:
        """What the base models do without any contestant."""
        self.progress.begin("looking at the base models")
        # a plan is needed to measure by; which method it would train does not matter
        folder = self._folder("base", {})
        plan = decide(folder, self.home).plan
        path = self.root / "bases.json"
        is_new = not path.exists()
        if is_new:
            outcome = Outcome(
                steps=plan.total_steps,
                batch_size=plan.batch_size,
                scores=(),
                base_losses=measure.losses(folder, None, self._others, self.home),
                base_named=self._eyes.named(None, _file(second), self.root / "judged"),
                second_named=self._eyes.named(_file(second), None, self.root / "judged-second"),
                prompts=self._eyes.shown_prompts(),
            )
            files.write_bytes(path, _OUTCOME.dump_json(outcome, indent=1))
        self.progress.end(2 * JUDGING, is_new)
        return _OUTCOME.validate_json(path.read_bytes())

    def _folder(self, name: str, settings: Mapping[str, Any]) -> RunFolder:
        """The run folder of these settings: there already, or new."""
        values = override(self.values, settings)
        full = f"{name}-{fingerprint(values)}"
        path = self.home.runs / full
        config = configs.build(override(values, {"run.name": full}))
        return RunFolder(path) if path.exists() else workspace.create_run(self.home.runs, config)


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return a short name for settings: the same settings, the same name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def check(config: Config) -> None:
    """Raise UserError if these settings are not those of the starter's robot."""
    for path, value in (("base.path", config.base.path), ("data.folder", config.data.folder)):
        if value != STARTER:
            raise UserError(
                f"{path} is '{value}', but only the starter has a judge that names its pictures.",
                f"Set {path} = '{STARTER}', or leave the run file out.",
                path,
            )


def _file(folder: RunFolder) -> Path:
    ended = child.ending(folder)
    assert not isinstance(ended, Failed)
    return folder.path / ended.path


def _kept(folder: RunFolder) -> Trial | None:
    path = folder.path / "trial.json"
    return _TRIAL.validate_json(path.read_bytes()) if path.exists() else None


def _keep(folder: RunFolder, trial: Trial) -> None:
    files.write_bytes(folder.path / "trial.json", _TRIAL.dump_json(trial, indent=1))
