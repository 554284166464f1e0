"""ZIP archives: unpacked with care. What an archive says of itself is not believed until it is seen."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..data.images import EXTENSIONS
from ..data.parquet import FREELY_BYTES, MOST_TIMES
from ..data.walk import OTHERS
from ..section import UserError

WANTED = (*EXTENSIONS, ".txt", ".caption", ".jsonl", ".csv", ".parquet", ".json", ".toml")
MOST_FILES = 500_000
MOST_BYTES = 200 * 2**30
CHUNK_BYTES = 2**20


def unpack(archive: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """Unpack pictures, captions and tables into `folder`; yields how many files are done, and of how many.

    Raises:
        UserError: it is no ZIP archive, is locked, would write outside the folder, holds links, or unpacks to
            more than it may or than the disk holds.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            wanted = checked(packed, archive.name, shutil.disk_usage(folder.parent).free)
            for done, member in enumerate(wanted, 1):
                _unpack_one(packed, member, folder, archive.name)
                yield done, len(wanted)
    except UserError:
        raise
    except Exception as error:  # what unpacking raises on corrupt archives is nearly anything, as zlib's own
        raise refusal(archive.name, f"it cannot be unpacked ({error})", "Pack or copy it anew.") from error


def checked(packed: zipfile.ZipFile, name: str, free_bytes: int) -> Sequence[zipfile.ZipInfo]:
    """Return the files to unpack. Raises UserError for an archive that nothing good comes from."""
    members = [member for member in packed.infolist() if not member.is_dir()]
    if len(members) > MOST_FILES:
        raise refusal(name, f"it holds {len(members):,} files", f"Pack at most {MOST_FILES:,}.")
    for member in members:
        if fault := _fault(member):
            what = f"'{member.filename[:80]}' in it {fault}"
            raise refusal(name, what, "Unpack it yourself, if you trust it.")
    wanted = [member for member in members if _is_wanted(member.filename)]
    size = sum(member.file_size for member in wanted)
    if size > min(MOST_BYTES, free_bytes):
        gib = f"it unpacks to {size / 2**30:.1f} GB, and {free_bytes / 2**30:.1f} GB are free"
        raise refusal(name, gib, "Pack fewer pictures, or make room.")
    return wanted


def _unpack_one(packed: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, name: str) -> None:
    target = folder / PurePosixPath(member.filename)
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with packed.open(member) as source, target.open("wb") as file:
        while chunk := source.read(min(CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise refusal(name, f"'{member.filename[:80]}' is larger than it says", "Pack it anew.")
            file.write(chunk)


def _fault(member: zipfile.ZipInfo) -> str:
    path, times = member.filename, member.file_size / max(1, member.compress_size)
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path or "\0" in path or PureWindowsPath(path).drive:
        return "would be written outside of its folder"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if member.flag_bits & 1:
        return "is locked with a password"
    if member.file_size > FREELY_BYTES and times > MOST_TIMES:
        return f"unpacks to {times:,.0f} times its size"
    return ""


def _is_wanted(path: str) -> bool:
    parts = PurePosixPath(path).parts
    is_hidden = any(part.startswith(".") or part in OTHERS for part in parts)
    return not is_hidden and PurePosixPath(path).suffix.lower() in WANTED


def refusal(name: str, why: str, hint: str) -> UserError:
    return UserError(f"{name} is not imported: {why}.", hint, "source")
