"""chore VERB: does long work for the page (used by the app itself). Such work's own verbs are here as well:
its settings are the words that they take.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any, get_args, get_origin

from .. import chores
from .. import workspace as workspaces
from ..__main__ import parser
from ..chores import CHORES, Answer, Chore, Doing
from ..console import Console
from ..section import Knob, fields


def main(argv: Sequence[str]) -> int:
    chores.serve(argv[0])
    return 0


def do(verb: str, argv: Sequence[str]) -> int:
    """Do what the words ask for, telling how far it is on stderr and what was found on stdout."""
    chore = CHORES[verb]
    given = vars(_arguments(chore).parse_args(argv))
    as_json = given.pop("json")
    settings = chore.check({name: value for name, value in given.items() if value is not None})
    answer = _done(chore.do(settings, workspaces.default()))
    if as_json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        print("\n".join(chore.told(answer)))
    return 0


def _arguments(chore: Chore) -> argparse.ArgumentParser:
    arguments = parser(chore.verb)
    known = fields(chore.settings)
    for name in chore.plain:
        many = {"nargs": "*", "default": []} if get_origin(known[name].annotation) is list else {}
        number = many or ({"nargs": "?"} if name in chore.spare else {})
        arguments.add_argument(name, help=_help(known[name]), **number)
    for name, knob in known.items():
        if name not in chore.plain:
            flag = f"--{name.replace('_', '-')}"
            arguments.add_argument(flag, dest=name, default=None, help=_help(knob), **_kind(knob))
    arguments.add_argument("--json", action="store_true", help="for programs")
    return arguments


def _help(knob: Knob) -> str:
    known = ", ".join(map(str, knob.choices))
    choices = f" One of {known}; {knob.default} if not given." if known else ""
    return (knob.help + choices).replace("%", "%%")


def _kind(knob: Knob) -> dict[str, Any]:
    """How argparse is to take a setting; what is allowed is the section's to say."""
    if knob.annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(knob.annotation) is list:
        return {"nargs": "*", "action": "extend", "type": _as(get_args(knob.annotation)[0])}
    return {"type": _as(knob.annotation)}


def _as(kind: Any) -> Any:
    """Numbers where numbers are meant; a word that is none stays, for the section to refuse."""
    wanted = {kind, *get_args(kind)} & {int, float}

    def read(word: str) -> Any:
        for number in (int, float):
            try:
                return number(word) if wanted else word
            except ValueError:
                continue
        return word

    return read


def _done(doing: Doing) -> Answer:
    found: Answer = {}

    def all_of() -> Any:
        nonlocal found
        found = yield from doing

    with closing(all_of()) as telling:
        for _ in Console(sys.stderr).tell(telling):
            pass
    return found
