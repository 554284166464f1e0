"""How far a comparison is, in trainings: one bar on a stream, with what is done now and how long still."""

from __future__ import annotations

from typing import TextIO

from tqdm import tqdm

LAYOUT = "{percentage:3.0f}% |{bar:20}| {elapsed} gone, {remaining} left: {desc}"


class Progress:
    """`total` is in trainings; work that was done in an earlier try does not count for the time left."""

    def __init__(self, stream: TextIO, total: float) -> None:
        self._bar = tqdm(total=total, file=stream, bar_format=LAYOUT, smoothing=0, leave=True)
        self._done = 0.0

    def begin(self, what: str) -> None:
        """Say what is done now."""
        self._bar.set_description_str(what)

    def tell(self, part: float) -> None:
        """Say which part of a training is done."""
        self._bar.update(self._done + part - self._bar.n)

    def end(self, trainings: float, is_new: bool) -> None:
        """Count work as done, or leave it out of the bar because it was done before."""
        if is_new:
            self._done += trainings
            self._bar.update(self._done - self._bar.n)
        else:
            self._bar.total -= trainings
            self._bar.refresh()

    def close(self) -> None:
        self._bar.close()
