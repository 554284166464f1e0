"""Feed: a run's batches by number, read ahead in order, rewound when the run goes back."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.items import epoch_batches, fixed_batches, num_batches, order, position, share
from ..data.loading import Loader
from ..seams import Batch


class Feed:
    """Training batches of one process. Batch `number` is a function of seed, number and process alone."""

    def __init__(self, loader: Loader, batch_size: int, seed: int, rank: int, world: int) -> None:
        self._loader, self._batch_size, self._seed, self._rank, self._world = (
            loader,
            batch_size,
            seed,
            rank,
            world,
        )
        self._next, self._batches = -1, iter(())

    def batch(self, number: int) -> Batch:
        if number != self._next:
            draws = order(self._loader.items, self._batch_size, self._seed, number, self._rank, self._world)
            self._next, self._batches = number, self._loader.batches(draws)
        self._next += 1
        return next(self._batches)

    def files(self, number: int) -> list[str]:
        """The images of a batch."""
        items = self._loader.items
        epoch, index = position(number, num_batches(items, self._batch_size, self._world))
        batches = share(epoch_batches(items, self._batch_size, self._seed, epoch), self._rank, self._world)
        return [items[draw.item].sample.path for draw in batches[index]]


def held_out(loader: Loader, batch_size: int) -> Iterator[Batch]:
    """Every validation image once, the same way each time."""
    for draws in fixed_batches(loader.items, batch_size):
        yield loader.batch(draws)
