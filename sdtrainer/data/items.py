"""What is shown and in which order: pure functions of the folder, the seed and a number.

A run is resumed by its batch number alone; every process computes the same order and takes its share of it.
"""

from __future__ import annotations

import functools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .buckets import CENTER, Crop, Fit, Point, Size, Table, fit, table_for, window
from .captions import chunks_needed, compose, variants
from .census import Problem, Sample
from .section import DataSection

VISIBLE_ENLARGEMENT = 1.5
"""Images enlarged more than this look soft, and the model learns it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image at one resolution, with the settings it is shown by. `weight` multiplies its loss.

    `fit` is what is seen of it without chance; `section` says how its caption, crop and mirroring vary. A
    class image has no `repeats`: all of them together are shown as often as all the others, in turn.
    """

    sample: Sample
    section: DataSection
    resolution: int
    fit: Fit
    repeats: int
    weight: float = 1.0

    @property
    def bucket(self) -> Size:
        return self.fit.size

    @property
    def is_class_image(self) -> bool:
        return self.repeats == 0

    @property
    def mask(self) -> Path | None:
        return None if self.section.masks == "off" else self.sample.mask

    @property
    def background(self) -> str:
        """The colour behind transparent parts."""
        return self.sample.background or self.section.background

    @property
    def flips(self) -> tuple[bool, ...]:
        """The mirrorings that training may draw."""
        return (False, True) if self.section.flip else (False,)

    @property
    def caption(self) -> str:
        """The caption as composed without chance."""
        return compose(self.sample.caption, self.section, None, self.sample.class_word)


@dataclass(frozen=True, slots=True)
class Draw:
    """One showing of an item.

    `position` is the window's, 0 to 1 along each axis, CENTER where the item says what is seen; without a
    seed the caption is fixed.
    """

    item: int
    flip: bool = False
    position: Point = CENTER
    caption_seed: int | None = None


Order = Iterable[list[Draw]]


def plan_items(
    samples: Sequence[Sample], section: DataSection, resolutions: Sequence[int]
) -> tuple[Item, ...]:
    """Return every image once per resolution. Class images are more items, made in `prior`."""
    tables = [table_for(resolution, section) for resolution in resolutions]
    return tuple(item for table in tables for item in _items(samples, section, table))


def item_problems(items: Iterable[Item]) -> Iterator[Problem]:
    """Yield a warning for each image that is too small for its resolution."""
    for item in items:
        times = item.fit.enlargement
        if times > VISIBLE_ENLARGEMENT:
            sentence = f"At {_by(item.fit.source)} it is enlarged {times:.1f} times for {item.resolution} px"
            hint = "; expect soft results, or choose a lower resolution."
            yield Problem(item.sample.path, "small", sentence + hint, "warning")
        elif not item.section.upscale and item.bucket not in table_for(item.resolution, item.section).sizes:
            sentence = f"{_by(item.fit.source)} is too small for {item.resolution} px; it trains at"
            yield Problem(item.sample.path, "small", f"{sentence} {_by(item.bucket)}.", "warning")


def bucket_counts(items: Iterable[Item]) -> dict[Size, int]:
    """Return how many showings per epoch fall into each bucket, narrowest bucket first; no class images."""
    counts: dict[Size, int] = defaultdict(int)
    for item in items:
        counts[item.fit.size] += item.repeats  # none, if it is a class image
    counts = {bucket: count for bucket, count in counts.items() if count}
    return dict(sorted(counts.items()))


def num_batches(items: Sequence[Item], batch_size: int, world: int = 1) -> int:
    """Return how many batches an epoch has for each of `world` processes."""
    return math.ceil(_num_batches(items, batch_size) / world)


def _num_batches(items: Sequence[Item], batch_size: int) -> int:
    """The most batches that an epoch can need: its class images fall into other buckets each time."""
    counts = bucket_counts(items)
    batches = sum(math.ceil(n / batch_size) for n in counts.values())
    left = sum(counts.values()) if any(item.is_class_image for item in items) else 0
    buckets = {item.bucket for item in items if item.is_class_image}
    for fills in sorted(-counts.get(bucket, 0) % batch_size + 1 for bucket in buckets):
        if fills <= left:  # one more than the bucket's last batch has room for begins another
            batches, left = batches + 1, left - fills
    return batches + left // batch_size


