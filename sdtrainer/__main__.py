"""The command line: python -m sdtrainer VERB ...

Exit code 0 only on success, 2 for bad input with one line on stderr, 1 for anything else. What a verb made is
the last line of stdout.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .chores import CHORES
from .section import UserError

VERBS = {
    "train": "train a run file, or go on with a run folder",
    "plan": "show what a run file would do",
    "demo": "teach the starter model a new character, and show it",
    "show": "print every setting",
    "compare": "train every method on the starter, and say which is for what",
    "bench": "measure this machine",
    "measure": "take one step of a run file, and say what it held",
    "trace": "find out what activations take, without a card",
    "starter": "make the starter model anew",
    "worker": "train for the page (used by the app itself)",
    "chore": "do other long work for the page (used by the app itself)",
    **{verb: chore.about for verb, chore in CHORES.items()},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m sdtrainer VERB ...\n")
        print("\n".join(f"  {verb:8} {what}" for verb, what in VERBS.items()))
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"There is no verb '{verb}'. Choose one of {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    quieten()
    try:
        if verb in CHORES:
            return importlib.import_module(".verbs.chore", __package__).do(verb, rest)
        return importlib.import_module(f".verbs.{verb}", __package__).main(rest)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 1


def quieten() -> None:
    """Keep the libraries' remarks to developers off the console. They read these when they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def parser(verb: str) -> argparse.ArgumentParser:
    """Return an argument parser whose complaints are bad input like any other: one line, exit code 2."""
    return _Parser(prog=f"python -m sdtrainer {verb}", description=VERBS[verb])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}.", "Add --help for the usage.")


if __name__ == "__main__":
    sys.exit(main())
