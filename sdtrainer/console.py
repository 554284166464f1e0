"""Events on a console: one progress bar per phase, sentences between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm

from .events import (
    Event,
    Failed,
    Finished,
    PhaseBegan,
    Progress,
    RolledBack,
    RunStarted,
    Said,
    Sampled,
    Saved,
    Stepped,
    Suspended,
    Validated,
)


class Console:
    """Tells events to a stream as they pass."""

    def __init__(self, stream: TextIO, is_quiet: bool = False) -> None:
        self._stream, self._is_quiet = stream, is_quiet
        self._bar: tqdm | None = None

    def tell(self, happenings: Iterator[Event]) -> Iterator[Event]:
        """Pass events on, telling each."""
        try:
            for event in happenings:
                if not self._is_quiet:
                    self._tell(event)
                yield event
        finally:
            self._close()

    def _tell(self, event: Event) -> None:
        match event:
            case RunStarted(name=name, step=step, total=total):
                self._say(
                    f"Run '{name}': {total:,} steps" + (f", going on from step {step:,}" if step else "")
                )
            case PhaseBegan(what=what):
                self._close()
                self._say(what)
            case Progress(done=done, total=total, unit=unit):
                self._advance(done, total, unit)
            case Stepped(step=step, total=total):
                self._advance(step, total, "steps", _loss(event))
            case Validated(step=step, loss=loss):
                self._say(f"Step {step:,}: validation loss {loss:.4f}")
            case Sampled(step=step, path=path) if event.index == 0:
                self._say(f"Step {step:,}: pictures drawn, {path}")
            case Saved(what=what, path=path, bytes=size):
                self._say(f"Saved {what}: {path} ({size / 2**20:.1f} MB)")
            case Said(text=text) | RolledBack(why=text):
                self._say(text)
            case Suspended(step=step):
                self._say(f"Suspended at step {step:,}; go on with --resume.")
            case Finished(step=step):
                self._close()
                self._say(f"Finished at step {step:,}.")
            case Failed(what=what, hint=hint):
                self._say(f"{what} {hint}")

    def _advance(self, done: int, total: int, unit: str, note: str = "") -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=total, initial=done, unit=f" {unit}", file=self._stream, dynamic_ncols=True
            )
        self._bar.update(done - self._bar.n)
        self._bar.set_postfix_str(note, refresh=False)

    def _say(self, text: str) -> None:
        tqdm.write(text, file=self._stream)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _loss(event: Stepped) -> str:
    numbers = [loss for loss in event.losses if loss == loss]
    return f"loss {sum(numbers) / len(numbers):.4f}" if numbers else ""