def epoch_batches(items: Sequence[Item], batch_size: int, seed: int, epoch: int) -> list[list[Draw]]:
    """Return the batches of one epoch: every item as often as its repeats, each batch of one bucket, and as
    many class images again.

    A bucket's last batch may be smaller than the others: no image is left out.
    """
    rng = random.Random(f"order {seed} {epoch}")
    by_bucket: dict[Size, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_bucket[item.bucket] += [index] * item.repeats
    for index in class_turns(items, seed, epoch):
        by_bucket[items[index].bucket].append(index)
    batches = []
    for indices in by_bucket.values():
        rng.shuffle(indices)
        draws = [_draw(items, index, rng) for index in indices]
        batches += [draws[start : start + batch_size] for start in range(0, len(draws), batch_size)]
    rng.shuffle(batches)
    return _divided(batches, _num_batches(items, batch_size))


def class_turns(items: Sequence[Item], seed: int, epoch: int) -> list[int]:
    """Return the class images of an epoch by their index: as many as there are showings of other images.

    Every class image has had its turn before any comes again, in a new order each round.
    """
    images = [index for index, item in enumerate(items) if item.is_class_image]
    if not images:
        return []
    count = sum(item.repeats for item in items)
    first_round, start = divmod(epoch * count, len(images))
    rounds = math.ceil((start + count) / len(images))
    turns = []
    for number in range(first_round, first_round + rounds):
        turns += random.Random(f"class images {seed} {number}").sample(images, len(images))
    return turns[start : start + count]


def _divided(batches: list[list[Draw]], count: int) -> list[list[Draw]]:
    """Halve the largest batches until there are `count`: all epochs are of one length."""
    while len(batches) < count:
        place = max(range(len(batches)), key=lambda index: len(batches[index]))
        batch = batches[place]
        half = math.ceil(len(batch) / 2)
        batches[place : place + 1] = [batch[:half], batch[half:]]
    return batches


def fixed_batches(items: Sequence[Item], batch_size: int) -> list[list[Draw]]:
    """Return every item once, nothing left to chance: the order of validation."""
    by_bucket: dict[Size, list[Draw]] = defaultdict(list)
    for index, item in enumerate(items):
        by_bucket[item.bucket].append(Draw(index))
    return [
        draws[start : start + batch_size]
        for draws in by_bucket.values()
        for start in range(0, len(draws), batch_size)
    ]


def share(batches: Sequence[list[Draw]], rank: int, world: int) -> list[list[Draw]]:
    """Return the batches of one of `world` processes.

    All get equally many: the first ones are shown again at the end.
    """
    rounds = math.ceil(len(batches) / world)
    return [batches[(turn * world + rank) % len(batches)] for turn in range(rounds)]


def order(
    items: Sequence[Item], batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[list[Draw]]:
    """Yield batches without end from the process's batch number `start` on, all that a resume needs."""
    assert items, "nothing to show"
    epoch, index = position(start, num_batches(items, batch_size, world))
    while True:
        yield from share(epoch_batches(items, batch_size, seed, epoch), rank, world)[index:]
        epoch, index = epoch + 1, 0


def position(batch: int, per_epoch: int) -> tuple[int, int]:
    """Return (epoch, batch within it) of a batch number counted from the start of the run."""
    return divmod(batch, per_epoch)


def caption_of(item: Item, draw: Draw) -> str:
    """Return the caption that this showing trains on."""
    rng = None if draw.caption_seed is None else random.Random(draw.caption_seed)
    return compose(item.sample.caption, item.section, rng, item.sample.class_word)


def fit_of(item: Item, draw: Draw) -> Fit:
    """Return what this showing sees, of the unmirrored image."""
    if draw.position == CENTER:
        return item.fit
    return replace(fit(*item.fit.source, item.bucket, draw.position), crop=item.fit.crop)


def captions_of(items: Iterable[Item]) -> tuple[str, ...]:
    """Return every caption that cached text must hold, sorted: the composed ones and the empty one."""
    return tuple(sorted({"", *(item.caption for item in items)}))


def max_chunks(items: Iterable[Item], count_tokens: Callable[[str], int]) -> int:
    """Return the chunks of 75 tokens that hold every caption of a run, shuffled or thinned ones too.

    Chance chooses the template, and never adds a word but the trigger, which may come in front when the tag
    that had it is dropped.
    """
    return chunks_needed({caption for item in items for caption in _longest_captions(item)}, count_tokens)


def _longest_captions(item: Item) -> Iterator[str]:
    trigger = item.section.trigger
    for caption in variants(item.sample.caption, item.section, item.sample.class_word):
        yield f"{trigger}, {caption}" if item.section.tag_dropout and trigger else caption


def _items(samples: Sequence[Sample], section: DataSection, table: Table) -> Iterator[Item]:
    @functools.cache  # thousands of images have few sizes, and share what is seen of them
    def seen(size: Size, crop: Crop | None, focus: Point | None) -> Fit:
        return window(size, table, section.upscale, crop, focus)

    for sample in samples:
        shown = seen((sample.width, sample.height), sample.crop, sample.focus)
        yield Item(sample, section, table.resolution, shown, sample.repeats * section.repeats)


def _draw(items: Sequence[Item], index: int, rng: random.Random) -> Draw:
    flip, x, y, seed = rng.random() < 0.5, rng.random(), rng.random(), rng.getrandbits(63)
    section = items[index].section
    is_random = section.crop == "random" and items[index].sample.focus is None
    return Draw(index, flip and section.flip, (x, y) if is_random else CENTER, seed)


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
