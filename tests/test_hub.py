"""Fetching from the hub, played by a small server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sdtrainer import hub
from sdtrainer.events import PhaseBegan, Progress
from sdtrainer.section import UserError

FILES = {
    "config.json": b'{"model_type": "blip"}',
    "model.safetensors": bytes(3_000_000),
    "pytorch_model.bin": bytes(1000),
}
COMMIT = "0" * 39 + "1"
WANTED = hub.Wanted(
    "some/model", ("*.json", "*.safetensors"), ("config.json", "*.safetensors"), "model", 3_000_000
)


class Hub(BaseHTTPRequestHandler):
    """Gives out FILES as some/model. What was asked for is kept in `asked`."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        self.asked.append((self.command, self.path))
        if not self.path.startswith(("/api/models/some/model", "/some/model/")):
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if self.path.startswith("/api/") and "/tree/" in self.path:
            rows = [{"type": "file", "path": n, "size": len(c), "oid": _etag(c)} for n, c in FILES.items()]
            return self._send(200, json.dumps(rows).encode())
        if self.path.startswith("/api/"):
            return self._send(200, json.dumps({"id": "some/model", "sha": COMMIT}).encode())
        content = FILES[self.path.rpartition("/")[2]]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers, with_body)

    def _send(
        self, code: int, body: bytes, headers: dict[str, str] | None = None, with_body: bool = True
    ) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """The hub, played by a server here, with an empty cache."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    _point_at(f"http://127.0.0.1:{server.server_port}", tmp_path / "hub", monkeypatch)
    Hub.asked.clear()
    yield Hub
    server.shutdown()
    server.server_close()


def _point_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    values = {"ENDPOINT": url, "HF_HUB_CACHE": str(cache), "HUGGINGFACE_CO_URL_TEMPLATE": template}
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)


def _all(wanted: hub.Wanted = WANTED) -> tuple[Path, list[Any]]:
    said, doing = [], hub.fetch(wanted)
    while True:
        try:
            said.append(next(doing))
        except StopIteration as end:
            return end.value, said


def test_a_model_is_fetched_once_with_its_size_said_before(played: type[Hub]) -> None:
    assert hub.here(WANTED) is None
    folder, said = _all()
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert isinstance(said[0], PhaseBegan) and said[0].what == "Downloading some/model: 3 MB"
    assert [e for e in said if isinstance(e, Progress)][-1].done == 3
    played.asked.clear()
    assert _all() == (folder, []) and hub.here(WANTED) == folder
    assert played.asked == []


def test_what_lies_in_the_cache_in_part_is_completed(played: type[Hub]) -> None:
    folder, _ = _all()
    (folder / "model.safetensors").unlink()
    assert hub.here(WANTED) is None
    assert (_all()[0] / "model.safetensors").stat().st_size == 3_000_000


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (hub.Wanted("no/model", ("*",), (), "model"), "the hub does not give it out"),
        (hub.Wanted("some/model", ("*",), ("model.onnx",), "model"), "has no model.onnx"),
    ],
)
def test_what_the_hub_lacks_is_named(played: type[Hub], wanted: hub.Wanted, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        _all(wanted)
    assert raised.value.path == "model"


def test_offline_the_size_and_the_way_out_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _point_at("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)
    with pytest.raises(UserError, match=r"about 3 MB\) is not on this machine.*give a folder"):
        _all()


def test_a_disk_too_small_is_said_before_the_download(
    played: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match="is 3 MB, and 1 MB are free"):
        _all()
    assert not [path for verb, path in played.asked if verb == "GET" and path.endswith(".safetensors")]
