"""The settings that belong to no one room: the run, its length, pictures, checkpoints and files."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from .seams import Goal
from .section import Duration, Section, knob


class RunSection(Section):
    """The run as a whole."""

    name: str = knob(
        "my-lora",
        "Name",
        "Names the run folder and the exported file. Letters, digits, spaces, dots, dashes and underscores.",
        level="basic",
        max_length=80,
    )
    goal: Goal = knob(
        "subject",
        "Goal",
        "What is taught: one subject (a person, pet or object), a style, or a broader concept. Used for "
        "advice and in the file's description.",
        level="basic",
    )
    note: str = knob("", "Note", "Anything worth remembering about this run.", lines=2)
    tracker: Literal["none", "tensorboard", "wandb"] = knob(
        "none",
        "Also log to",
        "Shows loss, learning rate and pictures in another program too: tensorboard on this computer (run "
        "tensorboard --logdir workspace/runs), or wandb (Weights & Biases), which gets them and the settings "
        "over the internet. Either must be installed first.",
    )
    tracker_project: str = knob(
        "sdtrainer",
        "Project",
        "The project at Weights & Biases in which the run appears; empty is 'uncategorized'. TensorBoard has "
        "no projects.",
        max_length=80,
    )

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w .\-]*", name) or name.endswith((".", " ")):
            raise ValueError(
                "use letters, digits, spaces, dots, dashes and underscores, beginning with a letter or digit"
            )
        return name


class TrainSection(Section):
    """How long and how finely."""

    steps: Duration = knob(
        "1500",
        "Length",
        "Steps (1500) or epochs (10 epochs; one epoch shows every image, with its repeats, once). Too few "
        "learns nothing; too many learns the pictures by heart.",
        level="basic",
    )
    batch_size: int = knob(
        1,
        "Batch size",
        "Images per step. Larger is smoother and uses the card better, but needs more memory.",
        unit="images",
        level="basic",
        ge=1,
        le=256,
    )
    resolution: int | list[int] = knob(
        0,
        "Resolution",
        "Size of the training pictures: their area is that of a square of this side. 0 takes what the model "
        "was made for. A list such as [512, 768] trains on several sizes at once.",
        unit="px",
        level="basic",
    )
    seed: int = knob(
        42, "Seed", "The same seed and settings give the same result on the same machine.", ge=0, le=2**31 - 1
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = knob(
        "auto",
        "Precision",
        "Number format of the computation. 'auto' takes bf16 where the card has it, else fp16, and fp32 on a "
        "processor. fp32 needs about twice the memory and time.",
    )
    batch_parts: int = knob(
        0,
        "Pass the batch in",
        "The images of a batch go through the model in this many parts, one after the other: the same result "
        "with less memory, a little slower. 0 = auto: in one, unless memory is short.",
        unit="parts",
        ge=0,
        le=256,
    )
    weights: Literal["auto", "fp32", "bf16"] = knob(
        "auto",
        "Trained weights kept as",
        "Number format of the weights that learn, and of their gradients. bf16 halves both; changes are then "
        "rounded up or down by chance, so that small ones are not lost. Needs Precision bf16.",
    )
    checkpointing: Literal["auto", "on", "off"] = knob(
        "auto",
        "Gradient checkpointing",
        "Saves much memory by computing some things twice; each step takes about a quarter longer.",
    )
    offload: Literal["auto", "off", "half", "all"] = knob(
        "auto",
        "Layers waiting in main memory",
        "Half or all of the denoiser's blocks come onto the card only for as long as they are used: saves "
        "most of the model's memory there, but each step takes longer. Needs an NVIDIA card, gradient "
        "checkpointing, and a method that leaves the base model as it is.",
    )
    validate_every: Duration = knob(
        "10%",
        "Validate every",
        "How often the loss on held-out images is measured. Needs validation images; 0 switches it off.",
    )

    @field_validator("steps")
    @classmethod
    def _is_absolute(cls, steps: str) -> str:
        if steps.endswith("%"):
            raise ValueError("write steps (1500) or epochs (10 epochs)")
        if float(steps.split()[0]) <= 0:
            raise ValueError("at least one step is needed")
        return steps

    @field_validator("resolution")
    @classmethod
    def _is_sensible(cls, resolution: int | list[int]) -> int | list[int]:
        sides = resolution if isinstance(resolution, list) else [resolution]
        for side in sides:
            if resolution != 0 and (side < 64 or side > 2048 or side % 8):
                raise ValueError("sides are multiples of 8 from 64 to 2048, or 0 for the model's own")
        if not sides:
            raise ValueError("give at least one size")
        return resolution

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The sizes asked for; empty for the model's own."""
        sides = self.resolution if isinstance(self.resolution, list) else [self.resolution]
        return tuple(sides) if sides != [0] else ()


