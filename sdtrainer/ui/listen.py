"""Every event of the page goes through here: who may cause it, and what is shown when it fails.

An action takes a `Given` and returns updates by component. A `UserError` becomes one sentence on the page;
any other failure too, with its traceback in the workspace's log.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import gradio as gr
from gradio.events import Dependency

from ..section import UserError
from ..workspace import Workspace
from .access import Role

Updates = Mapping[Any, Any]
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
"""Nobody is told that an event is under way. Else the page would walk through all its parts for each one that
the event shows, again and again: seconds of the processor for every letter typed.
"""


@dataclass(frozen=True)
class Given:
    """What an action gets: the components' values, who asks (`session`: one open page), what was clicked."""

    values: Mapping[Any, Any]
    role: Role
    session: str
    clicked: Mapping[str, Any] = field(default_factory=dict)
    index: Any = None

    def __getitem__(self, component: Any) -> Any:
        return self.values[component]


Action = Callable[[Given], Updates | None]


class Listener:
    """Connects events to actions."""

    def __init__(self, workspace: Workspace) -> None:
        self._log = workspace.root / "log.txt"

    def on(
        self,
        events: Any,
        action: Action,
        uses: Iterable[Any] = (),
        shows: Iterable[Any] = (),
        *,
        looks_only: bool = False,
        clicks: bool = False,
        **how: Any,
    ) -> Any:
        """Run `action` on `events`, or after an earlier event as returned by this function.

        Viewers may cause only what `looks_only`; `clicks` hands on what was clicked.
        """

        outputs = list(dict.fromkeys(shows)) or None

        def run(values: Mapping[Any, Any], request: gr.Request, event: Any = None) -> Any:
            role: Role = "owner" if request.username == "owner" else "viewer"
            if role != "owner" and not looks_only:
                gr.Warning("This login is for looking only.")
                return nothing()
            data = getattr(event, "_data", None)
            clicked = data if isinstance(data, dict) else {}
            given = Given(values, role, request.session_hash or "", clicked, clicked.get("index"))
            return dict(self.attempt(action, given) or {}) or nothing()

        def nothing() -> Any:
            return gr.skip() if outputs else None

        def with_click(values: dict, request: gr.Request, event: gr.EventData) -> Any:
            return run(values, request, event)

        def without_click(values: dict, request: gr.Request) -> Any:
            return run(values, request)

        settings = QUIETLY | {"api_visibility": "private", "concurrency_limit": None} | how
        wanted = {"inputs": set(uses), "outputs": outputs} | settings
        if isinstance(events, Dependency):
            return events.then(without_click, **wanted)
        return gr.on(
            events if isinstance(events, list) else [events],
            with_click if clicks else without_click,
            **wanted,
        )

    def attempt(self, action: Action, given: Given) -> Updates | None:
        try:
            return action(given)
        except UserError as error:
            gr.Warning(f"{error.what} {error.hint}", duration=12)
        except Exception:
            self.log(traceback.format_exc())
            gr.Warning(
                f"Something went wrong in the app itself; the details are in {self._log}.", duration=12
            )
        return None

    def log(self, text: str) -> None:
        """Append to the workspace's log."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}\n{text}\n")
