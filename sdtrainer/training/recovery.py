"""Recovery: when the loss stops being a number, the run goes back to its last good state and takes less risk;
when the card's memory runs out, it takes the step again, and then by a leaner plan.

Adapters are kept in main memory; what is too large for that comes back from the last checkpoint, or is made
anew from the base model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from .. import fitting, planner
from ..events import Event, Revised, RolledBack, Said
from ..section import UserError
from . import checkpoint, shortage
from .checkpoint import Trained
from .setup import Training, attached_anew, rearrange

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
        self._last_shortage: int | None = None
        self._first_groups = copy.deepcopy(training.trained.optimizer.state_dict()["param_groups"])

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

    def make_room(self, step: int, is_torn: bool) -> Iterator[Event]:
        """Have step `step`, in which the card's memory ran out, taken again: once as it was, as another
        program may have had the memory for a moment; when it runs out again soon, by the next leaner plan.

        `is_torn`: the weights may have changed in part, and the last good state is put in their place.

        Raises:
            UserError: no plan is leaner.
        """
        training = self._training
        self._drop_gradients(is_torn)
        shortage.free()
        if is_torn:
            back = self._restore()
            why = f"The card ran out of memory while step {step} changed the weights: back to step {back}."
            yield RolledBack(step, back, why)
        else:
            back = step
        is_again = self._last_shortage is not None and step <= self._last_shortage + TRIES_FORGOTTEN_AFTER
        self._last_shortage = step
        if not is_again:
            yield Said(
                "warning",
                f"The card ran out of memory at step {step}. What could be freed was, and the step is taken "
                "again. Nothing was lost.",
            )
            return
        found = fitting.leaner(training.plan)
        if found is None:
            raise UserError(
                f"The card ran out of memory at step {step}, and nothing is left that would save any.",
                "Close other programs that use the card, then resume. If there are none, start again with a "
                "smaller resolution, batch or rank.",
                "train.resolution",
            )
        plan, what = found
        rearrange(training, plan)
        yield Said(
            "warning",
            f"The card ran out of memory at step {step}: from here on {what}. Nothing was lost.",
        )
        yield Revised(back, plan.revision, what)

    def _drop_gradients(self, is_torn: bool) -> None:
        self._training.trained.optimizer.zero_grad(set_to_none=True)
        scaler = self._training.accelerator.scaler
        if is_torn and scaler is not None:
            scaler.update(scaler.get_scale())  # it would take the next gradients for unscaled already

    def _restore(self) -> int:
        """Return the step of the state that now holds."""
        if self._snapshot is not None:
            checkpoint.go_back(self._snapshot, self._training.trained)
            return self._snapshot.step
        saved = checkpoint.saved(self._training.folder.checkpoints)
        if saved:
            return checkpoint.load(saved[-1], self._training.trained)
        trained = self._training.trained
        first = Trained(attached_anew(self._training), trained.optimizer, trained.accelerator, None)
        trained.start_anew(first.weights(), self._first_groups)
        return 0
