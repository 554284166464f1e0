"""Models of the Hugging Face hub: what lies in its cache on this machine, and fetching what does not.

The size is said before, how far it is meanwhile; a download that broke off goes on where it was.
"""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .events import Event, PhaseBegan, Progress
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
    files = _listed(wanted)
    size = sum(file.file_size or 0 for file in files if file.will_download)
    _check_disk(wanted, size)
    yield PhaseBegan("work", f"Downloading {wanted.repo}: {size_words(size)}")
    return (yield from _download(wanted, size))


def size_words(num_bytes: int) -> str:
    """Return a size as the hub shows it: 1.9 GB, 379 MB."""
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB else f"{max(1, round(num_bytes / MB))} MB"


def _listed(wanted: Wanted) -> Sequence[DryRunFileInfo]:
    """Ask the hub which files there are."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        files = snapshot_download(wanted.repo, allow_patterns=list(wanted.files), dry_run=True)
    except DryRunError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise _refused(wanted) from error
        raise _offline(wanted) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise _refused(wanted) from error
    except OSError as error:
        raise _offline(wanted) from error
    lacking = [name for name in wanted.needed if not any(Path(file.filename).match(name) for file in files)]
    if lacking:
        what = f"'{wanted.repo}' has no {' and no '.join(lacking)}."
        raise UserError(what, "Choose a repository in the format that is read here.", wanted.setting)
    return files


def _download(wanted: Wanted, size: int) -> Generator[Event, None, Path]:
    from huggingface_hub import snapshot_download

    bars, ended = _bars(), {}

    def load() -> None:
        try:
            patterns = list(wanted.files)
            ended["at"] = snapshot_download(wanted.repo, allow_patterns=patterns, tqdm_class=bars)
        except Exception as error:
            ended["error"] = error

    thread = threading.Thread(target=load, name="download", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_EVERY)
        yield Progress(min(bars.num_bytes(), size) // MB, max(1, size // MB), "MB")
    if "error" in ended:
        what = f"The download of '{wanted.repo}' broke off ({_first_line(ended['error'])})."
        raise UserError(what, "Begin again: it goes on where it stopped.", wanted.setting) from ended["error"]
    return Path(ended["at"])


def _bars() -> Any:
    """Return a class of progress bars that shows nothing, and counts."""
    from tqdm import tqdm

    class Bars(tqdm):
        made: list[tqdm] = []  # noqa: RUF012 - one class for each download

        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how | {"file": io.StringIO()})
            if how.get("unit") == "B":
                self.made.append(self)

        @classmethod
        def num_bytes(cls) -> int:
            return max((int(bar.n) for bar in cls.made), default=0)

    return Bars


def _check_disk(wanted: Wanted, size: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        what = f"'{wanted.repo}' is {size_words(size)}, and {size_words(free)} are free in {there}."
        raise UserError(what, "Make room, or set HF_HOME to a folder on a larger disk.", wanted.setting)


def _offline(wanted: Wanted) -> UserError:
    size = f" (about {size_words(wanted.about_bytes)})" if wanted.about_bytes else ""
    return UserError(
        f"'{wanted.repo}'{size} is not on this machine, and the hub cannot be reached.",
        "Go online once to download it, or give a folder that holds it.",
        wanted.setting,
    )


def _refused(wanted: Wanted) -> UserError:
    what = f"'{wanted.repo}' is no folder here, and the hub does not give it out."
    return UserError(what, "Check how it is written.", wanted.setting)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
