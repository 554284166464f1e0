"""What a run needs before its first step: model loaded, caches filled, method attached, optimizer made.

A `Training` holds these live objects; the loop and the export use them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psutil
import torch

from .. import families, fitting, optim, planner, storage
from ..config import Config
from ..data.cache import Cache
from ..data.census import Census
from ..data.items import Item, captions_of, plan_items
from ..data.loading import Filling, Loader, check_images, check_masks, fill_latents, fill_text, without
from ..data.masks import Masks
from ..data.prior import class_items
from ..data.section import DataSection
from ..data.stores import LatentStore, TextStore
from ..events import Event, PhaseBegan, Progress, Said
from ..hardware import detect
from ..methods import method_of
from ..pace import Pace
from ..plan import Plan
from ..planner import Draft
from ..sample import Sampler
from ..seams import T5, VAE, Family, Method, ParamGroup, Parts
from ..section import UserError
from ..workspace import RunFolder, Workspace
from . import class_images, waiting
from .base import DTYPES, bring_only, load, loaded, move_to
from .checkpoint import Trained
from .encoding import Encoding
from .feed import Feed
from .shortage import first_that_fits
from .step import TrainStep

if TYPE_CHECKING:
    from accelerate import Accelerator

PLAN_SECONDS = 600.0


@dataclass
class Training:
    """A run, ready to train. `plan` is replaced by its revisions."""

    folder: RunFolder
    draft: Draft
    plan: Plan
    family: Family
    method: Method
    parts: Parts
    accelerator: Accelerator
    feed: Feed
    held_out: Loader | None
    step_module: torch.nn.Module
    trained: Trained
    row: optim.Optimizer
    sampler: Sampler

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process


def decide(folder: RunFolder, workspace: Workspace) -> Draft:
    """Return the run's plan: the one it was started with, or a new one made from its config.

    Raises:
        UserError: names the setting that stands in the way.
    """
    kept = planner.load(folder)
    if kept is not None:
        return kept
    if os.environ.get("RANK", "0") != "0":
        return _plan_of_the_first(folder)
    made = drafted(folder.config(), workspace)
    planner.save(made, folder)
    return made


def drafted(config: Config, workspace: Workspace) -> Draft:
    """Return the plan of a config on this machine, every caption's tokens counted. Raises UserError."""
    facts = families.recognise(config.base)
    family = families.family_of(facts)
    tokenizers = family.load(facts, (), {})
    method_of(config.method.kind).add_words(tokenizers, config.method)
    machine = detect()
    made, found = fitting.draft(config, workspace, machine, partial(family.count_tokens, tokenizers))
    storage.check(made.plan, found.ledger, machine, workspace.disk_free)
    return made


def _plan_of_the_first(folder: RunFolder) -> Draft:
    """Return the plan that the first of several processes makes: their cards need not be alike."""
    deadline = time.monotonic() + PLAN_SECONDS
    while time.monotonic() < deadline:
        if kept := planner.load(folder):
            return kept
        time.sleep(0.2)
    raise UserError("The first process made no plan.", "Look at what it said.")


