"""Drawing alone: how a base model lies on the card where nothing is trained, decided as it is for a run.

The plan has no steps, and of its phases only drawing has anything on the card.
"""

from __future__ import annotations

from dataclasses import replace

from . import config as configs
from .axes import AXES
from .data.census import one_picture
from .decisions import resolve
from .families import BaseSection
from .fitting import fit
from .hardware import Machine
from .plan import Plan
from .seams import Facts

_AXES = tuple(axis for axis in AXES if axis.path in ("sample.in_turn", "base.t5"))


def plan(
    base: BaseSection,
    facts: Facts,
    machine: Machine,
    size: tuple[int, int] = (0, 0),
    zero_terminal_snr: bool = False,
) -> Plan:
    """Return the plan by which pictures of this width and height (px; 0: the model's own) are drawn.

    Where card or main memory have no room for all of the model, its parts take turns, and T5, if that is left
    to auto, is kept in fewer bits or left out. The denoiser stays as it is, for adapters to be merged into.

    Raises:
        UserError: the model cannot draw this size, or T5 cannot be kept as it is set.
    """
    values = {
        "base": base.model_dump() | {"quantize": "plain"},
        "method": {"kind": "lora", "rank": 1},
        "noise": {"zero_terminal_snr": zero_terminal_snr},
        "sample": {"prompts": ["a picture"], "width": size[0], "height": size[1]},
    }
    made = resolve(configs.build(values), facts, one_picture(facts.resolution), None, machine)
    placements = tuple(
        place if place.phase == "sample" else replace(place, device="cpu") for place in made.placements
    )
    drawing = replace(made, total_steps=0, cache_latents=False, cache_text=False, placements=placements)
    return fit(drawing, machine, _AXES).plan
