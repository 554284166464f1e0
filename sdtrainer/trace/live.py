"""How many bytes are alive at every moment: a counter of storages, from their making to their end."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is on, `now` is the number of bytes made since and still held; `moments` is that number after
    each operation that made some, with the operation's name. Storages count, so views cost nothing; `known`
    tensors were there before and do not count.

    Works with real tensors and with fake ones; code that looks at a number, which fake ones lack, gets 1 or
    yes: a layer that may be left out is not.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.moments: list[tuple[str, int]] = []
        self._seen = weakref.WeakKeyDictionary({t.untyped_storage(): True for t in known})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return args[0].dtype is torch.bool or 1
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if any([self._is_new(tensor.untyped_storage()) for tensor in made]):
            self.moments.append((str(func), self.now))
        return out

    def _is_new(self, storage: torch.UntypedStorage) -> bool:
        """Count a storage that was not seen before."""
        if storage in self._seen:
            return False
        size = storage.nbytes()
        self._seen[storage] = True
        self.now += size
        weakref.finalize(storage, self._lose, size)
        return True

    def _lose(self, size: int) -> None:
        self.now -= size