def prepare(
    folder: RunFolder,
    draft: Draft,
    workspace: Workspace,
    accelerator: Accelerator,
    family: Family | None = None,
) -> Generator[Event, None, Training]:
    """Load, cache and attach, with `family` in place of the one that knows the base model. Yields events and
    returns the Training.
    """
    plan = draft.plan
    family, method = family or families.family_of(draft.facts), method_of(plan.config.method.kind)
    base = yield from load(plan, family)
    parts = base.parts
    if plan is not base.plan and accelerator.is_main_process:
        planner.save_plan(base.plan, folder)
    plan = base.plan
    if draft.class_images is not None and not plan.config.prior.folder:
        yield from class_images.draw(draft.class_images, base, accelerator)
    yield PhaseBegan("cache", "Preparing images and captions")
    encoding = Encoding(plan, family, parts, base.autocast)
    making = _Making(encoding, _stores(plan, parts, Cache(workspace.cache)), accelerator)
    yield from _left_out(draft.census, draft.validation, draft.class_images)
    loader = yield from _loader(_items(draft), making)
    held_out = None
    if draft.validation is not None:
        unvaried = plan_items(draft.validation.samples, _plain(plan.config.data), plan.resolutions)
        held_out = yield from _loader(unvaried, making)
        if held_out.masks:
            yield Said("info", "The validation loss goes by the masks of the held-out pictures.")
    seed, rank, world = plan.config.train.seed, accelerator.process_index, accelerator.num_processes
    feed = Feed(loader, plan.batch_size, seed, rank, world)
    yield PhaseBegan("train", f"Teaching with {method.title}")
    first_that_fits(*[partial(move_to, parts, plan, "train")] * 2)
    torch.manual_seed(plan.config.train.seed)
    rates = plan.config.optim
    groups = attach(method, parts, plan)
    move_to(parts, plan, "train")  # what was attached to a layer in main memory learns on the card
    row = optim.find(plan.optimizer)
    step_module, optimizer = accelerator.prepare(
        TrainStep(family, parts, plan), optim.build(row, groups, rates), device_placement=[False, False]
    )
    trained = Trained(parts, optimizer, accelerator, None)
    if rates.ema:
        from diffusers.training_utils import EMAModel

        trained.average = EMAModel(trained.weights().values(), decay=rates.ema_decay, use_ema_warmup=False)
        trained.average.to(dtype=torch.float32)  # in bf16 it would stand still
    return Training(
        folder,
        draft,
        plan,
        family,
        method,
        parts,
        accelerator,
        feed,
        held_out,
        step_module,
        trained,
        row,
        base.sampler,
    )


def exact_parts(training: Training) -> None:
    """Put T5 back as it was loaded, for a file that holds all of the model."""
    plan, parts = training.plan, training.parts
    if plan.t5_as != "plain" and not training.method.keeps_base:
        dtypes = {T5: DTYPES[plan.place(T5, "cache").precision]}
        parts.modules[T5] = training.family.load(plan.facts, (T5,), dtypes).modules[T5]


def attached_anew(training: Training) -> Parts:
    """Return the model on the CPU as it was before the first step, its trained weights included."""
    plan = training.plan
    parts = loaded(plan, training.family)
    torch.manual_seed(plan.config.train.seed)
    attach(training.method, parts, plan)
    return parts


def rearrange(training: Training, plan: Plan) -> None:
    """Go on by a leaner plan, and keep it for those who resume."""
    waiting.arm(training.parts.denoiser, plan.offloaded, plan.device, before=training.plan.offloaded)
    training.plan = training.accelerator.unwrap_model(training.step_module).plan = plan
    arm(training.parts, plan)
    if training.is_main:
        planner.save_plan(plan, training.folder)


def attach(method: Method, parts: Parts, plan: Plan) -> list[ParamGroup]:
    """Put the method on the model, its weights in the plan's format, ready for training."""
    groups = method.attach(parts, plan.config.method, plan.lrs)
    for group in groups:
        for parameter in group.parameters:
            parameter.data = parameter.data.to(DTYPES[plan.trained_as])
    arm(parts, plan)
    return groups


def arm(parts: Parts, plan: Plan) -> None:
    """Switch on dropout and checkpointing where the plan says so."""
    for part, module in parts.modules.items():
        place = plan.place(part, "train")
        if place.is_checkpointed:
            _checkpoint_activations(module)
        module.train(place.is_trainable or place.is_checkpointed)


