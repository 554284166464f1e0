"""How long the page needs to show a folder that was read: what a browser waits for, without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..data.census import Census
from ..section import UserError, override
from ..workspace import Workspace
from .access import Access
from .dataset import Dataset
from .dataset.grid import PER_PAGE
from .desk import Desk
from .form import Form
from .listen import Given
from .outlook import Outlook, Reading
from .thumbnails import AT_ONCE, thumbnail

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Opened:
    """Seconds: `first` for the Dataset tab of the first page since the folder was read, `later` for that of
    another one, `thumbnails` for the small copies of `num_thumbnails` pictures.
    """

    first: float
    later: float
    thumbnails: float
    num_thumbnails: int


def measure(folder: Path, workspace: Workspace) -> Opened:
    """Read `folder` in this process as the page does, and show it. Raises UserError."""
    desk = Desk(workspace, Access(workspace))
    try:
        desk.project.change(override(desk.project.values, {"data.folder": str(folder)}), "page")
        dataset = Dataset(desk, Form())
        with gr.Blocks(analytics_enabled=False):
            dataset.build()
        outlook, census = _read(desk)
        held = {state: state.value for state in dataset.states}
        show = lambda page: dataset.show(outlook, Given(held, "owner", page))  # noqa: E731
        first, later = _seconds(lambda: show("first")), _seconds(lambda: show("later"))
        pictures = [sample.file for sample in census.samples[:PER_PAGE]]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            copies = _seconds(lambda: list(pool.map(lambda picture: thumbnail(workspace, picture), pictures)))
        return Opened(first, later, copies, len(pictures))
    finally:
        desk.close()


def as_text(opened: Opened) -> str:
    rows = (
        ("Dataset tab", opened.first),
        ("on more pages", opened.later),
        (f"{opened.num_thumbnails} thumbnails", opened.thumbnails),
    )
    return "\n".join(f"{name:15} {seconds:7.2f} s" for name, seconds in rows)


def _read(desk: Desk) -> tuple[Outlook, Census]:
    while (outlook := desk.look()).census is None:
        if not isinstance(outlook.error, Reading):
            raise outlook.error or UserError("The folder cannot be read.", "Check it.", "data.folder")
        time.sleep(POLL_SECONDS)
    return outlook, outlook.census


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