class SampleSection(Section):
    """Pictures drawn while training, to watch what is learnt."""

    prompts: list[str] = knob(
        [],
        "Prompts",
        "One picture is drawn for each, with the same seeds every time. Use the trigger word in some "
        "and leave it out in others. Empty: no pictures.",
        level="basic",
        lines=4,
    )
    every: Duration = knob(
        "10%", "Draw every", "How often pictures are drawn. 0 draws only at the end.", level="basic"
    )
    at_start: bool = knob(
        True, "Draw before training", "Shows what the model draws before it has learnt anything."
    )
    negative: str = knob("", "Negative prompt", "What the pictures should not show.")
    steps: int = knob(
        0,
        "Sampling steps",
        "More is finer and slower. 0 takes what suits the model: 25, for Stable Diffusion 3 28 or 40.",
        unit="steps",
        ge=0,
        le=200,
    )
    guidance: float = knob(
        0.0,
        "Guidance",
        "How strictly the prompt is followed; too high burns the colours. 0 takes what suits the model: 7 "
        "for Stable Diffusion 1 and 2, 5 for XL, 3.5 to 7 for 3.",
        ge=0,
        le=30,
    )
    width: int = knob(0, "Width", "0 takes the training resolution.", unit="px", ge=0, le=2048, multiple_of=8)
    height: int = knob(
        0, "Height", "0 takes the training resolution.", unit="px", ge=0, le=2048, multiple_of=8
    )
    in_turn: Literal["auto", "on", "off"] = knob(
        "auto",
        "Draw with parts in turn",
        "Only the part of the model that is at work is on the card while drawing: text encoders, then the "
        "denoiser, then the VAE. Saves memory; each picture takes a moment longer.",
    )
    seed: int = knob(1, "First seed", "Prompt number n is drawn with this seed + n.", ge=0, le=2**31 - 1)


class CheckpointSection(Section):
    """Saved states from which a run can go on."""

    every: Duration = knob(
        "10%",
        "Save a checkpoint every",
        "How much work a crash may cost. 0 saves none before the end.",
        level="basic",
    )
    keep: int = knob(
        2,
        "Checkpoints kept",
        "Older ones are deleted. Each holds weights and optimizer state.",
        ge=1,
        le=1000,
    )


class ExportSection(Section):
    """The files for other programs."""

    precision: Literal["fp32", "fp16", "bf16"] = knob(
        "fp16",
        "Stored as",
        "Number format of the exported file. fp16 halves the size; the loss is not visible.",
    )
    formats: list[Literal["webui", "diffusers", "pt"]] = knob(
        ["webui"],
        "Formats",
        "webui: the file that A1111, Forge and ComfyUI read, and diffusers mostly too. diffusers: that "
        "library's own layout. pt: the older embedding file of A1111. The page says who reads which.",
    )
    title: str = knob(
        "", "Title", "Shown by programs that read the file's description. Empty: the run's name."
    )
    author: str = knob("", "Author", "Stored in the file if given.")

    @field_validator("formats")
    @classmethod
    def _not_empty(cls, formats: list[str]) -> list[str]:
        if not formats:
            raise ValueError("choose at least one format")
        return formats
