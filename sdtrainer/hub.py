"""Models of the Hugging Face hub: what lies in its cache on this machine, and fetching what does not.

The size is said before, how far it is meanwhile; a download that broke off goes on where it was. What comes
is held to its hash.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .events import Event, PhaseBegan, Progress
from .pace import Pace
from .section import UserError

if TYPE_CHECKING:
    from huggingface_hub.file_download import DryRunFileInfo

GB, MB = 10**9, 10**6
"""As the hub shows sizes."""
_LOOK_EVERY = 0.25


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a repository: `files` are patterns, and each pattern in `needed` must match a file.

    `setting` is what the user chose it with; `about_bytes` is what is known of its size without asking (0:
    nothing).
    """

    repo: str
    files: tuple[str, ...]
    needed: tuple[str, ...]
    setting: str
    about_bytes: int = 0


def is_id(text: str) -> bool:
    """Whether this has the form of a repository's name, and is no path."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and "\\" not in text


def here(wanted: Wanted) -> Path | None:
    """Return the folder in the cache, or None unless all of it is there. Asks nobody."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(wanted.repo, allow_patterns=list(wanted.files), local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if all(any(folder.glob(name)) for name in wanted.needed) else None


def fetch(wanted: Wanted) -> Generator[Event, None, Path]:
    """Return the folder with the wanted files, downloaded if need be.

    Raises:
        UserError: there is no such repository or it is not given out, it lacks what is needed, the hub cannot
            be reached, or the disk is too small.
    """
    folder = here(wanted)
    if folder is not None:
        return folder
    files = [file for file in _listed(wanted) if file.will_download]
    size = sum(file.file_size or 0 for file in files)
    _check_disk(wanted, size - _num_here(files))
    yield PhaseBegan("work", f"Downloading {wanted.repo}: {size_words(size)}")
    return (yield from _download(wanted, files, size))


def fetched(wanted: Wanted) -> Path:
    """Fetch without a word on how far it is. Raises UserError, as `fetch`."""
    doing = fetch(wanted)
    while True:
        try:
            next(doing)
        except StopIteration as end:
            return end.value


def sizes(wanted: Wanted) -> dict[str, int]:
    """Ask the hub how many bytes the wanted files have, by name. Raises UserError, as `fetch`."""
    return {file.filename: file.file_size or 0 for file in _listed(wanted)}


def size_words(num_bytes: int) -> str:
    """Return a size as the hub shows it: 1.9 GB, 379 MB."""
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB else f"{max(1, round(num_bytes / MB))} MB"


def _listed(wanted: Wanted) -> Sequence[DryRunFileInfo]:
    """Ask the hub which files there are."""
    from huggingface_hub import snapshot_download

    with _in_words(wanted):
        files = snapshot_download(wanted.repo, allow_patterns=list(wanted.files), dry_run=True)
    lacking = [name for name in wanted.needed if not any(Path(file.filename).match(name) for file in files)]
    if lacking:
        what = f"'{wanted.repo}' has no {' and no '.join(lacking)}."
        raise UserError(what, "Choose a repository in the format that is read here.", wanted.setting)
    return files


