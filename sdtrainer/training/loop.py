"""The training loop: steps, and what happens between them. A generator of events that never yields inside a
step.

The state of a run is its step number and the trained tensors: noise, order, captions and learning rate are
functions of seed and step, so that a resumed run is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator

import torch
from accelerate.utils import broadcast_object_list

from .. import files, optim
from ..events import (
    Event,
    Paused,
    Resumed,
    RolledBack,
    Said,
    Saved,
    Stepped,
    Suspended,
)
from ..hardware import moves_card_memory
from ..pace import Pace
from ..section import UserError
from ..seeds import seed_of
from . import checkpoint
from .control import Control
from .guard import Guard
from .looking import look
from .recovery import Recovery
from .setup import Training
from .shortage import ran_out
from .spill import Spill
from .step import in_parts, to_device
from .updates import Updates

SNAPSHOT_EVERY = 50
ORDERS_EVERY = 8


class Loop:
    """Trains from `step` on. `ending` says how it ended: finished, stopped (by order) or suspended."""

    def __init__(self, training: Training, control: Control, step: int) -> None:
        self.training, self.control, self.step = training, control, step
        self.ending = "finished"
        self.parameters = list(training.trained.weights().values())
        self._guard, self._pace = Guard(training.plan.device), Pace()
        self._generator = torch.Generator(training.plan.device)
        self._unsaid: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._rates: dict[str, float] = {}
        self._recovery = Recovery(training)
        self._updates = Updates(training.trained, training.plan)
        self._is_torn = False
        self._spill = spill_watch(training.plan.device)

    @property
    def total(self) -> int:
        return self.training.plan.total_steps

    def run(self) -> Iterator[Event]:
        if self.step == 0:
            yield from self._look(is_sampling=self.training.plan.config.sample.at_start)
        self._recovery.keep(self.step)
        while self.step < self.total:
            yield from self._obey()
            if self.ending != "finished":
                break
            is_taken = yield from self._attempt()
            if not is_taken:
                continue
            bad = self._guard.tripped(before=self.step - 2)
            if bad is not None:
                yield from self._roll_back(bad)
            elif self._is_milestone():
                yield from self._settled(self._milestone())
            elif self._pace.is_due():
                yield self._report()
                yield from self._spilt()
        if self.ending != "finished":
            yield from self._close_early()

    def _attempt(self) -> Generator[Event, None, bool]:
        """Take one step. If the card's memory runs out in it, make room instead, and return False: the same
        step is to be taken again.
        """
        try:
            self._train()
            return True
        except RuntimeError as error:
            # several processes take each step together: one of them cannot take it again
            if not ran_out(error) or self.training.accelerator.num_processes > 1:
                raise
        yield from self._make_room()
        return False

    def _make_room(self) -> Iterator[Event]:
        is_torn, self._is_torn = self._is_torn, False
        try:
            for event in self._recovery.make_room(self.step, is_torn):
                if isinstance(event, RolledBack):
                    self._go_back_to(event.to_step)
                yield event
        except UserError:
            if self._guard.settle() is None:
                yield from self._save()
            raise
        self._pace.rest()
        if self._spill is not None:
            self._spill.forget()

    def _train(self) -> None:
        """One optimizer step. The only host-device traffic is the batch and the seed."""
        training, plan = self.training, self.training.plan
        config = plan.config.optim
        schedule = optim.schedule_of(training.row, config)
        factor = optim.lr_factor(
            schedule, self.step, plan.total_steps, plan.warmup_steps, config.restarts, config.min_lr_ratio
        )
        optimizer, accelerator = training.trained.optimizer, training.accelerator
        text_learns = self.step < plan.encoder_steps
        self._rates = optim.set_lr(
            optimizer, factor * plan.lr_scale, () if text_learns else plan.encoder_groups
        )
        if self.step in plan.skipped:
            not_a_number = torch.full((), math.nan)
            self._unsaid.append((not_a_number, not_a_number))
            self.step += 1
            return
        self._is_torn = plan.fused_backward
        self._updates.begin(self.step)
        loss = torch.zeros((), device=plan.device)
        for index in range(plan.accumulation):
            loss += self._backward(self.step * plan.accumulation + index, text_learns)
        self._is_torn = True
        norm = self._updates.finish()
        if training.trained.average is not None:
            training.trained.average.step(self.parameters)
        loss = accelerator.reduce(loss, "mean") if accelerator.num_processes > 1 else loss
        # an overflow under loss scaling is ordinary: the scaler skips that step by itself
        self._guard.watch(self.step, *((loss,) if accelerator.scaler is not None else (loss, norm)))
        self._unsaid.append((loss, norm))
        self._is_torn = False
        self.step += 1
        self._pace.tick()

    def _backward(self, number: int, text_learns: bool) -> torch.Tensor:
        """Add the gradients of batch `number`; returns its share of the step's loss. Activations of one part
        are free again before the next.
        """
        training, plan = self.training, self.training.plan
        accelerator, module = training.accelerator, training.step_module
        batch = to_device(training.feed.batch(number), plan.device)
        seed = seed_of(plan.config.train.seed, "step", number, accelerator.process_index)
        self._generator.manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        with accelerator.autocast():
            parts = in_parts(accelerator.unwrap_model(module), batch, self._generator)
        loss, ends_step = 0.0, (number + 1) % plan.accumulation == 0
        for index, part in enumerate(parts, 1):
            is_last = ends_step and index == len(parts)
            with contextlib.nullcontext() if is_last else accelerator.no_sync(module):
                mean = module(part, self._generator, text_learns).mean()
                share = mean / (plan.accumulation * len(batch.weight) / len(part.weight))
                accelerator.backward(share)
            loss += share.detach()
        return loss

    def _is_milestone(self) -> bool:
        plan = self.training.plan
        clocks = (plan.sample_every, plan.checkpoint_every, plan.validate_every, SNAPSHOT_EVERY)
        return self.step == self.total or any(_is_due(every, self.step) for every in clocks)

    def _milestone(self) -> Iterator[Event]:
        """Whatever is due at this step."""
        yield self._report()
        plan, is_end = self.training.plan, self.step == self.total
        yield from self._look(
            is_sampling=is_end or _is_due(plan.sample_every, self.step),
            is_validating=is_end or _is_due(plan.validate_every, self.step),
        )
        if is_end or _is_due(plan.checkpoint_every, self.step):
            yield from self._save()
        else:
            self._recovery.keep(self.step)
        self._pace.rest()

    def _look(self, is_sampling: bool, is_validating: bool = True) -> Iterator[Event]:
        yield from look(self.training, self.step, is_sampling, is_validating)
        self._pace.rest()

    def _save(self) -> Iterator[Event]:
        training = self.training
        self._recovery.keep(self.step)
        if training.is_main:
            path = checkpoint.save(training.folder.checkpoints, training.trained, self.step)
            checkpoint.prune(training.folder.checkpoints, training.plan.config.checkpoint.keep)
            relative = path.relative_to(training.folder.path).as_posix()
            yield Saved(self.step, "checkpoint", relative, files.size_of(path))
        training.accelerator.wait_for_everyone()

    def _roll_back(self, bad: int) -> Iterator[Event]:
        for event in self._recovery.go_back(bad, self.step):
            if isinstance(event, RolledBack):
                self._go_back_to(event.to_step)
            yield event

    def _go_back_to(self, step: int) -> None:
        self._guard.forget()
        self._unsaid = []
        self.step = step

    def _spilt(self) -> Iterator[Event]:
        """Warn if the driver moved memory of this run; from what was just reported."""
        text = self._spill.look(self._pace.seconds_per_unit, memory_bytes("cuda")) if self._spill else ""
        if text:
            yield Said("warning", text)

    def _obey(self) -> Iterator[Event]:
        for word in self._orders():
            if word in ("stop", "suspend"):
                self.ending = {"stop": "stopped", "suspend": "suspended"}[word]
            elif word == "pause":
                yield from self._pause()
            elif word == "sample":
                yield from self._settled(self._look(is_sampling=True, is_validating=False))
            elif word == "save":
                yield from self._settled(self._save())

    def _orders(self) -> list[str]:
        accelerator = self.training.accelerator
        if accelerator.num_processes == 1:
            return self.control.take()
        if self.step % ORDERS_EVERY:
            return []
        words = [self.control.take() if accelerator.is_main_process else []]
        return broadcast_object_list(words)[0]

    def _pause(self) -> Iterator[Event]:
        yield self._report()
        yield Paused(self.step)
        while self.ending == "finished":
            for word in self.control.take(wait=0.2):
                if word == "go":
                    self._pace.rest()
                    yield Resumed(self.step)
                    return
                if word in ("stop", "suspend"):
                    self.ending = {"stop": "stopped", "suspend": "suspended"}[word]

    def _settled(self, work: Iterator[Event]) -> Iterator[Event]:
        """Do what keeps something for later, but only once every verdict is in."""
        bad = self._guard.settle()
        yield from work if bad is None else self._roll_back(bad)

    def _close_early(self) -> Iterator[Event]:
        bad = self._guard.settle()
        if bad is not None:
            yield from self._roll_back(bad)
        if self._unsaid:
            yield self._report()
        if self.ending == "stopped" and bad is None:
            yield from self._look(is_sampling=True)
        yield from self._save()
        if self.ending == "suspended":
            yield Suspended(self.step)
        else:
            yield Said("info", f"Stopped at step {self.step} of {self.total}; what was learnt is kept.")

    def _report(self) -> Stepped:
        """Bring the steps since the last report to the processor: the one place where values are read."""
        losses = (
            torch.stack([loss.float().cpu() for loss, _ in self._unsaid]).tolist() if self._unsaid else []
        )
        norms = torch.stack([norm.float().cpu() for _, norm in self._unsaid]).tolist() if self._unsaid else []
        self._unsaid = []
        plan, pace = self.training.plan, self._pace
        images = self.step * plan.accumulation * plan.batch_size * plan.processes
        left = pace.seconds_per_unit * (self.total - self.step) if pace.seconds_per_unit else None
        return Stepped(
            self.step,
            self.total,
            losses,
            norms,
            self._rates,
            pace.seconds_per_unit,
            left,
            images,
            memory_bytes(plan.device),
        )


def spill_watch(device: str) -> Spill | None:
    """Return what watches for memory that the driver moves, where drivers do so."""
    if device != "cuda" or not moves_card_memory():
        return None
    return Spill(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def memory_bytes(device: str) -> int:
    """The most memory that this run has held: of the card, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    import psutil

    return psutil.Process().memory_info().rss


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
