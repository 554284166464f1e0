"""What would happen if Train were pressed now: the plan for the settings as typed, or what is in the way.

Scanning a folder is remembered for a few seconds, so that typing stays quick with thousands of images.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import config as configs
from .. import families, plan, planner
from ..config import Config
from ..data.census import Census
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
WAIT_SECONDS = 2.0
KEPT_SECONDS = 60.0


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


@dataclass
class _Asked:
    """A base model that is being recognised, or was; what was quick is asked anew each time."""

    base: BaseSection
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    answer: Facts | UserError | None = None
    is_answered: threading.Event = field(default_factory=threading.Event)

    def is_stale(self) -> bool:
        is_old = time.monotonic() - self.began - self.seconds > KEPT_SECONDS
        return self.is_answered.is_set() and (self.seconds < WAIT_SECONDS or is_old)


class Looker:
    """Makes outlooks. `num_answers` counts base models that were recognised after a look had to end."""

    def __init__(self, workspace: Workspace, access: Access) -> None:
        self._workspace, self._access = workspace, access
        self._scans: dict[str, tuple[float, Found]] = {}
        self._asked: dict[str, _Asked] = {}
        self.num_answers = 0
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Scan again at the next look: captions or files were changed."""
        self._scans.clear()
        self._asked.clear()

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
            return replace(seen, draft=planner.decide(config, seen.facts, found, self._workspace, machine))
        except UserError as error:
            return replace(seen, error=error)

    def _recognise(self, base: BaseSection) -> Facts:
        """Recognise the base model without waiting long: a hub that does not answer is asked in the
        background, and what it said is remembered for a while.
        """
        key = base.model_dump_json()
        with self._lock:
            asked = self._asked.get(key)
            if asked is None or asked.is_stale():
                asked = self._asked[key] = _Asked(base)
                threading.Thread(target=self._ask, args=(asked,), daemon=True).start()
        asked.is_answered.wait(WAIT_SECONDS)
        if isinstance(asked.answer, Facts):
            return asked.answer
        raise asked.answer or UserError(
            f"Base model: '{base.path}' is being looked up online.",
            "This takes up to a minute where there is no internet.",
            "base.path",
        )

    def _ask(self, asked: _Asked) -> None:
        try:
            asked.answer = families.recognise(asked.base)
        except UserError as error:
            asked.answer = error
        except Exception as error:
            asked.answer = UserError(f"Base model: it cannot be read ({error}).", "Check it.", "base.path")
        asked.seconds = time.monotonic() - asked.began
        asked.is_answered.set()
        if asked.seconds > WAIT_SECONDS:
            self.num_answers += 1

    def _scan(self, config: Config) -> Found:
        key = f"{config.data.model_dump_json()} {config.train.seed}"
        if config.prior.folder:
            key += config.prior.model_dump_json()
        with self._lock:
            at, found = self._scans.get(key, (0.0, None))
            if found is None or time.monotonic() - at > SCAN_SECONDS:
                found = planner.look(config, self._workspace)
                self._scans = {key: (time.monotonic(), found)}
        return found