def fingerprint(module: torch.nn.Module) -> str:
    """Return a hash of all weights, by which cached latents and text know their model."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Stores:
    latents: LatentStore
    texts: TextStore


@dataclass(frozen=True)
class _Making:
    """What filling the caches needs."""

    encoding: Encoding
    stores: _Stores
    accelerator: Accelerator


def _stores(plan: Plan, parts: Parts, cache: Cache) -> _Stores:
    text_model = "-".join(fingerprint(module) for module in parts.text_encoders.values())
    latents = LatentStore(cache, fingerprint(parts.vae), plan.place(VAE, "cache").precision)
    return _Stores(
        latents, TextStore(cache, text_model, plan.config.base.clip_skip, plan.chunks, plan.precision)
    )


def _left_out(*censuses: Census | None) -> Iterator[Event]:
    for problem in (problem for census in censuses if census for problem in census.skipped):
        yield Said("warning", f"{problem.file} is left out: {problem.sentence}")


def _items(draft: Draft) -> tuple[Item, ...]:
    """What a run is trained on: the images, and class images beside them."""
    config, resolutions = draft.plan.config, draft.plan.resolutions
    images = plan_items(draft.census.samples, config.data, resolutions)
    return images + class_items(draft.class_images, config.prior, config.data, resolutions)


def _loader(items: tuple[Item, ...], making: _Making) -> Generator[Event, None, Loader]:
    """Fill the caches for these images; returns the Loader of those that could be read."""
    encoding, stores, accelerator = making.encoding, making.stores, making.accelerator
    plan = encoding.plan
    _bring(encoding, (VAE,))
    mine = items[accelerator.process_index :: accelerator.num_processes]
    if plan.cache_latents:
        if accelerator.num_processes > 1:  # each fills its share first, then all find everything there
            yield from _told(fill_latents(mine, stores.latents, encoding.encode), "images")
            accelerator.wait_for_everyone()
        looking = fill_latents(items, stores.latents, encoding.encode)
    else:
        looking = check_images(items, stores.latents.cache)
    filling = yield from _told(looking, "images")
    for problem in filling.problems:
        yield Said("warning", f"{problem.file} is left out: {problem.sentence}")
    items, masks = _readable(items, filling), None
    if any(item.mask for item in items):
        masks = Masks(plan.facts.pixels_per_latent)
        checked = yield from _told(check_masks(items, masks), "masks")
        for problem in checked.problems:
            yield Said("warning", f"{problem.file} is left out: {problem.sentence}")
        items = _readable(items, checked)
    if plan.cache_text:
        _bring(encoding, plan.facts.encoders)
        yield from _told(fill_text(captions_of(items), stores.texts, encoding.encode_text), "captions")
    yield from encoding.warnings()
    return Loader(
        items,
        stores.latents if plan.cache_latents else None,
        stores.texts if plan.cache_text else None,
        None if plan.cache_text else encoding.tokenize,
        masks,
        keep_bytes=psutil.virtual_memory().available // 4,
    )


def _bring(encoding: Encoding, names: Sequence[str]) -> None:
    """Have on the card what is at work; if that does not fit, encoding finds another way."""
    first_that_fits(partial(bring_only, encoding.parts, encoding.plan, names), lambda: None)


def _readable(items: tuple[Item, ...], filling: Filling) -> tuple[Item, ...]:
    """The items whose images could be read. Raises UserError if no image or no class image is left."""
    left = without(items, filling)
    for is_class_image in {item.is_class_image for item in items} - {item.is_class_image for item in left}:
        what, path = ("Class images", "prior.folder") if is_class_image else ("Images", "data.folder")
        raise UserError(f"{what}: none of them could be read.", "Replace the broken files.", path)
    return left


def _told(fillings: Iterator[Filling], unit: str) -> Generator[Event, None, Filling]:
    """Tell the progress of a filling; returns how it ended."""
    pace, filling = Pace(), Filling(0, 0)
    for filling in fillings:
        if pace.is_due():
            left = pace.seconds_left(filling.done, filling.total)
            yield Progress(filling.done, filling.total, unit, left)
    return filling


def _plain(section: DataSection) -> DataSection:
    """Validation sees every image and caption as they are."""
    chance = {
        "flip": False,
        "crop": "center",
        "shuffle_tags": False,
        "tag_dropout": 0.0,
        "caption_dropout": 0.0,
    }
    return section.model_copy(update=chance)


def _checkpoint_activations(module: torch.nn.Module) -> None:
    """diffusers and transformers name the same switch differently."""
    switch = getattr(module, "enable_gradient_checkpointing", None) or module.gradient_checkpointing_enable
    switch()
