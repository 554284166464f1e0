"""Every family learns whatever its models may predict: noise, velocity, the picture, or the flow."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Trainer

from sdtrainer.events import Finished, Validated

LEGAL = {
    "base": ("epsilon", "v_prediction", "sample"),
    "sdxl": ("epsilon", "v_prediction", "sample"),
    "sd3": ("auto",),
}
EVERYTHING: dict[str, Any] = {
    "method": {"kind": "full"},
    "train__steps": "12",
    "train__validate_every": "12",
    "optim__lr": 3e-3,
    "optim__warmup": "0",
    "optim__schedule": "constant",
    "optim__name": "adamw",
    "sample__prompts": [],
    "checkpoint__every": "0",
}


@pytest.mark.parametrize(
    ("name", "predicts"), [(name, kind) for name, kinds in LEGAL.items() for kind in kinds]
)
def test_it_learns(trainer: Trainer, request: pytest.FixtureRequest, name: str, predicts: str) -> None:
    path = str(request.getfixturevalue(name))
    folder = trainer.new(base__path=path, base__prediction_type=predicts, **EVERYTHING)
    happened = trainer.run(folder)
    assert isinstance(happened[-1], Finished)
    losses = [event.loss for event in happened if isinstance(event, Validated)]
    assert losses[-1] < 0.95 * losses[0]