def _download(wanted: Wanted, files: Sequence[DryRunFileInfo], size: int) -> Generator[Event, None, Path]:
    """Fetch the files one after another, then have the library complete its cache."""
    from huggingface_hub import snapshot_download

    work, pace, first = _Work(wanted.repo, files), Pace(), _num_here(files)
    try:
        while not work.is_over.wait(_LOOK_EVERY):
            done = _num_here(files)
            left = pace.seconds_left(done - first, size - first) if done > first else None
            yield Progress(min(done, size) // MB, max(1, size // MB), "MB", left)
    finally:
        work.stop.set()
    with _in_words(wanted, is_begun=True):
        work.check()
        patterns = list(wanted.files)
        folder = snapshot_download(wanted.repo, allow_patterns=patterns, tqdm_class=_bars(threading.Event()))
    yield Progress(max(1, size // MB), max(1, size // MB), "MB")
    return Path(folder)


class _Work:
    """Files fetched in the background; `stop` asks for its end."""

    def __init__(self, repo: str, files: Iterable[DryRunFileInfo]) -> None:
        self.stop, self.is_over = threading.Event(), threading.Event()
        self._repo, self._files, self._error = repo, files, None
        threading.Thread(target=self._run, name="download", daemon=True).start()

    def _run(self) -> None:
        try:
            for file in self._files:
                _fetch(self._repo, file, self.stop)
        except Exception as error:
            self._error: Exception | None = error
        self.is_over.set()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error


def _fetch(repo: str, file: DryRunFileInfo, stop: threading.Event) -> None:
    """Write one file where the library looks for it, going on with what an earlier try left. (The library
    itself keeps nothing of a file that it did not finish.)
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    target, part = Path(file.local_path), _part(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = Path(f"{part}.lock")
    with WeakFileLock(lock):
        if target.exists():
            return
        url = hf_hub_url(repo, file.filename, revision=file.commit_hash)
        told = get_hf_file_metadata(url)
        with part.open("ab") as content:
            http_get(
                url,
                content,
                resume_size=content.tell(),
                headers=build_hf_headers(),
                expected_size=told.size,
                tqdm_class=_bars(stop),
            )
        _check_hash(part, told.etag or "")
        part.replace(target)
    lock.unlink(missing_ok=True)


def _check_hash(part: Path, etag: str) -> None:
    """Compare what came with its SHA-256, by which the hub knows large files."""
    if not re.fullmatch("[0-9a-f]{64}", etag):
        return
    with part.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != etag:
        part.unlink()
        raise OSError(f"{part.stem} came damaged")


def _part(file: DryRunFileInfo) -> Path:
    """Where a file lies until it is whole."""
    return Path(f"{file.local_path}.part")


def _num_here(files: Iterable[DryRunFileInfo]) -> int:
    """Bytes of files, whole or not."""
    places = (place for file in files for place in (Path(file.local_path), _part(file)) if place.exists())
    return sum(place.stat().st_size for place in places)


def _bars(stop: threading.Event) -> type:
    """Return a class of progress bars that shows nothing, and by which a download can be ended."""
    from tqdm import tqdm

    class Bars(tqdm):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how | {"file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise InterruptedError("it was ended")
            return super().update(n)

    return Bars


def _check_disk(wanted: Wanted, size: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        what = f"'{wanted.repo}' is {size_words(size)}, and {size_words(free)} are free in {there}."
        raise UserError(what, "Make room, or set HF_HOME to a folder on a larger disk.", wanted.setting)


@contextmanager
def _in_words(wanted: Wanted, is_begun: bool = False) -> Iterator[None]:
    """Say in a sentence why the hub gives nothing."""
    from huggingface_hub import errors

    try:
        yield
    except errors.DryRunError as error:
        raise _why(wanted, error.__cause__ or error, is_begun) from error
    except (OSError, ValueError, errors.HTTPError) as error:
        raise _why(wanted, error, is_begun) from error


def _why(wanted: Wanted, error: BaseException, is_begun: bool) -> UserError:
    from huggingface_hub import errors

    repo, size = wanted.repo, f" (about {size_words(wanted.about_bytes)})" if wanted.about_bytes else ""
    if isinstance(error, errors.GatedRepoError):
        what = f"'{repo}' is given out only to those who accepted its terms."
        hint = f"Accept them at huggingface.co/{repo} and log in here once with 'hf auth login'."
    elif isinstance(error, errors.RepositoryNotFoundError | ValueError):
        what = f"'{repo}' is no folder here, and the hub does not give it out."
        hint = "Check how it is written."
    elif is_begun:
        what = f"The download of '{repo}' broke off ({(str(error).splitlines() or [''])[0][:160]})."
        hint = "Begin again: it goes on where it stopped."
    else:
        what = f"'{repo}'{size} is not on this machine, and the hub cannot be reached."
        hint = "Go online once to download it, or give a folder that holds it."
    return UserError(what, hint, wanted.setting)
