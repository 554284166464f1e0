"""Start the page: python app.py [--host H] [--port N] [--share] [--no-browser]."""

from __future__ import annotations

import argparse
import inspect
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sdtrainer import workspace
from sdtrainer.__main__ import quieten
from sdtrainer.section import UserError
from sdtrainer.workspace import Workspace


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="app.py", description="sdtrainer: fine-tune Stable Diffusion in the browser."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve; others than this machine's need a login"
    )
    parser.add_argument("--port", type=int, help="port to serve (7860, or the next free one)")
    parser.add_argument("--share", action="store_true", help="make a temporary link that works from anywhere")
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")
    arguments = parser.parse_args()
    home = workspace.default()
    prepare(home)
    with no_stub_files():
        from sdtrainer.ui import serve
        from sdtrainer.ui.share import announce
    try:
        served = serve.serve(home, arguments.host, arguments.port)
    except UserError as error:
        print(f"sdtrainer: {error}", file=sys.stderr)
        return 2
    print(f"sdtrainer is open at {served.url}", flush=True)
    share(served, announce, arguments.share)
    if not arguments.no_browser:
        webbrowser.open(served.url)
    served.desk.warm_up_soon()
    wait_for_the_end()
    served.close()
    return 0


def prepare(home: Workspace) -> None:
    """Before gradio is imported: libraries quiet, its files in the workspace, no proxy to itself."""
    quieten()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(home.cache / "gradio")
    (home.cache / "gradio").mkdir(parents=True, exist_ok=True)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))


@contextmanager
def no_stub_files() -> Iterator[None]:
    """Stop gradio from rewriting the .pyi file of each component at import: half of its start-up time.

    It leaves out classes whose file cannot be found, so none is found (gradio 6.31, component_meta.py).
    """
    find = inspect.getfile

    def find_no_component(thing: Any) -> str:
        if getattr(thing, "__module__", "").startswith("gradio.") and inspect.isclass(thing):
            raise FileNotFoundError(thing)
        return find(thing)

    inspect.getfile = find_no_component
    try:
        yield
    finally:
        inspect.getfile = find


def share(served: Any, announce: Any, wants_link: bool) -> None:
    """Make the link if asked, and print how to get in."""
    if wants_link:
        try:
            served.sharing.start()
        except UserError as error:
            print(f"sdtrainer: {error}", file=sys.stderr, flush=True)
    if served.access.needs_login:
        announce(served.access, served.sharing.link)


def wait_for_the_end() -> None:
    """Return on Ctrl+C or when the system asks the app to end."""
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    while not end.wait(1.0):  # short waits: on Windows an endless one hears no Ctrl+C
        pass


if __name__ == "__main__":
    sys.exit(main())
