"""The pulse: a few letters that an open page asks for every second. Others than before: it is out of date.

It asks past gradio's events: with each one the page (gradio 6.31) walks through all its parts for every
component that was part of an event since it was opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from .access import Role

SECONDS = 1.0
ASK = """session => window.pulseAsked ??= fetch(`pulse/${session}`)
  .then(answer => answer.ok ? answer.text() : 'refused')
  .catch(() => 'lost')
  .finally(() => { window.pulseAsked = null; })"""
"""Run in the page, once at a time. Without an answer the pulse is another as well, and so gradio asks too and
says what is wrong.
"""


def route(stamps: Callable[[Role, str], Mapping[str, str]]) -> Callable[[Request], Response]:
    """Handle pulse/{session}. `stamps` says, part by part, what the look of a page depends on."""

    def answer(request: Request) -> Response:
        role: Role = "owner" if request.scope["sdtrainer_role"] == "owner" else "viewer"
        found = stamps(role, request.path_params["session"])
        beat = hashlib.sha256(repr(found).encode()).hexdigest()[:12]
        return PlainTextResponse(beat, headers={"cache-control": "no-store"})

    return answer
