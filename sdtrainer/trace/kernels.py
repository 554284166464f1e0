"""What a card's kernels keep where a processor's would keep something else: attention, and mixed precision.

Fake tensors lie on the processor, because torch without CUDA cannot work on fake tensors of a card. Their
bytes are the same; what differs is which tensors there are, and that is put right here.

Attention, by kind:
- fused: output and one number per query (logsumexp) are kept, in 16 bit by FlashAttention (Dao 2023,
  arXiv 2307.08691), in fp32 or with a mask by torch's memory-efficient kernel (Rabe & Staats 2021,
  arXiv 2112.05682). The scores never exist. The kernels' own work space in the backward pass, about one
  fp32 copy of the queries, is not seen.
- plain: the scores (heads x queries x keys) exist and are kept, as without a fused kernel (Apple's GPUs).

Dropout: a card keeps which numbers it let through, a byte for each; a processor keeps factors and input.

Mixed precision: beyond what a processor computes in 16 bit, torch's autocast for cards computes norms,
softmax, powers and sums in fp32 and so keeps fp32 copies (pytorch.org/docs/stable/amp.html, "CUDA Ops that
can autocast to float32").
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

Attention = Literal["fused", "plain"]

_FP32 = {
    functional.group_norm, functional.layer_norm, functional.rms_norm, functional.softmax,
    functional.mse_loss, functional.normalize, functional.cosine_similarity,
    torch.softmax, torch.Tensor.softmax, torch.pow, torch.Tensor.pow, torch.Tensor.__pow__,
    torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log, torch.rsqrt, torch.Tensor.rsqrt,
    torch.sum, torch.Tensor.sum, torch.norm, torch.Tensor.norm, torch.cumsum, torch.Tensor.cumsum,
}  # fmt: skip
_MAX_FLASH_HEAD = 256
"""FlashAttention takes no wider heads."""


def of(device: str) -> contextlib.AbstractContextManager[Any]:
    """Return the mode in which fake tensors behave as on this kind of device."""
    modes: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "cpu": contextlib.nullcontext,
        "cuda": lambda: CardKernels("fused"),
        "mps": lambda: CardKernels("plain"),
    }
    return modes[device]()


class CardKernels(TorchFunctionMode):
    """Inside, fake tensors on the processor are computed with as a card would."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.instead = {
            functional.scaled_dot_product_attention: {"fused": _fused, "plain": _plain}[attention],
            functional.dropout: _dropout,
            torch.Tensor.backward: self._backward,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.instead:
            return self.instead[func](*args, **kwargs)
        if func in _FP32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_float, (args, kwargs))
        return func(*args, **kwargs)

    def _backward(self, loss: torch.Tensor, **options: Any) -> None:
        """loss.backward() with the mode on: checkpointed blocks run forward again inside."""
        start, ones = (loss,), (torch.ones_like(loss),)
        with self:
            _engine_run_backward(start, ones, False, False, (), allow_unreachable=True, accumulate_grad=True)


def _float(value: Any) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if is_float else value


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    is_small = query.dtype is not torch.float32 and query.shape[-1] <= _MAX_FLASH_HEAD
    if attn_mask is None and is_small:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale)[0]


def _plain(*args: Any, **kwargs: Any) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(*args, **kwargs)


def _dropout(
    values: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    return torch.native_dropout(values, p, training)[0] if training and p else values
