"""Prior preservation: class images, shown beside the subject's own so that the model keeps what it knew.

The prior term of DreamBooth (Ruiz et al. 2022, https://arxiv.org/abs/2208.12242, eq. 2) as data: class images
are more items, their loss multiplied by the section's weight. Owns the settings; draws and reads no image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from .. import files
from ..section import Section, UserError, knob
from .census import Census, Sample
from .items import Item, plan_items
from .section import DataSection
from .sources import FROM_FILE_NAME

THROWN_AWAY = "thrown-away.json"
SHARED = ("flip", "crop", "background", "bucket_step", "bucket_min", "bucket_max", "upscale")
"""What class images have in common with the others; their captions are trained as they stand."""


class PriorSection(Section):
    """Class images: other things of the same kind, shown in turn with yours, so that a dog stays any dog."""

    class_prompt: str = knob(
        "",
        "Class prompt",
        "What your subject is, without the trigger word: 'a dog' for a certain dog. Class images are drawn"
        " from it before training; empty, and without a folder of your own, there are none.",
        level="basic",
        max_length=1000,
    )
    images: int = knob(
        200,
        "Class images",
        "How many are drawn, once for a base model and a prompt; too few are learnt by heart themselves. Of a"
        " folder of your own all are used.",
        unit="images",
        ge=1,
        le=10000,
    )
    weight: float = knob(
        1.0,
        "Class image weight",
        "How much class images count beside yours: more keeps more of what the model knew, less learns the"
        " subject faster.",
        ge=0,
        le=10,
    )
    folder: str = knob(
        "",
        "Folder of class images",
        "Your own class images instead of drawn ones; those without a caption beside them get the class"
        " prompt.",
        is_path=True,
    )
    steps: int = knob(
        0,
        "Class image sampling steps",
        "More is finer and slower to draw; 0 takes what suits the model, usually 25.",
        unit="steps",
        ge=0,
        le=200,
    )
    guidance: float = knob(
        0.0,
        "Class image guidance",
        "How strictly the class prompt is followed; 0 takes what suits the model.",
        ge=0,
        le=30,
    )
    negative: str = knob(
        "", "Class image negative prompt", "What class images should not show.", max_length=1000
    )

    @property
    def is_on(self) -> bool:
        return bool(self.class_prompt.strip() or self.folder)


def drawn(section: PriorSection, side: int, folder: Path) -> Census:
    """Return the class images that are drawn into `folder`, whether they lie there yet or not."""
    prompt = section.class_prompt.strip()
    samples = tuple(_sample(prompt, name, side, folder) for name in names(section, folder))
    return Census(folder, samples, (), f"{section.images} class images")


def names(section: PriorSection, folder: Path) -> tuple[str, ...]:
    """Return the names of the files that are used, drawn or not: a number each, but those thrown away."""
    bad = thrown_away(folder)
    good = (number for number in count() if number not in bad)
    return tuple(f"{number:05d}.png" for number in islice(good, section.images))


def number_of(sample: Sample) -> int:
    """Return the number that a drawn class image is a function of."""
    return int(Path(sample.path).stem)


def missing(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return those that are still to be drawn."""
    return tuple(sample for sample in samples if not sample.file.exists())


def thrown_away(folder: Path) -> frozenset[int]:
    """Return the numbers of the class images that were thought bad; the next numbers stand in for them."""
    file = folder / THROWN_AWAY
    if not file.is_file():
        return frozenset()
    try:
        return frozenset(map(int, json.loads(file.read_text("utf-8"))))
    except (ValueError, TypeError) as error:
        what = f"Class images: {file} cannot be read ({error})."
        raise UserError(what, "Delete it; the pictures that were thrown away may then come again.") from error


def throw_away(folder: Path, numbers: Iterable[int]) -> None:
    """Have these numbers never drawn nor used again; where the files go is the caller's choice."""
    known = thrown_away(folder) | frozenset(numbers)
    files.write_text(folder / THROWN_AWAY, json.dumps(sorted(known)))


def captioned(census: Census, section: PriorSection) -> Census:
    """Return own class images with their captions: the one beside the image, else the class prompt.

    Without a class prompt the class word of a kohya folder (1_dog) or a telling file name stands in.

    Raises:
        UserError: an image has neither.
    """
    samples = tuple(_captioned(sample, section.class_prompt.strip()) for sample in census.samples)
    bare = [s.path for s in samples if not (s.caption.strip() or s.class_word.strip())]
    if bare:
        raise UserError(
            f"Class prompt: it is empty, and {bare[0]} has no caption.",
            "Write what your class images show, as in 'a dog'.",
            "prior.class_prompt",
        )
    return replace(census, samples=samples)


def class_items(
    census: Census | None, section: PriorSection, data: DataSection, resolutions: Sequence[int]
) -> tuple[Item, ...]:
    """Return class images as items: no repeats of their own, no trigger, captions left to no chance."""
    if census is None:
        return ()
    as_they_stand = DataSection(masks="off", **{name: getattr(data, name) for name in SHARED})
    items = plan_items(census.samples, as_they_stand, resolutions)
    return tuple(replace(item, repeats=0, weight=section.weight) for item in items)


def class_word(trigger: str, samples: Sequence[Sample]) -> str:
    """Return what kind of thing the subject is, or "" if it cannot be told.

    It is what follows the rare word in a trigger ("zib cat"), or in the one folder name of all images
    ("10_zib cat"; with a trigger "10_cat" will do).
    """
    named = {sample.class_word.strip() for sample in samples}
    folder = named.pop() if len(named) == 1 else ""
    follows = trigger.strip().partition(" ")[2] or folder.partition(" ")[2]
    return (follows or (folder if trigger and folder != trigger else "")).strip()


def _sample(prompt: str, path: str, side: int, folder: Path) -> Sample:
    return Sample(
        path=path, root=folder, width=side, height=side, caption=prompt, caption_from="", class_word="",
        repeats=1, num_bytes=0, mtime_ns=0,
    )  # fmt: skip


def _captioned(sample: Sample, prompt: str) -> Sample:
    is_beside = sample.caption_from != FROM_FILE_NAME
    return replace(
        sample,
        caption=sample.caption if is_beside or not prompt else "",
        class_word=prompt or sample.class_word,
    )
