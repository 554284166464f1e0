"""What would happen if Train were pressed now: the plan for the settings as typed, or what is in the way.

Scanning a folder is remembered for a few seconds, so that typing stays quick with thousands of images.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import config as configs
from .. import families, plan, planner
from ..config import Config
from ..data.census import Census
from ..hardware import Machine
from ..planner import Draft, Found
from ..seams import Facts
from ..section import UserError
from ..workspace import Workspace
from .access import Access

SCAN_SECONDS = 10.0


@dataclass(frozen=True)
class Outlook:
    """As much as could be found out; `error` is what stopped it."""

    values: Mapping[str, Any]
    config: Config | None = None
    facts: Facts | None = None
    census: Census | None = None
    draft: Draft | None = None
    error: UserError | None = None

    @property
    def plan(self) -> plan.Plan | None:
        return self.draft.plan if self.draft else None


class Looker:
    """Makes outlooks."""

    def __init__(self, workspace: Workspace, access: Access) -> None:
        self._workspace, self._access = workspace, access
        self._scans: dict[str, tuple[float, Found]] = {}
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Scan again at the next look: captions or files were changed."""
        self._scans.clear()

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
            seen = replace(seen, facts=families.recognise(config.base))
        except UserError as error:
            errors.append(error)
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
