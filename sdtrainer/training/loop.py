"""The training loop: steps, and what happens between them. A generator of events that never yields inside a
step.

The state of a run is its step number and the trained tensors: noise, order, captions and learning rate are
functions of seed and step, so that a resumed run is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from accelerate.utils import broadcast_object_list

from .. import files, optim, planner
from ..events import (
    Event,
    Paused,
    Resumed,
    RolledBack,
    Said,
    Sampled,
    Saved,
    Stepped,
    Suspended,
    Validated,
)
from ..sample import Request
from ..seeds import seed_of
from . import checkpoint
from .control import Control
from .guard import Guard
from .pace import Pace
from .recovery import Recovery
from .setup import Training, move_to
from .step import in_parts, to_device
from .updates import Updates
from .validate import validation_loss

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
            self._train()
            bad = self._guard.tripped(before=self.step - 2)
            if bad is not None:
                yield from self._roll_back(bad)
            elif self._is_milestone():
                yield from self._settled(self._milestone())
            elif self._pace.is_due():
                yield self._report()
        if self.ending != "finished":
            yield from self._close_early()

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
        self._updates.begin(self.step)
        loss = torch.zeros((), device=plan.device)
        for index in range(plan.accumulation):
            loss += self._backward(self.step * plan.accumulation + index, text_learns)
        norm = self._updates.finish()
        if training.trained.average is not None:
            training.trained.average.step(self.parameters)
        loss = accelerator.reduce(loss, "mean") if accelerator.num_processes > 1 else loss
        # an overflow under loss scaling is ordinary: the scaler skips that step by itself
        self._guard.watch(self.step, *((loss,) if accelerator.scaler is not None else (loss, norm)))
        self._unsaid.append((loss, norm))
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
        """Validate and draw, with the weights that an export would have."""
        training = self.training
        if is_validating and training.held_out is not None:
            with export_weights(training):
                loss = validation_loss(training)
            yield Validated(self.step, loss)
        if is_sampling and training.is_main and training.plan.config.sample.prompts:
            move_to(training.parts, training.plan, "sample")
            for index, request in enumerate(requests(training.plan)):
                yield self._draw(index, request)
            move_to(training.parts, training.plan, "train")
        self._pace.rest()

    def _draw(self, index: int, request: Request) -> Sampled:
        with export_weights(self.training):
            image = self.training.sampler.draw(request)
        path = self.training.folder.samples / f"{self.step:06d}-{index:02d}.png"
        files.write(path, lambda part: image.save(part, format="PNG"))
        relative = path.relative_to(self.training.folder.path).as_posix()
        return Sampled(self.step, index, request.prompt, request.seed, relative)

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
        self._guard.forget()
        self._unsaid = []
        for event in self._recovery.go_back(bad, self.step):
            if isinstance(event, RolledBack):
                self.step = event.to_step
            yield event

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


def requests(plan: planner.Plan) -> list[Request]:
    """The pictures that the plan draws each time."""
    sample, side = plan.config.sample, max(plan.resolutions)
    return [
        Request(
            prompt,
            sample.negative,
            sample.width or side,
            sample.height or side,
            sample.steps,
            sample.guidance,
            sample.seed + index,
            plan.config.base.clip_skip,
        )
        for index, prompt in enumerate(sample.prompts)
    ]


@contextlib.contextmanager
def export_weights(training: Training) -> Iterator[None]:
    """Hold the weights that an export would have: the running average, or schedule-free's own."""
    trained, parameters = training.trained, list(training.trained.weights().values())
    with optim.for_evaluation(trained.optimizer, training.row):
        if trained.average is None:
            yield
            return
        kept = [parameter.data for parameter in parameters]
        for parameter, mean in zip(parameters, trained.average.shadow_params, strict=True):
            parameter.data = mean.to(parameter.device)  # in fp32, as a copy into bf16 weights would not be
        try:
            yield
        finally:
            for parameter, data in zip(parameters, kept, strict=True):
                parameter.data = data


def memory_bytes(device: str) -> int:
    """The most memory that this run has held: of the card, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    import psutil

    return psutil.Process().memory_info().rss


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
