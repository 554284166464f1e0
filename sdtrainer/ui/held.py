"""What the form of every open page holds, as far as the server knows: by this, what a person changed is told
from what the page has not heard of yet.

Answers and edits cross on their way. A page sends the number of its last filling with all of its fields; what
differs from what it held then, or sent since, was changed by a person, and only that is taken.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ..config import flatten

KIND = "method.kind"
KEPT = 256
"""Forms remembered; a page needs its last few."""


class Held:
    """Forms by page and filling. Values are flat: {dotted path: value}."""

    def __init__(self) -> None:
        self._forms: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()
        self._newest: dict[str, int] = {}
        self._lock = threading.Lock()

    def fill(self, page: str, values: Mapping[str, Any]) -> tuple[int, set[str]]:
        """Note that a page is being filled with these settings: return the filling's number, and the paths
        that it must send, for the page holds something else there, or something unknown.
        """
        with self._lock:
            number = self._newest.get(page, 0) + 1
            before, wanted = self._forms.get((page, number - 1), {}), flatten(values)
            other_kind = before.get(KIND) != wanted.get(KIND)
            new = {
                path
                for path, value in wanted.items()
                if path not in before or before[path] != value or (other_kind and path.startswith("method."))
            }
            self._newest[page] = number
            self._keep((page, number), wanted)
            return number, new

    def take(self, page: str, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a person changed in a page's form since it was filled or last taken.

        Of a page that is not known, as after a restart of the app, everything counts.
        """
        with self._lock:
            form = flatten(values)
            before = self._forms.get((page, number), {})
            self._keep((page, number), form)
            return {
                path: value for path, value in form.items() if path not in before or before[path] != value
            }

    def is_behind(self, page: str, number: int) -> bool:
        """Whether another filling is on its way to the page that sent this."""
        return self._newest.get(page, number) != number

    def _keep(self, key: tuple[str, int], form: dict[str, Any]) -> None:
        self._forms[key] = form
        self._forms.move_to_end(key)
        while len(self._forms) > KEPT:
            (page, number), _ = self._forms.popitem(last=False)
            if self._newest.get(page) == number:
                del self._newest[page]
