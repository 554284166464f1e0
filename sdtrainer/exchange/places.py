"""The folders and files that another trainer's config names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..section import UserError


@dataclass(frozen=True)
class Places:
    """What `config` names lies where it says, or beside it. What came from elsewhere, in an archive or by an
    upload, names nothing outside `within`: it would bring other people's files into the set.
    """

    config: Path
    within: Path | None = None

    def folder(self, named: str) -> Path:
        """Raises UserError: there is no such folder, or it may not be named."""
        if found := next(self._found(named, Path.is_dir), None):
            return found
        if named and Path(named).is_dir():
            what = f"{self.config.name} names the folder '{named}', which lies outside of what you import."
            raise UserError(what, "Import that folder itself.", "source")
        what = f"{self.config.name} names the folder '{named}', which is not there."
        raise UserError(what, "Put it there.", "source")

    def file(self, named: str) -> Path | None:
        return next(self._found(named, Path.is_file), None)

    def _found(self, named: str, is_there: Callable[[Path], bool]) -> Iterator[Path]:
        here, beside = Path(named.replace("\\", "/")), self.config.parent
        for place in (here, beside / here, beside / here.name) if named else ():
            real = place.resolve()
            if is_there(real) and (self.within is None or real.is_relative_to(self.within.resolve())):
                yield real
