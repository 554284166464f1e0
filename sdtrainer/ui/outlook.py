"""What would happen if Train were pressed now: the plan for the settings as typed, or what is in the way.

What takes long is found out in the background, and remembered for a while: a scanned folder for the longer
the longer it took, so that typing stays quick with many thousands of images.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import config as configs
from .. import families, plan, planner
from ..config import Config
from ..data.census import Census
from ..data.section import DataSection
from ..families import BaseSection
from ..hardware import Machine
from ..planner import Draft, Found
from ..seams import Facts
from ..section import UserError
from ..workspace import Workspace
from .access import Access

if TYPE_CHECKING:
    from ..fitting import Fit

SCAN_SECONDS = 10.0
SCANS_APART = 10
"""A folder is read again after so many times the seconds that it took."""
SCAN_WAIT_SECONDS = 0.7
"""So long a page waits for the pictures; it opens in less than a second."""
WAIT_SECONDS = 2.0
KEPT_SECONDS = 60.0
QUICK_SECONDS = 0.2
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Outlook:
    """As much as could be found out; `error` is what stopped it, or stands in the way of a start,
    `base_error` what is wrong with the base model. `fit` says how the plan was fitted to the card, once it is
    counted.
    """

    values: Mapping[str, Any]
    config: Config | None = None
    facts: Facts | None = None
    census: Census | None = None
    draft: Draft | None = None
    error: UserError | None = None
    base_error: UserError | None = None
    fit: Fit | None = None

    @property
    def plan(self) -> plan.Plan | None:
        return self.draft.plan if self.draft else None


class Reading(UserError):
    """The pictures are being read for the first time: `done` of `num` so far, which is 0 at first."""

    def __init__(self, folder: str, done: int, num: int) -> None:
        counted = f"{done:,} of the {num:,} pictures in '{folder}' are read."
        what = counted if num else f"the pictures in '{folder}' are being counted."
        super().__init__(
            f"Image folder: {what}",
            "Many thousands take up to a minute the first time, and seconds later.",
            "data.folder",
        )
        self.done, self.num = done, num


class _Asked(Generic[Answer]):
    """A question, found out in the background. `late` is called if that takes longer than the seconds that
    anyone waits; until then `before` is the best answer there is.
    """

    def __init__(
        self, find: Callable[[], Answer], wait: float, late: Callable[[], None], before: Answer | None = None
    ) -> None:
        self._find, self._wait, self._late, self._before = find, wait, late, before
        self._began, self.seconds = time.monotonic(), 0.0
        self._answer: Answer | UserError | None = None
        self._is_answered = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def is_older_than(self, seconds: float) -> bool:
        """Whether it was answered so long ago."""
        return self._is_answered.is_set() and time.monotonic() - self._began - self.seconds > seconds

    @property
    def is_quick(self) -> bool:
        return self._is_answered.is_set() and self.seconds < QUICK_SECONDS

    @property
    def is_first(self) -> bool:
        """Whether nothing is known yet."""
        return not self._is_answered.is_set() and self._before is None

    @property
    def has_failed(self) -> bool:
        return isinstance(self._answer, UserError)

    @property
    def known(self) -> Answer | None:
        """The newest answer that is there."""
        return self._before if self._answer is None or isinstance(self._answer, UserError) else self._answer

    def peek(self) -> Answer | None:
        """Return what is known now; `late` will be called if there is more to come."""
        self._wait = 0.0
        return self.known

    def get(self) -> Answer | None:
        """Wait for the answer, but once; return it, or what is known by then. Raises UserError as finding it
        did.
        """
        self._is_answered.wait(max(0.0, self._began + self._wait - time.monotonic()))
        if isinstance(self._answer, UserError):
            raise self._answer
        return self.known

    def _work(self) -> None:
        try:
            self._answer = self._find()
        except UserError as error:
            self._answer = error
        except Exception as error:
            self._answer = UserError(f"It cannot be read ({error}).", "Check it.")
        self.seconds = time.monotonic() - self._began
        self._is_answered.set()
        if self.seconds > self._wait:
            self._late()


class _Scan(_Asked[Found]):
    """The folders of some settings. It ends when it is no longer `wanted`."""

    def __init__(
        self, config: Config, workspace: Workspace, late: Callable[[], None], before: Found | None
    ) -> None:
        self.progress, self.is_wanted = (0, 0), True
        super().__init__(lambda: planner.look(config, workspace, self._hear), SCAN_WAIT_SECONDS, late, before)

    def _hear(self, done: int, num: int) -> None:
        if not self.is_wanted:
            raise UserError("Image folder: another one is read instead.", "", "data.folder")
        self.progress = (done, num)


class Looker:
    """Makes outlooks. `num_answers` counts what was found out after a look had to end."""

    def __init__(self, workspace: Workspace, access: Access) -> None:
        self._workspace, self._access = workspace, access
        self._scans: dict[str, _Scan] = {}
        self._bases: dict[str, _Asked[Facts]] = {}
        self._drafted: tuple[Any, ...] = ()
        self._is_old = False
        self.num_answers = 0
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Scan again at the next look: captions or files were changed."""
        self._is_old = True
        self._bases.clear()

    @property
    def reading(self) -> tuple[int, int] | None:
        """How many pictures are read, of how many, while they are read for the first time."""
        return next((scan.progress for scan in list(self._scans.values()) if scan.is_first), None)

    def captions_changed(self, is_over: bool) -> None:
        """Read the captions again: at once if that is quick, or if the changing `is_over`."""
        scans = list(self._scans.values())
        self._is_old = self._is_old or is_over or all(scan.is_quick for scan in scans)

    def pictures(self, values: Mapping[str, Any]) -> tuple[Found, DataSection]:
        """Return what was found last, without waiting where anything is known. Raises UserError."""
        config = configs.build(values)
        self._access.check(config)
        return self._scan(config, waits=False), config.data

    def look(self, values: Mapping[str, Any], machine: Machine) -> Outlook:
        """Find out as much as the settings allow: a wrong base model still lets the images be seen."""
        seen = Outlook(values)
        try:
            config = configs.build(values)
            self._access.check(config)
        except UserError as error:
            return replace(seen, error=error)
        seen = replace(seen, config=config)
        errors = []
        try:
            seen = replace(seen, facts=self._recognise(config.base))
        except UserError as error:
            errors.append(error)
            seen = replace(seen, base_error=error)
        try:
            found = self._scan(config)
            seen = replace(seen, census=found.census)
        except UserError as error:
            errors.append(error)
        if errors:
            return replace(seen, error=errors[-1])
        assert seen.facts
        try:
            return replace(seen, draft=self._decide(config, seen.facts, found, machine))
        except UserError as error:
            return replace(seen, error=error)

    def _decide(self, config: Config, facts: Facts, found: Found, machine: Machine) -> Draft:
        """Decide, unless this was the last thing decided: with many images it takes a moment."""
        key = (config, facts, machine)
        last = self._drafted
        if last and last[0] is found and last[1] == key:
            return last[2]
        made = planner.decide(config, facts, found, self._workspace, machine)
        self._drafted = (found, key, made)
        return made

    def _recognise(self, base: BaseSection) -> Facts:
        """Recognise the base model without waiting long: a hub that does not answer is asked in the
        background, and what it said is remembered for a while. What was quick is asked anew each time.
        """
        key = base.model_dump_json()
        with self._lock:
            asked = self._bases.get(key)
            if asked is None or asked.is_older_than(0.0 if asked.seconds < WAIT_SECONDS else KEPT_SECONDS):
                asked = _Asked(lambda: self._facts(base), WAIT_SECONDS, self._count)
                self._bases[key] = asked
        found = asked.get()
        if found is None:
            raise UserError(
                f"Base model: '{base.path}' is being looked up online.",
                "This takes up to a minute where there is no internet.",
                "base.path",
            )
        return found

    @staticmethod
    def _facts(base: BaseSection) -> Facts:
        try:
            return families.recognise(base)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"Base model: it cannot be read ({error}).", "Check it.", "base.path") from error

    def _scan(self, config: Config, waits: bool = True) -> Found:
        """Read the folders without waiting long: while a large one is read anew, what was found before
        counts.
        """
        key = config.data.model_dump_json(include=set(planner.LOOKED_AT))
        if config.prior.folder:
            key += config.prior.model_dump_json()
        with self._lock:
            asked = self._scans.get(key)
            if asked is None or self._is_old or asked.is_older_than(_lasts(asked)):
                waits = waits or asked is None or asked.is_quick
                before, self._is_old = asked.known if asked else None, False
                for other in self._scans.values():
                    other.is_wanted = False
                asked = _Scan(config, self._workspace, self._count, before)
                self._scans = {key: asked}
        found = asked.get() if waits or asked.known is None else asked.peek()
        if found is None:
            raise Reading(config.data.folder, *asked.progress)
        return found

    def _count(self) -> None:
        self.num_answers += 1


def _lasts(scan: _Asked[Found]) -> float:
    """For how many seconds a scan counts; a failed one is made again at the next look."""
    return 0.0 if scan.has_failed else max(SCAN_SECONDS, SCANS_APART * scan.seconds)
