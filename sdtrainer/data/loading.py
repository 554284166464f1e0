"""From an order of draws to batches on the CPU, and the filling of the caches that batches are read from.

Background threads only decode and read ahead; what comes out, and in which order, does not depend on them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from ..seams import Batch, Conditioning, Latents
from ..section import UserError
from .cache import Cache
from .census import Problem, Sample
from .images import BadImage, pixels, problem_of, verify
from .items import Draw, Item, Order, caption_of, fit_of
from .masks import Masks
from .section import why_no_latent_cache, why_no_text_cache
from .stores import LatentStore, Memory, Tensors, TextStore

A = TypeVar("A")
R = TypeVar("R")
Tokenize = Callable[[list[str]], Mapping[str, torch.Tensor]]


@dataclass
class Loader:
    """Makes batches of `items`: from the stores that are given, else from pixels and tokens."""

    items: Sequence[Item]
    latents: LatentStore | None = None
    texts: TextStore | None = None
    tokenize: Tokenize | None = None
    masks: Masks | None = None
    keep_bytes: int = 0
    threads: int = 2
    memory: Memory = field(init=False)
    keys: dict[tuple[int, bool], str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.texts or self.tokenize, "captions need cached text or a tokenizer"
        for section in {id(item.section): item.section for item in self.items}.values():
            if self.latents and (why := why_no_latent_cache(section)):
                raise UserError(
                    f"Latents cannot be cached: {why}.", "Turn one of both off.", "data.cache_latents"
                )
            if self.texts and (why := why_no_text_cache(section)):
                raise UserError(
                    f"Captions cannot be cached: {why}.", "Turn one of both off.", "data.cache_text"
                )
        self.memory = Memory(self.keep_bytes)
        # Computed once: with cached latents a run no longer looks at the images, which may change or go.
        store = self.latents
        uses = [(index, item, flip) for index, item in enumerate(self.items) for flip in item.flips]
        self.keys = {(index, flip): store.key(item, flip) for index, item, flip in uses} if store else {}

    def batches(self, order: Order) -> Iterator[Batch]:
        """Yield the batches of an order, endless orders too.

        Raises BadImage if an image can no longer be read.
        """
        for draws, seen in ahead(self._seen, order, self.threads):
            yield self._batch(draws, *seen)

    def batch(self, draws: list[Draw]) -> Batch:
        """Return one batch."""
        return self._batch(draws, *self._seen(draws))

    def _batch(self, draws: list[Draw], images: Latents | torch.Tensor, mask: torch.Tensor | None) -> Batch:
        items = [self.items[draw.item] for draw in draws]
        captions = [caption_of(item, draw) for item, draw in zip(items, draws, strict=True)]
        sizes = torch.tensor([_sizes(item, draw) for item, draw in zip(items, draws, strict=True)])
        return Batch(
            weight=torch.tensor([item.weight for item in items], dtype=torch.float32),
            sizes=sizes,
            latents=images if isinstance(images, Latents) else None,
            pixels=None if isinstance(images, Latents) else images,
            conditioning=self._conditioning(captions, sizes) if self.texts else None,
            tokens=self.tokenize(captions) if self.tokenize and not self.texts else None,
            mask=mask,
        )

    def _conditioning(self, captions: list[str], sizes: torch.Tensor) -> Conditioning:
        assert self.texts
        return self.texts.stack([self.texts.get(caption, self.memory) for caption in captions], sizes)

    def _seen(self, draws: list[Draw]) -> tuple[Latents | torch.Tensor, torch.Tensor | None]:
        return self._images(draws), self._mask(draws)

    def _mask(self, draws: list[Draw]) -> torch.Tensor | None:
        """(B, 1, h, w), or None if no picture of the batch has a mask; the others weigh 1 everywhere."""
        found = [self.masks.weights(self.items[draw.item], draw) if self.masks else None for draw in draws]
        shape = next((weights.shape for weights in found if weights is not None), None)
        if shape is None:
            return None
        return torch.stack([torch.ones(shape) if weights is None else weights for weights in found])

    def _images(self, draws: list[Draw]) -> Latents | torch.Tensor:
        if self.latents:
            return self.latents.stack([self._latents(draw) for draw in draws])
        return torch.stack([_pixels(self.items[draw.item], draw) for draw in draws])

    def _latents(self, draw: Draw) -> Tensors:
        assert self.latents
        what = f"the latents of {self.items[draw.item].sample.path}"
        return self.memory.get(self.latents.cache, self.keys[draw.item, draw.flip], what)


@dataclass(frozen=True)
class Filling:
    """How far the filling is; `total` is 0 while it is not known yet.

    `problems` are the images left out so far, `broken` their files.
    """

    done: int
    total: int
    problems: tuple[Problem, ...] = ()
    broken: frozenset[Path] = frozenset()


def without(items: Sequence[Item], filling: Filling) -> tuple[Item, ...]:
    """Return the items whose images could be read."""
    return tuple(item for item in items if item.sample.file not in filling.broken)


def check_images(items: Sequence[Item], cache: Cache, threads: int = 2) -> Iterator[Filling]:
    """Decode every image once, so that no broken one stops the run; the cache remembers each verdict."""
    samples = list({item.sample.file: item.sample for item in items}.values())
    problems: dict[Path, Problem] = {}
    yield Filling(0, len(samples))
    verdicts = ahead(lambda sample: _verdict(sample, cache), samples, threads)
    for done, (sample, problem) in enumerate(verdicts, 1):
        if problem:
            problems[sample.file] = problem
        yield Filling(done, len(samples), tuple(problems.values()), frozenset(problems))


def check_masks(items: Sequence[Item], masks: Masks, threads: int = 2) -> Iterator[Filling]:
    """Decode every mask once, so that no broken one stops the run; their images are left out."""
    uses = [(item, Draw(0, flip)) for item in items if item.mask for flip in item.flips]
    problems: dict[Path, Problem] = {}
    yield Filling(0, len(uses))
    faults = ahead(lambda use: _mask_fault(masks, *use), uses, threads)
    for done, ((item, _), problem) in enumerate(faults, 1):
        if problem:
            problems[item.sample.file] = problem
        yield Filling(done, len(uses), tuple(problems.values()), frozenset(problems))


def fill_latents(
    items: Sequence[Item],
    store: LatentStore,
    encode: Callable[[torch.Tensor], Latents],
    batch_size: int = 1,
    threads: int = 2,
) -> Iterator[Filling]:
    """Encode what the store lacks of `items`, mirrored too where mirroring is on.

    Unreadable images are left out and the last `Filling` names them; another process that fills after this
    one finds the same.
    """
    problems: dict[Path, Problem] = {}
    missing: dict[str, list[tuple[Item, bool]]] = defaultdict(list)  # equal images share a key
    for item in items:
        try:
            keys = {store.key(item, flip): flip for flip in item.flips}
        except BadImage as error:
            problems[item.sample.file] = problem_of(item.sample, error)
            continue
        for key, flip in keys.items():
            if key in missing or not store.cache.has(key):
                missing[key].append((item, flip))
        yield Filling(0, 0)  # the first time every image is read for its hash, which takes a while
    done, total = 0, len(missing)
    yield Filling(done, total, tuple(problems.values()), frozenset(problems))
    batches = _by_bucket(missing, batch_size)
    for keys_of_batch, decoded in ahead(
        lambda keys: [_decoded(*missing[k][0]) for k in keys], batches, threads
    ):
        good = {}
        for key, result in zip(keys_of_batch, decoded, strict=True):
            if isinstance(result, Problem):
                problems |= {
                    item.sample.file: replace(result, file=item.sample.path) for item, _ in missing[key]
                }
            else:
                good[key] = result
        if good:
            store.put(list(good), encode(torch.stack(list(good.values()))))
        done += len(keys_of_batch)
        yield Filling(done, total, tuple(problems.values()), frozenset(problems))


def fill_text(
    captions: Iterable[str],
    store: TextStore,
    encode_text: Callable[[list[str]], Conditioning],
    batch_size: int = 8,
) -> Iterator[Filling]:
    """Encode the captions that the store lacks; `items.captions_of` says which a run needs."""
    missing = [caption for caption in dict.fromkeys(captions) if not store.cache.has(store.key(caption))]
    yield Filling(0, len(missing))
    for start in range(0, len(missing), batch_size):
        part = missing[start : start + batch_size]
        store.put([store.key(caption) for caption in part], encode_text(part))
        yield Filling(start + len(part), len(missing))


def ahead(work: Callable[[A], R], arguments: Iterable[A], threads: int) -> Iterator[tuple[A, R]]:
    """Yield (argument, work(argument)) in the order of the arguments, working a few ahead in threads.

    Arguments are drawn by the caller's thread; two results per thread wait at most. With 0 threads nothing
    runs ahead.
    """
    if not threads:
        yield from ((argument, work(argument)) for argument in arguments)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
    waiting: deque[tuple[A, Future[R]]] = deque()
    try:
        for argument in arguments:
            waiting.append((argument, pool.submit(work, argument)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _verdict(sample: Sample, cache: Cache) -> Problem | None:
    """Return what is wrong with an image; only sound ones are not decoded again the next time."""
    if not sample.file.is_file():
        return verify(sample)
    is_sound = cache.fact(sample.file, "decodes", lambda _: "no" if verify(sample) else "yes") == "yes"
    return None if is_sound else verify(sample)


def _mask_fault(masks: Masks, item: Item, draw: Draw) -> Problem | None:
    try:
        masks.weights(item, draw)
    except BadImage as error:
        return problem_of(item.sample, error)
    return None


def _by_bucket(missing: Mapping[str, list[tuple[Item, bool]]], batch_size: int) -> list[list[str]]:
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for key, uses in missing.items():
        groups[uses[0][0].bucket].append(key)
    return [
        keys[start : start + batch_size]
        for keys in groups.values()
        for start in range(0, len(keys), batch_size)
    ]


def _decoded(item: Item, flip: bool) -> torch.Tensor | Problem:
    try:
        return pixels(item.sample.file, item.fit, flip, item.background)
    except BadImage as error:
        return problem_of(item.sample, error)


def _pixels(item: Item, draw: Draw) -> torch.Tensor:
    return pixels(item.sample.file, fit_of(item, draw), draw.flip, item.background)


def _sizes(item: Item, draw: Draw) -> list[int]:
    """Return original height and width, crop top and left, target height and width."""
    fit = fit_of(item, draw)
    left = fit.mirrored().left if draw.flip else fit.left
    return [fit.source[1], fit.source[0], fit.top, left, fit.size[1], fit.size[0]]
