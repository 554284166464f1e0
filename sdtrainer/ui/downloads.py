"""Hand out what a run exported: a file as it is, a folder as a zip made on the way out.

Only what lies in the run's output folder can be asked for, and no link that leads out of the workspace is
followed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse

from .. import files
from ..section import UserError
from ..workspace import RunFolder, Workspace
from .desk import Desk

CHUNK = 2**20
ZIP = ".zip"


@dataclass(frozen=True)
class Offer:
    """`name` is what a browser saves it as."""

    name: str
    label: str
    bytes: int


def offered(run: RunFolder) -> list[Offer]:
    """Return the exports of a run, by name; links, and what is just being written, are left out."""
    return [_offer(path) for path in _exports(run)]


def route(desk: Desk):
    """Return the handler of download/{run}/{file}."""

    def download(request: Request) -> Response:
        try:
            run = desk.run(request.path_params["run"])
        except UserError:
            return PlainTextResponse("Not found", 404)
        wanted = request.path_params["file"]
        path = next((p for p in _exports(run) if _offer(p).name == wanted), None)
        return _answer(path, wanted, desk.workspace) if path else PlainTextResponse("Not found", 404)

    return download


def made_route(desk: Desk):
    """Return the handler of made/{path}: what tools and tries wrote, and what was uploaded."""

    def download(request: Request) -> Response:
        path = desk.workspace.root / request.path_params["path"]
        if not _is_made(path, desk.workspace):
            return PlainTextResponse("Not found", 404)
        return _answer(path, _offer(path).name, desk.workspace)

    return download


def zipped(folder: Path, home: Workspace) -> Iterator[bytes]:
    """Yield a folder as a zip, piece by piece; stored, as weights do not get smaller."""
    out = _Outlet()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and home.contains(p)):
            entry = zipfile.ZipInfo.from_file(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                while piece := source.read(CHUNK):
                    target.write(piece)
                    yield out.take()
            yield out.take()
    yield out.take()


def _is_made(path: Path, home: Workspace) -> bool:
    """Whether it lies, links followed, where results lie."""
    if not path.exists():
        return False
    folders = (home.tools, home.drawings, home.uploads)
    real, runs = path.resolve(), home.runs.resolve()
    if real.is_relative_to(runs):
        return real.relative_to(runs).parts[1:2] == ("output",)
    return any(folder.resolve() in real.parents for folder in folders)


def _exports(run: RunFolder) -> list[Path]:
    found = sorted(run.output.iterdir()) if run.output.is_dir() else []
    return [path for path in found if not path.name.startswith(".") and not path.is_symlink()]


def _offer(path: Path) -> Offer:
    if path.is_dir():
        return Offer(path.name + ZIP, f"{path.name} (folder, as a zip)", files.size_of(path))
    return Offer(path.name, path.name, files.size_of(path))


def _answer(path: Path, name: str, home: Workspace) -> Response:
    if path.is_file():
        return FileResponse(path, filename=name)
    headers = {"content-disposition": f"attachment; filename*=utf-8''{quote(name)}"}
    return StreamingResponse(zipped(path, home), media_type="application/zip", headers=headers)


class _Outlet(io.RawIOBase):
    """Takes what a zip writes and gives it on; it cannot go back, and the zip is made accordingly."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._held += piece
        return len(piece)

    def take(self) -> bytes:
        taken, self._held = bytes(self._held), bytearray()
        return taken
