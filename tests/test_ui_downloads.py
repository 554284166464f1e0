"""What a run exported can be taken away, a folder as a zip, and nothing else can be asked for."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from sdtrainer.config import Config
from sdtrainer.ui import downloads
from sdtrainer.workspace import RunFolder, Workspace, create_run


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    run = create_run(workspace.runs, Config())
    for name, content in {"a.safetensors": b"file", "b.pt": b"old", "m/unet/w.bin": bytes(3_000_000)}.items():
        path = run.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (run.output / ".m.12.part").mkdir()
    return run


def test_files_and_folders_are_offered_with_their_size(run: RunFolder) -> None:
    assert [(f.name, f.bytes) for f in downloads.offered(run)] == [
        ("a.safetensors", 4),
        ("b.pt", 3),
        ("m.zip", 3_000_000),
    ]


def test_a_folder_arrives_whole_as_a_zip_and_in_pieces(run: RunFolder, workspace: Workspace) -> None:
    pieces = list(downloads.zipped(run.output / "m", workspace))
    assert max(map(len, pieces)) < 2 * downloads.CHUNK
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["m/unet/w.bin"] and archive.read("m/unet/w.bin") == bytes(3_000_000)


def test_links_out_of_the_workspace_are_not_followed(
    run: RunFolder, workspace: Workspace, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (run.output / "c.pt").symlink_to(secret)
    (run.output / "m" / "link").symlink_to(secret)
    assert "c.pt" not in [f.name for f in downloads.offered(run)]
    with zipfile.ZipFile(io.BytesIO(b"".join(downloads.zipped(run.output / "m", workspace)))) as archive:
        assert archive.namelist() == ["m/unet/w.bin"]
