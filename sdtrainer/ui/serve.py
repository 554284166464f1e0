"""Serve the page: the desk, the gate, the sharing and the server together, and how they end."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

from ..section import UserError
from ..workspace import Workspace
from . import downloads, keys, pulse
from .access import Access, Gate, is_loopback
from .dataset.upload import MAX_UPLOAD_GB
from .desk import Desk
from .page import TITLE, Page
from .share import OpenTunnel, Sharing, open_gradio_tunnel
from .theme import ICON, STYLE, theme
from .thumbnails import folder as thumbnails_folder

FIRST_PORT, NUM_PORTS = 7860, 100


@dataclass
class Served:
    """A running app."""

    desk: Desk
    access: Access
    sharing: Sharing
    page: Page
    blocks: gr.Blocks
    url: str

    def close(self) -> None:
        self.sharing.stop()
        self.blocks.close(verbose=False)
        self.desk.close()


def serve(
    workspace: Workspace, host: str, port: int | None, open_tunnel: OpenTunnel = open_gradio_tunnel
) -> Served:
    """Build the page and serve it; returns once it can be opened. `port` None takes the first free one.

    Raises:
        UserError: the port is taken.
    """
    thumbnails_folder(workspace).mkdir(parents=True, exist_ok=True)
    access = Access(workspace, is_public=not is_loopback(host))
    desk = Desk(workspace, access)
    sharing = Sharing(access, open_tunnel)
    page = Page(desk, sharing)
    blocks = page.build()
    blocks.queue(default_concurrency_limit=8)
    sharing.port, url = launch(
        blocks,
        host,
        port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        share=False,
        theme=theme(),
        css_paths=[STYLE],
        head=keys.HEAD,
        favicon_path=ICON,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        allowed_paths=[str(thumbnails_folder(workspace))],
        max_file_size=f"{MAX_UPLOAD_GB}gb",
        auth_dependency=_user,
        _frontend=False,  # or gradio asks itself first, and gives up on a busy machine or behind a proxy
        app_kwargs={
            "middleware": [Middleware(Gate, access=access)],
            "routes": [
                Route("/download/{run}/{file}", downloads.route(desk)),
                Route("/made/{path:path}", downloads.made_route(desk)),
                Route("/thumbnail/{key}", desk.thumbnails.answer),
                Route("/pulse/{session}", pulse.route(page.stamps)),
            ],
            "title": TITLE,
        },
    )
    return Served(desk, access, sharing, page, blocks, url)


def _user(request: Request) -> str | None:
    """Tell gradio who asks: the gate has found out."""
    return request.scope["sdtrainer_role"]


def launch(blocks: gr.Blocks, host: str, port: int | None, **how: Any) -> tuple[int, str]:
    """Serve on `port`, or on the first that is free; returns the port and the page's address.

    Raises:
        UserError: it is taken, or all are.
    """
    for candidate in [port] if port else range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        if not _is_free(host, candidate):
            continue
        try:
            _, url, _ = blocks.launch(server_name=host, server_port=candidate, **how)
            return candidate, url
        except OSError:
            if _is_free(host, candidate):  # else another program was quicker
                raise
    if port:
        raise UserError(f"Port {port} is in use.", "Give another with --port, or leave it out.")
    raise UserError(
        f"No port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} is free.", "Give one with --port."
    )


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True
