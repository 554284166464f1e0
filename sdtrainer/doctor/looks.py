"""Looks at the pixels of many pictures, on all cores; what was seen is remembered until a file changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..data.census import Census, Problem, Sample
from ..data.images import BadImage, Header, open_small, problem_of
from ..data.index import Index, Known
from ..data.walk import Found, extension_of
from .look import SIDE, Look, look_at

KIND = "look 1"
"""The number grows when the same pixels would be told of otherwise."""
AT_ONCE = 16


class Looks:
    """`seen` by path, and `problems` of what cannot be decoded; both grow as `look` goes on."""

    def __init__(self, census: Census, index: Index) -> None:
        self.samples, self._known = census.samples, Known(index, KIND)
        self.seen: dict[str, Look] = {}
        self.problems: list[Problem] = []

    def look(self) -> Iterator[int]:
        """Look at all; yield how many were."""
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="looks") as pool:
            for start in range(0, len(self.samples), AT_ONCE):
                part = self.samples[start : start + AT_ONCE]
                self._known.expect([_found(sample) for sample in part])
                for sample, found in zip(part, pool.map(self._one, part), strict=True):
                    self._take(sample, found)
                yield start + len(part)
        self._known.close()

    def _one(self, sample: Sample) -> Look | Problem:
        if (values := self._known.get(_found(sample))) is not None:
            return Look(*values)
        try:
            return look_at(open_small(sample.file, SIDE))
        except BadImage as error:
            return problem_of(sample, error)

    def _take(self, sample: Sample, found: Look | Problem) -> None:
        if isinstance(found, Problem):
            self.problems.append(found)
        else:
            self.seen[sample.path] = found
            if self._known.get(_found(sample)) is None:
                self._known.put(_found(sample), found)


def headers_of(samples: Sequence[Sample], index: Index) -> Mapping[str, Header]:
    """Return the headers that reading the folder has remembered."""
    known, files = Known(index, "header"), [_found(sample) for sample in samples]
    known.expect(files)
    found = {file.path: known.get(file) for file in files}
    return {path: Header(*values) for path, values in found.items() if values is not None}


def _found(sample: Sample) -> Found:
    folder, _, name = sample.path.rpartition("/")
    return Found(sample.path, sample.num_bytes, sample.mtime_ns, folder, extension_of(name))
