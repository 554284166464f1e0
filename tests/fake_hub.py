"""A hub on this machine with one small repository: the answers that huggingface_hub asks for, and no more."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """`given` are the bytes that were given out, by file; the next answer longer than `breaks_at` breaks off
    there. `refusal` is answered to everything, as (status, code of the error). `lies` in its hashes.
    """

    def __init__(self, repo: str, folder: Path) -> None:
        self.repo, self.folder = repo, folder
        self.given: dict[str, int] = {}
        self.breaks_at: int | None = None
        self.refusal: tuple[int, str] | None = None
        self.lies = False
        self.num_requests = 0

    def files(self) -> dict[str, bytes]:
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    def answer(self, path: str) -> object | None:
        """Return the JSON of an address of the API."""
        if re.match(rf"/api/models/{self.repo}/tree/{COMMIT}", path):
            files = self.files().items()
            return [
                {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
                for name, content in files
            ]
        if re.match(rf"/api/models/{self.repo}(/revision/main)?(\?|$)", path):
            return {
                "id": self.repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in self.files()],
            }
        return None


def etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def running(hub: FakeHub, cache: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve the repository, and have huggingface_hub ask here and keep what it fetches in `cache`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._give(is_whole=False)

    def do_GET(self) -> None:
        self._give(is_whole=True)

    def _give(self, is_whole: bool) -> None:
        self.hub.num_requests += 1
        if not self.path.startswith((f"/api/models/{self.hub.repo}", f"/{self.hub.repo}/")):
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if self.hub.refusal is not None:
            status, code = self.hub.refusal
            return self._send(status, b"", {"X-Error-Code": code})
        if (found := self.hub.answer(self.path)) is not None:
            return self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})
        name = re.sub(rf"^/{self.hub.repo}/resolve/[^/]+/", "", self.path)
        content = self.hub.files().get(name)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        tag = etag(content + b"!" * self.hub.lies)
        told = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        if not is_whole:
            return self._send(200, content, told, with_body=False)
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0")) or 0)
        return self._stream(name, content, start, told)

    def _stream(self, name: str, content: bytes, start: int, told: dict[str, str]) -> None:
        rest = content[start:]
        self._send(206 if start else 200, rest, told, with_body=False)
        end = len(content)
        if self.hub.breaks_at is not None and len(rest) > self.hub.breaks_at:
            end, self.hub.breaks_at = start + self.hub.breaks_at, None
        self.wfile.write(content[start:end])
        self.hub.given[name] = self.hub.given.get(name, 0) + end - start
        self.close_connection = True

    def _send(self, status: int, body: bytes, told: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for key, value in (told | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is said on the console."""
