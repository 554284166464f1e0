"""The ways from noise to a picture, by A1111's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

OWN: Literal["model's own"] = "model's own"
SamplerName = Literal[
    "model's own", "Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ 2M Karras", "DPM++ 2M SDE Karras", "DDIM",
    "UniPC",
]  # fmt: skip
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # name: class of diffusers, its options
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    ),
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
assert get_args(SamplerName) == (OWN, *SAMPLERS)
_FLOW = "Euler"
"""What flow matching's own scheduler does."""


def made(name: str, like: Any) -> Any:
    """Return a scheduler of this name with the noise of another."""
    import diffusers

    cls, options = SAMPLERS[name]
    return getattr(diffusers, cls).from_config(like.config, **options)


def name_of(scheduler: Any) -> str:
    """Return A1111's name for what a scheduler does."""
    own, config = type(scheduler).__name__, dict(scheduler.config)
    fitting = [
        name for name, (cls, options) in SAMPLERS.items() if cls == own and options.items() <= config.items()
    ]
    return fitting[-1] if fitting else _FLOW
