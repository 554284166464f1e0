"""Advice: what to know of a plan before the start, and which settings would answer it."""

from __future__ import annotations

import re
from pathlib import Path

from . import diffusion, optim
from .data import captions, prior
from .data.census import Census
from .families import STARTER
from .methods import method_of
from .plan import Advice, Plan
from .seams import DENOISER, T5, Facts

PROMPTS = 3
"""How many captions are offered as prompts: enough to see more than one thing, and soon drawn."""
FAR = 50
"""Times the usual learning rate: no preset and no measured run comes near."""
_FEW_STEPS = re.compile(
    r"((?<![a-z])(lcm|turbo|lightning|hyper[-_]?sd|dmd2?)|LCM|Turbo|Lightning|Hyper[-_]?SD|DMD2?)(?![a-z])"
)
_FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
"""By these a distilled model is known, which draws in a few steps: its weights have the usual shapes."""


def advise(plan: Plan, census: Census) -> tuple[Advice, ...]:
    """Return what is worth knowing before the start, the most general first."""
    config = plan.config
    found = [Advice(text) for text in optim.warnings(optim.find(plan.optimizer), config.optim)]
    found += [Advice(text) for text in diffusion.warnings(config.noise, plan.facts.prediction_type)]
    found += _rate_advice(plan)
    found += _prior_advice(plan, census)
    if _is_distilled(plan.facts):
        told = f"By its name or settings {Path(plan.facts.path).name} is made to draw in a few steps (Turbo, "
        told += "Lightning, LCM), which training unlearns. Rather teach the ordinary model that it was made "
        found.append(Advice(f"{told}from, and use the file with this one."))
    if config.optim.text_encoder_until != "100%" and not _learning_encoders(plan):
        found.append(Advice("No text encoder is trained: Text encoder learns until is ignored."))
    if T5 in plan.facts.encoders:
        found.append(
            Advice(
                "T5, the largest text encoder, is used: about 9 GB of main memory while the model is loaded.",
                {"base.t5": "off"},
            )
        )
    if plan.facts.note:
        found.append(Advice(plan.facts.note))
    if config.base.path == STARTER and config.data.folder != STARTER:
        told = "The starter is a toy that knows 71 simple things. For your own pictures choose another base "
        found.append(Advice(f"{told}model, in the tab Method."))
    if plan.num_images < 5:
        found.append(
            Advice(f"Only {plan.num_images} images: results will be narrow; 10-20 varied ones are better.")
        )
    if not config.sample.prompts:
        prompts = list(dict.fromkeys(captions.compose(s.caption, config.data, None) for s in census.samples))
        fix = {"sample.prompts": [prompt for prompt in prompts if prompt][:PROMPTS] or ["a picture"]}
        found.append(Advice("No sample prompts: you will not see what is learnt.", fix))
    if not any(s.caption.strip() for s in census.samples) and not config.data.trigger:
        found.append(Advice("No captions and no trigger word: nothing will call up what is learnt."))
    if plan.chunks > 1:
        found.append(
            Advice(f"The longest caption fills {plan.chunks} windows of 75 tokens; all of it is used.")
        )
    if plan.showings > 400:
        found.append(Advice(f"Every image is shown {plan.showings:.0f} times: it may be learnt by heart."))
    made_for, side = plan.facts.resolution, max(plan.resolutions)
    if side < 0.6 * made_for:
        told = f"{plan.facts.title} was made for {made_for} px, and draws badly at {side} px."
        found.append(Advice(told, {"train.resolution": made_for}))
    num_masked = sum(s.mask is not None for s in census.samples)
    if 0 < num_masked < len(census.samples):
        have = "1 has" if num_masked == 1 else f"{num_masked:,} have"
        told = f"Of {len(census.samples):,} pictures {have} a mask; the others are learnt whole."
        found.append(Advice(told))
    small = [s for s in census.samples if min(s.width, s.height) < 0.5 * side]
    if small:
        are = "1 image is" if len(small) == 1 else f"{len(small):,} images are"
        found.append(Advice(f"{are} much smaller than {side} px and will look soft."))
    return tuple(found)


def _is_distilled(facts: Facts) -> bool:
    scheduler, denoiser = (facts.config.get(part, {}) for part in ("scheduler", DENOISER))
    is_told = scheduler.get("_class_name") in _FEW_STEP_SCHEDULERS or denoiser.get("time_cond_proj_dim")
    return bool(is_told or _FEW_STEPS.search(Path(facts.path).name))


def _rate_advice(plan: Plan) -> list[Advice]:
    """A learning rate far above the method's own, as after a slip of the finger."""
    config = plan.config
    method, row = method_of(config.method.kind), optim.find(plan.optimizer)
    usual, given = method.lrs[config.run.goal].denoiser, plan.lrs.denoiser
    if row.fixed_lr is not None or given <= FAR * usual:
        return []
    told = f"A learning rate of {given:g} is {given / usual:,.0f} times what suits {method.title}"
    return [Advice(f"{told} ({usual:g}): it will most likely ruin the pictures.", {"optim.lr": 0})]


def _prior_advice(plan: Plan, census: Census) -> list[Advice]:
    """What class images do to the run, and where they are missing."""
    config, found = plan.config, []
    trigger, prompt = config.data.trigger.strip(), config.prior.class_prompt.strip()
    if plan.num_class_images:
        times = "once" if round(plan.showings) == 1 else f"{plan.showings:.0f} times"
        length = f"every second picture shown is one, and each of yours is shown {times}"
        found.append(Advice(f"With class images an epoch is twice as long: {length}."))
        if trigger and captions.has_word(prompt, trigger):
            without = " ".join(re.sub(re.escape(trigger), " ", prompt, flags=re.IGNORECASE).split())
            found.append(
                Advice(
                    f"The class prompt has the trigger word '{trigger}': class images would unteach it.",
                    {"prior.class_prompt": without} if without else {},
                )
            )
        return found
    word = prior.class_word(trigger, census.samples)
    forgets = config.method.kind == "full" or _learning_encoders(plan)
    if config.run.goal == "subject" and forgets and word:
        text = f"Without class images the model forgets what any other {word} looks like."
        article = "an" if word[0].lower() in "aeiou" else "a"
        found.append(Advice(text, {"prior.class_prompt": f"{article} {word}"}))
    return found


def _learning_encoders(plan: Plan) -> list[str]:
    return [part for part in plan.trained_parts if part in plan.facts.encoders]
