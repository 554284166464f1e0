"""ZIP archives: unpacked with care. What an archive says of itself is not believed until it is seen."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from .. import files
from ..data.images import EXTENSIONS, UNREAD_EXTENSIONS
from ..data.parquet import FREELY_BYTES, MOST_TIMES
from ..data.walk import OTHERS
from ..section import UserError

WANTED = (*EXTENSIONS, ".txt", ".caption", ".jsonl", ".csv", ".parquet", ".json", ".toml")
PICTURES = (*EXTENSIONS, *UNREAD_EXTENSIONS, ".parquet")
"""Those that cannot be read are unpacked too, so that it is said of each."""
MOST_FILES = 500_000
MOST_BYTES = 200 * 2**30
CHUNK_BYTES = 2**20
PACKED = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".xz", ".bz2")
BEGINNINGS: Mapping[bytes, str] = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zXZ": "an xz archive",
    b"<": "a web page",
}
"""What a file that is named .zip may be otherwise, by its first bytes."""
UNPACK = "Unpack it yourself, and import the folder."
TRUSTED = "If you trust it, unpack it yourself, and import the folder."


def unpack(archive: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """Unpack pictures, captions and tables into `folder`; yields how many files are done, and of how many.

    Raises:
        UserError: it is no ZIP archive, is locked, would write outside the folder, holds links, or unpacks to
            more than it may or than the disk holds.
    """
    try:
        if kind := _otherwise(archive):
            hint = "Download the archive itself." if "page" in kind else UNPACK
            raise refusal(archive.name, f"it is {kind}, and only named .zip", hint)
        with zipfile.ZipFile(archive) as packed:
            wanted = checked(packed, archive.name, shutil.disk_usage(folder.parent).free)
            for done, member in enumerate(wanted, 1):
                _unpack_one(packed, member, folder, archive.name)
                yield done, len(wanted)
    except UserError:
        raise
    except Exception as error:  # what unpacking raises on corrupt archives is nearly anything, as zlib's own
        if isinstance(error, OSError) and error.errno in files.FAULTS:
            raise
        why = f"it is damaged or cut off ({error})"
        raise refusal(archive.name, why, "Copy, download or pack it anew.") from error


def checked(packed: zipfile.ZipFile, name: str, free_bytes: int) -> Sequence[zipfile.ZipInfo]:
    """Return the files to unpack. Raises UserError for an archive that nothing good comes from."""
    members = [member for member in packed.infolist() if not member.is_dir()]
    if len(members) > MOST_FILES:
        raise refusal(name, f"it holds {len(members):,} files", f"Pack at most {MOST_FILES:,}.")
    for member in members:
        if fault := _fault(member):
            why, hint = fault
            raise refusal(name, f"'{member.filename[:80]}' in it {why}", hint)
    wanted = [member for member in members if _is_wanted(_path(member))]
    if not any(_path(member).lower().endswith(PICTURES) for member in wanted):
        is_nested = any(_path(member).lower().endswith(PACKED) for member in members)
        what = "it holds another archive, and no pictures" if is_nested else "it holds no pictures"
        raise refusal(name, what, UNPACK if is_nested else "Pack PNG, JPEG or WebP files.")
    size = sum(member.file_size for member in wanted)
    if size > min(MOST_BYTES, free_bytes):
        what = f"it unpacks to {files.told_size(size)}, and {files.told_size(free_bytes)} are free"
        raise refusal(name, what, "Pack fewer pictures, or make room.")
    return wanted


def _unpack_one(packed: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, name: str) -> None:
    target = folder / _path(member)
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with packed.open(member) as source, target.open("wb") as file:
        while chunk := source.read(min(CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise refusal(name, f"'{member.filename[:80]}' is larger than it says", "Pack it anew.")
            file.write(chunk)


def _otherwise(archive: Path) -> str:
    """Say what a file is that is no ZIP archive, if its first bytes tell."""
    with archive.open("rb") as file:
        begins = file.read(8)
    return next((kind for start, kind in BEGINNINGS.items() if begins.startswith(start)), "")


def _path(member: zipfile.ZipInfo) -> str:
    """Return where it shall lie; some programs for Windows write backslashes."""
    return member.filename.replace("\\", "/")


def _fault(member: zipfile.ZipInfo) -> tuple[str, str] | None:
    """Return what is wrong with it, and what to do about that."""
    path, times = _path(member), member.file_size / max(1, member.compress_size)
    if path.startswith("/") or ".." in PurePosixPath(path).parts or PureWindowsPath(path).drive:
        return "would be written outside of its folder", TRUSTED
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link to another file", TRUSTED
    if member.flag_bits & 1:
        return "is locked with a password", UNPACK
    if member.file_size > FREELY_BYTES and times > MOST_TIMES:
        return f"unpacks to {times:,.0f} times its size", TRUSTED
    return None


def _is_wanted(path: str) -> bool:
    parts = PurePosixPath(path).parts
    is_hidden = any(part.startswith(".") or part in OTHERS for part in parts)
    return not is_hidden and path.lower().endswith((*WANTED, *PICTURES))


def refusal(name: str, why: str, hint: str) -> UserError:
    return UserError(f"{name} is not imported: {why}.", hint, "source")
