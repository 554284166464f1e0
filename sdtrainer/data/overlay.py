"""What is kept of an image outside the user's files: captions edited in the app, crops, focus points, masks.

They live in the project, not beside the images; captions until the user writes them there.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from .. import files
from ..section import UserError
from .census import Census, Sample
from .texts import decode, one_line

SCHEMA = 2
Table = Literal["crops", "focus", "masks"]
TABLES: tuple[Table, ...] = get_args(Table)
"""Besides captions. By image path: a crop is [left, top, right, bottom] and a focus point [x, y], both in
fractions of the upright image; a mask is the name of a file in `masks`.
"""
_writing = threading.Lock()


def overlay_for(workspace: Path, folder: Path) -> Overlay:
    """Return the overlay of an image folder: the same file however the folder is written."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Overlay(workspace / "captions" / f"{digest}.json")


class Overlay:
    """Captions by image path (relative to the folder, forward slashes), in one JSON file, always whole.

    Each change reads the file anew and replaces it, so that the page and a captioning run may both write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = self._read()

    def caption(self, path: str) -> str | None:
        """Return the edited caption, None if there is none; an empty one is a caption."""
        return self._data["captions"].get(path)

    @property
    def captions(self) -> Mapping[str, str]:
        return dict(self._data["captions"])

    def entry(self, table: Table, path: str) -> Any:
        """Return what a table says of an image, None if nothing."""
        return self._data[table].get(path)

    def entries(self, table: Table) -> Mapping[str, Any]:
        return dict(self._data[table])

    def lay(self, table: Table, entries: Mapping[str, Any]) -> None:
        """Set what a table says of images; None takes it away."""

        def edit(data: dict[str, Any]) -> None:
            data[table] = {p: v for p, v in {**data[table], **entries}.items() if v is not None}

        self._change(edit)

    @property
    def masks(self) -> Path:
        """The folder of the masks made in the app."""
        return self.path.parents[1] / "masks" / self.path.stem

    def set(self, path: str, text: str) -> None:
        self.update({path: text})

    def update(self, captions: Mapping[str, str]) -> None:
        """Set many captions at once."""
        lines = {path: one_line(text) for path, text in captions.items()}
        self._change(lambda data: data["captions"].update(lines))

    def drop(self, *paths: str) -> None:
        """Forget the edits: the captions beside the images count again."""
        self._change(lambda data: [data["captions"].pop(path, None) for path in paths])

    def write_into_folder(self, census: Census) -> list[Path]:
        """Write the edited captions as UTF-8 text files beside the images; return the files written.

        What was there is kept, so that `undo` can put it back. The edits are then forgotten: the files now
        say it.
        """
        edited = [sample for sample in census.samples if self.caption(sample.path) is not None]
        stems = Counter(_stem(sample) for sample in census.samples)
        texts = {_text_file(sample, stems): self._data["captions"][sample.path] for sample in edited}
        names = {file: file.relative_to(census.folder).as_posix() for file in texts}
        self._change(lambda data: [_keep(data["replaced"], names[file], file, texts[file]) for file in texts])
        for file, text in texts.items():
            files.write_bytes(file, text.encode())
        self.drop(*(sample.path for sample in edited))
        return list(texts)

    def undo(self, folder: Path) -> list[Path]:
        """Put back the text files that `write_into_folder` replaced; return them.

        A file that was changed since is left alone: newer work is never lost.
        """
        restored = []
        for relative, entry in self._data["replaced"].items():
            file = folder.resolve() / relative
            if file.is_file() and decode(file.read_bytes()) == entry["after"]:
                if entry["before"] is None:
                    file.unlink()
                else:
                    files.write_bytes(file, entry["before"].encode())
                restored.append(file)
        self._change(lambda data: data["replaced"].clear())
        return restored

    def _change(self, edit: Callable[[dict[str, Any]], object]) -> None:
        with _writing:
            data = self._read()
            edit(data)
            files.write_bytes(
                self.path, json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True).encode()
            )
            self._data = data

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return _migrated({"schema": 1, "captions": {}, "replaced": {}})
        try:
            data = json.loads(self.path.read_text("utf-8"))
        except ValueError as error:
            what = f"The edited captions in {self.path} cannot be read ({error})."
            raise UserError(what, "Repair the file, or rename it to start anew.", "data.folder") from error
        if not isinstance(data, dict) or data.get("schema") not in (1, SCHEMA):
            what = f"The edited captions in {self.path} were written by another version of this program."
            raise UserError(what, "Use that version, or rename the file to start anew.", "data.folder")
        return _migrated(data)


def _migrated(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of schema 1, which had captions alone, as today's."""
    return data if data["schema"] == SCHEMA else {**{t: {} for t in TABLES}, **data, "schema": SCHEMA}


def _keep(replaced: dict[str, Any], name: str, file: Path, after: str) -> None:
    """Note what a file held before it is written; written twice, undo goes back to the first text."""
    before = decode(file.read_bytes()) if file.is_file() and not file.is_symlink() else None
    replaced[name] = {"before": replaced.get(name, {"before": before})["before"], "after": after}


def _text_file(sample: Sample, stems: Counter[Path]) -> Path:
    """Return the caption file of an image: a.txt, or a.png.txt where a.jpg lies beside a.png."""
    stem = _stem(sample)
    return stem.with_name((sample.file.name if stems[stem] > 1 else stem.name) + ".txt")


def _stem(sample: Sample) -> Path:
    return sample.file.with_suffix("")
