"""Sharing: a temporary link to this page through gradio's tunnel, switched on and off while the app runs.

Owns the tunnel and when it ends. Who may come in through it is `access`'s business.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..section import UserError
from . import words
from .access import Access
from .desk import Desk
from .listen import Given
from .words import tag

SHARE_SECONDS = 72 * 3600.0
OpenTunnel = Callable[[int], tuple[str, Callable[[], None]]]
"""Takes the local port; returns the public address and what closes it. Raises RuntimeError or OSError."""


@dataclass(frozen=True)
class Link:
    address: str
    expires_at: float
    close: Callable[[], None]


class Sharing:
    """The link, if there is one."""

    def __init__(self, access: Access, open_tunnel: OpenTunnel) -> None:
        self.link: Link | None = None
        self.port = 0
        self._access, self._open_tunnel = access, open_tunnel
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def start(self) -> Link:
        """Require logins, then open the tunnel.

        Raises:
            UserError: no tunnel can be opened; the app stays as it was.
        """
        with self._lock:
            if self.link:
                return self.link
            self._access.share()
            try:
                address, close = self._open_tunnel(self.port)
            except Exception as error:
                self._access.unshare()
                raise UserError(
                    "No link could be made: the server that gives out links cannot be reached.",
                    "Check the internet connection and try again. The page stays on this computer only.",
                ) from error
            self.link = Link(address, time.time() + SHARE_SECONDS, close)
            self._timer = threading.Timer(SHARE_SECONDS, self.stop)
            self._timer.daemon = True
            self._timer.start()
            return self.link

    def stop(self) -> None:
        """Close the link and log everyone out who came through it."""
        with self._lock:
            if self.link:
                self.link.close()
            if self._timer:
                self._timer.cancel()
            self.link = self._timer = None
            self._access.unshare()


def open_gradio_tunnel(port: int) -> tuple[str, Callable[[], None]]:
    """Open gradio's tunnel to a local port."""
    from gradio import networking
    from gradio.tunneling import CURRENT_TUNNELS

    before = len(CURRENT_TUNNELS)
    address = networking.setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), None, None)
    tunnels = CURRENT_TUNNELS[before:]
    return address, lambda: [tunnel.kill() for tunnel in tunnels] and None


class ShareBox:
    """The Share button and what it opens."""

    def __init__(self, desk: Desk, sharing: Sharing) -> None:
        self.desk, self.sharing = desk, sharing

    def build_button(self) -> None:
        self.button = gr.Button("Share", size="sm", min_width=90, scale=0, elem_id="share")

    def build_box(self) -> None:
        with gr.Group(visible=False, elem_id="share-box") as self.box:
            self.text = gr.HTML()
            with gr.Row(elem_classes="controls"):
                self.go = gr.Button(
                    "Make the link", variant="primary", size="sm", min_width=140, elem_id="share-start"
                )
                self.stop = gr.Button(
                    "Stop sharing", variant="stop", size="sm", min_width=140, elem_id="share-stop"
                )
                self.close = gr.Button("Close", size="sm", min_width=90)

    @property
    def shows(self) -> list[Any]:
        return [self.box, self.text, self.go, self.stop, self.button]

    def wire(self) -> None:
        on = self.desk.on
        on(self.button.click, lambda g: self._show(True), (), self.shows)
        on(self.close.click, lambda g: self._show(False), (), self.shows)
        on(self.go.click, self._start, (), self.shows, show_progress="minimal", show_progress_on=None)
        on(self.stop.click, self._stop, (), self.shows)

    def show_button(self) -> dict[Any, Any]:
        return {self.button: "Shared" if self.desk.access.needs_login else "Share"}

    def _show(self, visible: bool) -> dict[Any, Any]:
        link = self.sharing.link
        return self.show_button() | {
            self.box: gr.update(visible=visible),
            self.text: describe(self.desk.access, link),
            self.go: gr.update(visible=link is None),
            self.stop: gr.update(visible=link is not None),
        }

    def _start(self, given: Given) -> dict[Any, Any]:
        try:
            announce(self.desk.access, self.sharing.start())
        except UserError as error:
            return self._show(True) | {
                self.text: tag("p", f"{words.safe(error.what)} {words.safe(error.hint)}", "bad")
            }
        return self._show(True)

    def _stop(self, given: Given) -> dict[Any, Any]:
        self.sharing.stop()
        return self._show(True)


def announce(access: Access, link: Link | None) -> None:
    """Print how to get in on the console of this machine."""
    if link:
        print(f"Shared until {words.when(link.expires_at)} at {link.address}", flush=True)
    for role, may in (("owner", "may do everything"), ("viewer", "may look only")):
        print(f"  user {role}, password {access.passwords[role]}: {may}", flush=True)


def describe(access: Access, link: Link | None) -> str:
    """Say how to get in, for the owner's eyes."""
    if link is None and not access.is_public:
        return tag("h3", "Share this page") + tag(
            "p",
            "Makes a temporary link that works from anywhere for 72 hours. Visitors need a password: one "
            "lets them do all that you can, the other lets them look at loss and pictures. While "
            "shared, folders outside the workspace are off limits.",
        )
    rows = [("Address", link.address)] if link else []
    rows += [
        ("To do everything", f"user owner, password {access.passwords['owner']}"),
        ("To look only", f"user viewer, password {access.passwords['viewer']}"),
    ]
    if link:
        rows.append(("Ends", words.when(link.expires_at)))
    body = "".join(tag("dt", name) + tag("dd", words.safe(value)) for name, value in rows)
    return tag("h3", "This page is shared") + tag("dl", body)
