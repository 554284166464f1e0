"""Trackers: a run's curves and pictures also shown by TensorBoard or Weights & Biases, through accelerate.

Fed with the events that a run says, so that nothing is read from the card for it. Keys are the tracker's own
business and never written here. Importing this module imports neither torch nor a tracker.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import netrc
import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .config import Config, flatten, knobs
from .events import Event, Said, Sampled, Stepped, Validated
from .run_sections import RunSection
from .section import UserError
from .workspace import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Tracker:
    """`package` is what pip calls it; `of_pictures` is how it is handed pictures."""

    title: str
    package: str
    of_pictures: Mapping[str, Any] = field(default_factory=dict)


TRACKERS: Mapping[str, Tracker] = {
    "tensorboard": Tracker("TensorBoard", "tensorboard", {"dataformats": "NHWC"}),
    "wandb": Tracker("Weights & Biases", "wandb"),
}
_WITHOUT_KEY = ("offline", "disabled", "dryrun")
"""Values of WANDB_MODE with which nothing is sent, so that no key is asked for."""
_SETTING = "run.tracker"


def check(section: RunSection) -> None:
    """Raise UserError if the tracker asked for cannot work here."""
    if section.tracker == "none":
        return
    tracker = TRACKERS[section.tracker]
    if importlib.util.find_spec(tracker.package) is None:
        raise UserError(
            f"Also log to: {tracker.title} needs the package {tracker.package}, which is not installed.",
            f"Install it with: pip install {tracker.package}. Or choose 'none'.",
            _SETTING,
        )
    if section.tracker == "wandb" and not _has_login():
        raise UserError(
            "Also log to: Weights & Biases does not know you on this computer.",
            "Run 'wandb login' once, or set WANDB_API_KEY, or WANDB_MODE=offline to keep it here.",
            _SETTING,
        )


def options(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Return what accelerate is told of the tracker when it starts."""
    name = config.run.tracker
    return {} if name == "none" else {"log_with": name, "project_dir": str(folder.path)}


def logged(
    happenings: Generator[Event, None, None], accelerator: Accelerator, config: Config, folder: RunFolder
) -> Iterator[Event]:
    """Pass on the events of a run, and tell its tracker of them. A tracker that fails later on is left alone:
    the run is worth more.

    Raises:
        UserError: the tracker does not start.
    """
    log = _Log(accelerator, config, folder) if config.run.tracker != "none" else None
    with contextlib.closing(happenings), contextlib.ExitStack() as ending:
        ending.callback(accelerator.end_training)
        if log is not None:
            log.begin()
        for event in happenings:
            yield event
            if log is None:
                continue
            try:
                log.tell(event)
            except Exception as error:  # whatever a foreign library may raise
                yield Said("warning", f"{log.title} is no longer told of this run: {_first_line(error)}")
                log = None


class _Log:
    """The tracker of one run. One that goes on after a break goes on in the same curve."""

    def __init__(self, accelerator: Accelerator, config: Config, folder: RunFolder) -> None:
        self._accelerator, self._config, self._folder = accelerator, config, folder
        self._tracker = TRACKERS[config.run.tracker]

    @property
    def title(self) -> str:
        return self._tracker.title

    def begin(self) -> None:
        section, folder = self._config.run, self._folder
        # TensorBoard takes the project for the folder's name
        project = (
            (section.tracker_project or "uncategorized") if section.tracker == "wandb" else "tensorboard"
        )
        own = {"name": folder.name, "dir": str(folder.path), "id": _identity(folder), "resume": "allow"}
        try:
            self._accelerator.init_trackers(project, _settings(self._config), {"wandb": own})
        except Exception as error:
            self._accelerator.trackers.clear()  # what did not start cannot be ended
            raise UserError(
                f"Also log to: {self.title} did not start ({_first_line(error)}).",
                "Mend that, or choose 'none'.",
                _SETTING,
            ) from error

    def tell(self, event: Event) -> None:
        """Log what an event says; of most there is nothing to log."""
        match event:
            case Stepped(step=step, losses=losses, grad_norms=norms):
                rates = {f"learning rate/{group}": rate for group, rate in event.lr.items()}
                first = step - len(losses) + 1
                for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
                    self._accelerator.log({"loss": loss, "gradient norm": norm} | rates, step=number)
            case Validated(step=step, loss=loss):
                self._accelerator.log({"validation loss": loss}, step=step)
            case Sampled(step=step, index=index, path=path):
                self._show(f"picture {index + 1}", self._folder.path / path, step)

    def _show(self, name: str, file: Path, step: int) -> None:
        if not self._accelerator.is_main_process:
            return
        import numpy as np
        from PIL import Image

        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        tracker = self._accelerator.get_tracker(self._config.run.tracker)
        tracker.log_images({name: pixels[None]}, step=step, **self._tracker.of_pictures)


def _settings(config: Config) -> dict[str, Any]:
    """The settings of a run as single values, without what is secret or a place on this computer."""
    public = {knob.path for knob in knobs() if not (knob.secret or knob.is_path)}
    found = {path: value for path, value in flatten(config.values()).items() if path in public}
    return {path: v if isinstance(v, bool | int | float) else str(v) for path, v in found.items()}


def _identity(folder: RunFolder) -> str:
    """The same for a run as long as it exists."""
    made = folder.config_file.stat().st_mtime_ns
    return hashlib.sha256(f"{folder.path} {made}".encode()).hexdigest()[:16]


def _has_login() -> bool:
    """Whether Weights & Biases would start without asking for a key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in _WITHOUT_KEY:
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    given = os.environ.get("NETRC")
    places = [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_knows(place, host) for place in places)


def _knows(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:160] or type(error).__name__
