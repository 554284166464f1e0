"""What an exported file says about how it was made."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from .. import __version__, events
from ..config import knobs, to_toml
from ..events import RunStarted
from ..families import STARTER
from ..formats.metadata import Provenance, build
from ..seams import DENOISER
from .setup import Training


def metadata(training: Training, step: int) -> dict[str, str]:
    """Return the file's metadata: training settings, base model, trigger word, and the whole config."""
    plan, config = training.plan, training.plan.config
    trains_text = any(part != DENOISER for part in plan.trained_parts)
    side = max(plan.resolutions)
    return build(
        Provenance(
            name=config.run.name,
            method=config.method.kind,
            base_title=plan.facts.title,
            prediction_type=plan.facts.prediction_type,
            base_name=plan.facts.path,
            resolution=(side, side),
            steps=step,
            total_steps=plan.total_steps,
            epochs=step * plan.accumulation // plan.micro_batches,
            total_epochs=round(plan.epochs),
            batch_size=plan.batch_size,
            accumulation=plan.accumulation,
            denoiser_lr=plan.lrs.denoiser,
            text_encoder_lr=plan.lrs.text_encoder if trains_text else 0.0,
            optimizer=plan.optimizer,
            lr_schedule=config.optim.schedule,
            warmup_steps=plan.warmup_steps,
            seed=config.train.seed,
            precision=plan.precision,
            num_images=plan.num_images,
            num_class_images=plan.num_class_images,
            started=_began(training),
            finished=time.time(),
            version=__version__,
            clip_skip=config.base.clip_skip,
            min_snr_gamma=config.noise.min_snr_gamma,
            noise_offset=config.noise.offset,
            zero_terminal_snr=config.noise.zero_terminal_snr,
            loss=config.noise.loss,
            max_grad_norm=config.optim.max_grad_norm,
            gradient_checkpointing=plan.checkpointing,
            tag_frequency=_tags(
                (s.caption for s in training.draft.census.samples), config.data.tag_separator
            ),
            trigger=config.data.trigger,
            title=config.export.title,
            author=config.export.author,
            description=f"Teaches a {config.run.goal}, made with sdtrainer.",
            config_text=to_toml(config),
            path_settings=_private_settings(training),
            **training.method.provenance(config.method),
        )
    )


def _private_settings(training: Training) -> tuple[str, ...]:
    """The settings that hold paths of the user's disk. A hub id or the starter's name is none."""
    is_public = training.plan.facts.layout == "hub" or training.plan.config.base.path == STARTER
    return tuple(
        knob.path for knob in knobs() if knob.is_path and not (is_public and knob.path == "base.path")
    )


def _began(training: Training) -> float:
    starts = (e.at for e, _ in events.read(training.folder.events_file) if isinstance(e, RunStarted))
    return next(starts, time.time())


def _tags(captions: Iterable[str], separator: str) -> Counter[str]:
    return Counter(tag.strip() for caption in captions for tag in caption.split(separator) if tag.strip())
