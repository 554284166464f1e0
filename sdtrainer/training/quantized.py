"""Linear layers whose frozen weight is kept in 8 or 4 bits and made whole for as long as a product takes.

Why not bitsandbytes' own layers: on processors their nf4 is wrong where the width is no multiple of 64
(0.50), the 8-bit one rounds what comes in, too, and peft has other adapters for them. A layer here is a
torch.nn.Linear to everyone, with the same adapters as a plain one; bitsandbytes rounds to nf4 and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ..frozen import NF4_BLOCK, FrozenAs, linears

Rounded = tuple[torch.Tensor, torch.Tensor]
"""Codes, and fp32 scales."""
_AT_ONCE = 2**24
"""So many numbers are rounded at once, 64 MB in fp32."""


def quantise(denoiser: torch.nn.Module, kind: FrozenAs, device: str) -> None:
    """Replace the Linear layers of which nothing is trained; each is rounded on `device` and stays where it
    was. The same weights give the same codes.
    """
    if kind == "plain":
        return
    for path, layer in list(linears(denoiser)):
        parent, _, name = path.rpartition(".")
        setattr(denoiser.get_submodule(parent), name, QuantizedLinear(layer, kind, device))


class QuantizedLinear(torch.nn.Linear):
    """A frozen Linear with its weight in fewer bits. `weight` makes it whole anew whenever it is asked for.

    Shapes: codes (out, in) int8 and scales (out, 1), or codes (out x in / 2, 1) uint8 and scales (blocks,).
    """

    def __init__(self, layer: torch.nn.Linear, kind: FrozenAs, device: str) -> None:
        torch.nn.Module.__init__(self)  # Linear's own would make a plain weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind, self.dtype = kind, layer.weight.dtype
        kept = [t.to(layer.weight.device) for t in _ROUNDINGS[kind].codes(layer.weight.detach().to(device))]
        self.codes, self.scales = (torch.nn.Parameter(t, requires_grad=False) for t in kept)
        self.bias = layer.bias
        self.train(layer.training)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.whole(self.dtype)

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight (out, in), rounded."""
        return _whole(self.kind, self.codes, self.scales, (self.out_features, self.in_features), dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        kind, shape = self.kind, (self.out_features, self.in_features)
        return _Product.apply(input, self.bias, self.codes, self.scales, kind, shape)


class _Product(torch.autograd.Function):
    """input @ weight.T + bias. Keeps codes and scales for the backward pass, not the whole weight."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, codes: torch.Tensor, scales: torch.Tensor,
        kind: FrozenAs, shape: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(codes, scales)
        ctx.kind, ctx.shape, ctx.dtype = kind, shape, input.dtype
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        with torch.autocast(device, enabled=False):
            weight = _whole(kind, codes, scales, shape, dtype)
            return functional.linear(input.to(dtype), weight, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        codes, scales = ctx.saved_tensors
        weight = _whole(ctx.kind, codes, scales, ctx.shape, gradient.dtype)
        return (gradient @ weight).to(ctx.dtype), None, None, None, None, None


@dataclass(frozen=True)
class _Rounding:
    """Codes and scales of a weight, and the weight (out, in) of them."""

    codes: Callable[[torch.Tensor], Rounded]
    whole: Callable[[torch.Tensor, torch.Tensor, tuple[int, int], torch.dtype], torch.Tensor]


def _whole(
    kind: FrozenAs, codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    return _ROUNDINGS[kind].whole(codes, scales, shape, dtype)


def _to_int8(weight: torch.Tensor) -> Rounded:
    """Round to 127 steps on either side of zero, by the largest of each row; some rows at a time, as a table
    of words in fp32 is larger than many a model.
    """
    rounded = [_row_by_row(rows.float()) for rows in weight.split(max(1, _AT_ONCE // weight.shape[1]))]
    codes, scales = zip(*rounded, strict=True)
    return torch.cat(codes), torch.cat(scales)


def _row_by_row(exact: torch.Tensor) -> Rounded:
    scales = exact.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (exact / scales).round_().to(torch.int8), scales


def _from_int8(
    codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Multiply in fp32, as fp16 would lose small scales; a card writes `dtype` at once."""
    return torch.mul(codes, scales, out=torch.empty(shape, dtype=dtype, device=codes.device))


def _to_nf4(weight: torch.Tensor) -> Rounded:
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight, blocksize=NF4_BLOCK, quant_type="nf4")
    return codes, state.absmax


def _from_nf4(
    codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """As one row, because bitsandbytes on processors takes no block to go on in the next row (0.50)."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    row = (1, shape[0] * shape[1])
    state = QuantState(scales, shape=row, dtype=dtype, blocksize=NF4_BLOCK, quant_type="nf4")
    return dequantize_4bit(codes, state).view(shape)


_ROUNDINGS: Mapping[FrozenAs, _Rounding] = {
    "int8": _Rounding(_to_int8, _from_int8),
    "nf4": _Rounding(_to_nf4, _from_nf4),
}
