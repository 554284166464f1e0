"""One setting in this process: the user's own run for some images, timed, and then counted for a step."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from .. import config as configs
from .. import workspace
from ..section import UserError
from ..training.control import Control
from ..training.run import accelerator_of
from ..training.setup import decide, prepare
from ..training.shortage import ran_out
from ..workspace import Workspace
from . import gauges
from .outcomes import Outcome
from .speed import returned
from .steps import Steps

WARM_UP = 2
"""Steps before the clock starts."""
BLOCKS, LEAST = 3, 2
"""So often the clock is read, each time after so many steps at least."""


def measure(values: dict[str, Any], images: int, home: Workspace) -> dict[str, Any]:
    """Train with these settings for so many images; what was encoded before is taken from the workspace.

    Returns an Outcome as plain values. What cannot be trained here has its `failure` instead of numbers.
    """
    try:
        with tempfile.TemporaryDirectory() as runs:
            return asdict(_measured(configs.build(values), images, Path(runs), home))
    except UserError as error:
        return asdict(Outcome(failure=str(error)))
    except RuntimeError as error:
        if not ran_out(error):
            raise
        return asdict(Outcome(failure="The card's memory does not suffice."))


def _measured(config: configs.Config, images: int, runs: Path, home: Workspace) -> Outcome:
    folder = workspace.create_run(runs, config)
    draft = decide(folder, home)
    plan = draft.plan
    training = returned(prepare(folder, draft, home, accelerator_of(plan, folder)))
    steps = Steps(training, Control(), 0)
    each = plan.batch_size * plan.accumulation
    count = max(LEAST, math.ceil((math.ceil(images / each) - WARM_UP) / BLOCKS))
    losses, times = steps.losses(WARM_UP), []
    for _ in range(BLOCKS):
        began = time.perf_counter()
        losses += steps.losses(count)
        times.append((time.perf_counter() - began) / count)
    seconds = median(times)
    later = [loss for loss in losses[len(losses) // 2 :] if math.isfinite(loss)]
    return Outcome(
        seconds_per_step=seconds,
        spread=(max(times) - min(times)) / 2,
        images_per_second=each / seconds,
        peak_bytes=gauges.peak_of(lambda: steps.losses(1), steps.tensors(), plan.device).allocated,
        loss=fmean(later) if later else None,
        images=len(losses) * each,
    )
