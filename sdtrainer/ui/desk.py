"""What all tabs share on the server: workspace, project, runs, machine, and who may do what."""

from __future__ import annotations

import importlib
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import chores, hardware, planner
from ..child import Hand
from ..chores import CHORES, Answer
from ..config import Config
from ..data.section import DataSection
from ..hardware import Machine
from ..job import Jobs, Status
from ..plan import Plan
from ..planner import Found
from ..seams import Facts
from ..section import UserError
from ..workspace import RunFolder, Workspace, list_runs
from .access import Access
from .answers import Answers
from .errand import Errands, Tell
from .follow import Followers
from .listen import Listener
from .outlook import Looker, Outlook
from .project import Project
from .thumbnails import Thumbnails
from .tracing import Progress, Task, Tracer
from .view import RunView

if TYPE_CHECKING:
    from ..classics import Drawn
    from ..fitting import Change
    from ..memory import Ledger

HEAVY = ("torch", "diffusers", "transformers", "peft")
GLANCE_SECONDS = 5.0
LIKE_RUNS = 10
FIRST_PAGE_SECONDS = 8.0


class Desk:
    """One per app. Pages come and go; this stays."""

    def __init__(self, workspace: Workspace, access: Access) -> None:
        self.workspace, self.access = workspace, access
        self.num_counted = 0
        self.listener = Listener(workspace)
        self.on = self.listener.on
        self.errands = Errands(self.tell, self.listener.log)
        self.jobs = Jobs(workspace, self.errands.free_card)
        self.project = Project(workspace)
        self.machine = hardware.quick()
        self.is_warm = False
        self._counted: Answers[bool] = Answers(False, self.tell, self.listener.log)
        self.was_opened = threading.Event()
        self._looker = Looker(workspace, access)
        self._changes: Answers[tuple[Change, ...]] = Answers((), self.tell, self.listener.log)
        self._classics: Answers[tuple[Drawn, ...]] = Answers((), self.tell, self.listener.log)
        self._tracer = Tracer(self.tell, self.listener.log)
        self._followers = Followers()
        self.thumbnails = Thumbnails(workspace)
        self._glance = (0.0, "")

    def warm_up_soon(self) -> None:
        """Import the heavy libraries in the background, once a page is open or after a few seconds."""
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def look(self, values: Mapping[str, Any] | None = None) -> Outlook:
        return self.look_on(self.machine, self.project.values if values is None else values)

    def look_on(self, machine: Machine, values: Mapping[str, Any]) -> Outlook:
        """Look as if this were another machine. The plan is fitted to its card as soon as it is counted."""
        seen = self._looker.look(values, machine)
        if seen.draft is None or self.ledger(seen.draft.plan) is None:
            return seen
        from .. import fitting, storage

        found = fitting.fit(seen.draft.plan, machine)
        seen = replace(seen, draft=replace(seen.draft, plan=found.plan), fit=found)
        try:
            if machine is self.machine:
                storage.check(found.plan, found.ledger, machine, self.workspace.disk_free)
        except UserError as error:
            return replace(seen, error=error)
        return seen

    def ledger(self, plan: Plan) -> Ledger | None:
        """Return what a plan holds in memory; None while torch loads or a new model or method is counted."""
        if not self.is_warm:
            return None
        from ..memory import estimate

        def count() -> bool:
            estimate(plan)
            return True

        subject = (plan.facts.path, plan.config.method.model_dump_json())
        return estimate(plan) if self._counted.get(subject, count) else None

    def changes(self, seen: Outlook, machine: Machine) -> tuple[Change, ...] | None:
        """Return the single settings that would save memory where the plan does not fit; None while they are
        being looked for.
        """
        fit, draft, facts = seen.fit, seen.draft, seen.facts
        assert fit and draft and facts
        from .. import fitting

        own = draft.class_images if fit.plan.config.prior.folder else None
        found = Found(draft.census, draft.validation, own)

        def replan(config: Config) -> Plan:
            return planner.decide(config, facts, found, self.workspace, machine).plan

        images = (fit.plan.num_images, repr(fit.plan.buckets))
        question = (fit.plan.config.model_dump_json(), machine, fitting.peak(fit.ledger), images)
        return self._changes.get(question, lambda: tuple(fitting.changes(fit, machine, replan)))

    def classics(self, facts: Facts) -> tuple[Drawn, ...] | None:
        """Return what the usual ways to fine-tune this base model hold; None while that is being counted."""
        if not self.is_warm:
            return None
        from .. import classics

        question = (facts.family, facts.path, repr(facts.config))
        return self._classics.get(question, lambda: classics.drawn(facts))

    def find_out(self, seen: Outlook, machine: Machine) -> Progress | None:
        """Have what is not known of a plan found out, unless it fits; returns how far that is."""
        if seen.fit is None or seen.fit.room is None or seen.fit.fits:
            return self._tracer.want(None)
        assert machine.card
        from .. import fitting

        keys = frozenset(fitting.unknown_keys(seen.fit.plan))
        task = Task(keys, seen.fit.plan.config, machine.card.total_bytes / hardware.GIB) if keys else None
        return self._tracer.want(task)

    @property
    def num_answers(self) -> int:
        return self._looker.num_answers

    @property
    def reading(self) -> tuple[int, int] | None:
        """How many pictures are read, of how many, while they are read for the first time."""
        return self._looker.reading

    def look_again(self) -> None:
        self._looker.forget()

    def pictures(self) -> tuple[Found, DataSection]:
        """Return what was found in the folders last, and how it is used. Raises UserError."""
        return self._looker.pictures(self.project.values)

    def captions_changed(self, is_over: bool = True) -> None:
        """Let all pages know; `is_over` if no more changes are expected at once."""
        self._looker.captions_changed(is_over)
        self.tell()

    def tell(self) -> None:
        """Let the pages know that something was found out."""
        self.num_counted += 1

    def start(self, values: Mapping[str, Any]) -> RunFolder:
        """Start a run, or queue it. Raises UserError."""
        outlook = self.look(values)
        if outlook.error:
            raise outlook.error
        assert outlook.config
        return self.jobs.start(outlook.config)

    def begin(
        self, verb: str, values: Mapping[str, Any], then: Callable[[Answer], None] = lambda answer: None
    ) -> None:
        """Have a chore done in the background, and `then` what is to be done with what it found. While a run
        is trained it does without the card.

        Raises:
            UserError: a setting is wrong, a path may not be read while shared, or this is being done already.
        """
        chore, jobs = CHORES[verb], self.jobs.state()
        self.access.check_section(chore.check(values))
        is_free = not (jobs.current or jobs.waiting or self.errands.has_card)

        def work(hand: Hand, tell: Tell) -> Answer:
            try:
                answer = chores.do_elsewhere(verb, values, self.workspace, tell, hand, is_free)
                then(answer)
                return answer
            finally:  # it may have written captions or files
                self.look_again()

        self.errands.begin(verb, work, chore.needs_card and is_free)

    def runs(self) -> list[RunFolder]:
        return list_runs(self.workspace.runs)

    def run(self, name: str | None) -> RunFolder:
        """Return the run of that name. Raises UserError if there is none: names come from the page."""
        for run in self.runs():
            if run.name == name:
                return run
        raise UserError(f"There is no run '{name}'.", "It may have been deleted; look at Runs.")

    def newest(self) -> RunFolder | None:
        """Return the run that is being trained, else the newest."""
        current = self.jobs.state().current
        runs = self.runs()
        return next((r for r in runs if r.name == current), runs[0] if runs else None)

    def view(self, run: RunFolder) -> RunView:
        return self._followers.view(run)

    def status(self, run: RunFolder) -> Status:
        """Where a run stands, from the queue and its followed log."""
        return self.jobs.status(run, self.view(run).word)

    def config_of(self, run: RunFolder) -> Config:
        """Return a run's settings. Raises UserError where they reach outside the workspace while shared."""
        config = run.config()
        self.access.check(config)
        return config

    def pace(self, config: Config) -> float | None:
        """Return the seconds per step of the newest run like this one; None if there was none."""
        for run in self.runs()[:LIKE_RUNS]:
            seconds = self.view(run).seconds_per_step
            known = run.known_config() if seconds else None
            if known and _likeness(known) == _likeness(config):
                return seconds
        return None

    def glance(self) -> str:
        """Return the card in a few words, looked up again every few seconds."""
        at, words = self._glance
        if time.monotonic() - at > GLANCE_SECONDS or not words:
            words = hardware.glance()
            self._glance = (time.monotonic(), words)
        return words

    def close(self) -> None:
        self.errands.close()
        self._tracer.close()
        self.jobs.close()

    def _warm_up(self) -> None:
        self.was_opened.wait(FIRST_PAGE_SECONDS)
        try:
            for name in HEAVY:
                importlib.import_module(name)
            self.machine = hardware.detect()
            self.jobs.warm_up()
        except Exception:
            self.listener.log(traceback.format_exc())
        self.is_warm = True


def _likeness(config: Config) -> tuple[object, ...]:
    """What the speed of a run depends on most."""
    train = config.train
    return (
        config.base.path,
        config.method,
        train.batch_size,
        train.resolution,
        train.precision,
        config.optim.name,
    )
