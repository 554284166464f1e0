"""Recovery: when the loss stops being a number, the run goes back to its last good state and takes less risk.

Adapters are kept in main memory; what is too large for that comes back from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import planner
from ..events import Event, Revised, RolledBack
from ..section import UserError
from . import checkpoint
from .setup import Training

SNAPSHOT_LIMIT = 2**30
"""Bytes of weights and optimizer state that are kept in main memory at most."""
STATE_BYTES = 12
"""A trained number and its two Adam states, in fp32."""
MAX_TRIES = 5
TRIES_FORGOTTEN_AFTER = 200


class Recovery:
    """Holds the last good state of a training, and counts what was tried."""

    def __init__(self, training: Training) -> None:
        self._training = training
        count = sum(p.numel() for p in training.trained.weights().values())
        self._fits_in_ram = count * STATE_BYTES < SNAPSHOT_LIMIT
        self._snapshot: checkpoint.Snapshot | None = None
        self._tries, self._last_bad = 0, -1

    def keep(self, step: int) -> None:
        """Take the state of now for good. Also with every checkpoint, so that going back voids none."""
        if self._fits_in_ram:
            self._snapshot = checkpoint.snapshot(self._training.trained, step)

    def go_back(self, bad: int, step: int) -> Iterator[Event]:
        """Go back from `step` because of step `bad`: first leave its batch out, then halve the learning rate.

        The first event says the step that now holds.

        Raises:
            UserError: it was tried often enough, or there is no state to go back to.
        """
        training, plan = self._training, self._training.plan
        self._tries = 1 if step > self._last_bad + TRIES_FORGOTTEN_AFTER else self._tries + 1
        images = ", ".join(training.feed.files(bad * plan.accumulation))
        if self._tries > MAX_TRIES:
            raise UserError(
                f"The loss stopped being a number {MAX_TRIES} times, the last time at step {bad} ({images}).",
                "Lower the learning rate, choose fp32 or bf16, or remove those images; then resume.",
                "optim.lr",
            )
        self._last_bad = bad
        back = self._restore()
        if bad not in plan.skipped and self._tries % 2 == 1:
            why = f"the batch of step {bad} ({images}) is left out"
            training.plan = plan.revised(skipped=(*plan.skipped, bad))
        else:
            why = "the learning rate is halved"
            training.plan = plan.revised(lr_scale=plan.lr_scale / 2)
        if training.is_main:
            planner.save_plan(training.plan, training.folder)
        text = f"The loss of step {bad} was not a number: back to step {back}, and {why}."
        yield RolledBack(bad, back, text)
        yield Revised(back, training.plan.revision, why)

    def _restore(self) -> int:
        """Return the step of the state that now holds."""
        if self._snapshot is not None:
            checkpoint.go_back(self._snapshot, self._training.trained)
            return self._snapshot.step
        saved = checkpoint.saved(self._training.folder.checkpoints)
        if saved:
            return checkpoint.load(saved[-1], self._training.trained)
        raise UserError(
            "The loss stopped being a number before the first checkpoint.",
            "Lower the learning rate, or choose fp32 or bf16.",
            "optim.lr",
        )
