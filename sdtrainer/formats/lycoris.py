"""What the tensors that a file holds for one layer stand for: the change of its weight and bias.

Pure functions from tensors by name to delta W. The names are LyCORIS' and kohya's, without `.weight`:

    lora_down, lora_up, lora_mid   LoRA, LoCon; Tucker with a middle  Hu et al. 2021, arXiv:2106.09685, eq. 3
    hada_w1_a ... hada_t2          LoHa: product by elements          Hyeon-Woo et al. 2021, arXiv:2108.06098
    lokr_w1 ... lokr_t2            LoKr: Kronecker product            Yeh et al. 2023, arXiv:2309.14859, eq. 5
    diff, diff_b, w_norm, b_norm   the change itself
    alpha                          the change is multiplied by alpha / rank; missing means alpha = rank
    dora_scale, magnitude          DoRA's magnitudes; peft's shapes   Liu et al. 2024, arXiv:2402.09353, eq. 5

Shapes: R rank; W (out, in[, kh, kw]); down (R, in[, kh, kw]), up (out, R[, 1, 1]), mid (R, R, kh, kw);
hada_w*_a (out, R), hada_w*_b (R, in kh kw), with Tucker hada_t* (R, R, kh, kw), hada_w*_a (R, out), hada_w*_b
(R, in); lokr_w1 (a, c) or its factors (a, R), (R, c); lokr_w2 (b, d[, kh, kw]) or its factors (b, R),
(R, d kh kw), with Tucker (R, b), (R, d), for out = a b and in = c d; dora_scale (out, 1[, 1, 1]) or, in older
files, (1, in[, 1, 1]); magnitude (out,) or (1, out, 1, 1).
Source of names and shapes: lycoris/modules in KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from .naming import Naming

Tensors = Mapping[str, "torch.Tensor"]


class Shaped(Protocol):
    """A tensor, or what a file's header says of one."""

    @property
    def shape(self) -> Sequence[int]: ...


def to_lycoris(adapters: Mapping[str, Mapping[str, Tensors]], naming: Naming) -> dict[str, torch.Tensor]:
    """Return the tensors of a LyCORIS file for layers by part ("unet", "text_encoder") and module path."""
    return {
        f"{naming.name(part, path)}.{word}": tensor
        for part, layers in adapters.items()
        for path, tensors in layers.items()
        for word, tensor in tensors.items()
    }


def without_core(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return a LoKr's tensors without a Tucker core: with it the second half of W2 is (R, d kh kw) and the
    first (b, R), as of any other convolution, and their product the same.
    """
    import torch

    others = {word: tensor for word, tensor in tensors.items() if word != "lokr_t2"}
    if len(others) == len(tensors):
        return others
    into = torch.einsum("ijkl,jn->inkl", tensors["lokr_t2"], tensors["lokr_w2_b"])
    return others | {"lokr_w2_a": tensors["lokr_w2_a"].T.contiguous(), "lokr_w2_b": into.flatten(1)}


def changes(tensors: Tensors, weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return what is added to "weight" and "bias" of a layer, in fp32 and in their shapes.

    Raises:
        ValueError: the tensors are incomplete, or of another shape than the layer.
    """
    try:
        found = {}
        for word, change in _CHANGES.items():
            if word in tensors:
                found["weight"] = _shaped(change(_wide(tensors)), weight)
        for word in ("diff_b", "b_norm"):
            if word in tensors:
                found["bias"] = _shaped(tensors[word].float(), bias)
        sizes = magnitude(tensors, weight.ndim)
        if sizes is not None:
            found["weight"] = _rescaled(sizes, weight, found["weight"])
    except (KeyError, RuntimeError, IndexError, AttributeError) as error:
        raise ValueError(str(error)) from error
    if not found:
        raise ValueError("nothing is changed")
    return found


def rank(tensors: Mapping[str, Shaped]) -> int:
    """Return the rank of one layer's tensors; 0 if it has none, as a whole LoKr."""
    for word in ("lora_down", "lokr_w2_b", "lokr_w1_b", "hada_w1_b"):
        if word in tensors:
            return tensors[word].shape[0]
    return 0


def norm(tensors: Tensors) -> float:
    """Return the Frobenius norm of the weight's change, before DoRA's magnitudes; not a number, or infinite,
    as the tensors are. Of LoRA and LoKr it follows from the factors: |B A|^2 = <B^T B, A A^T>.

    Raises:
        ValueError: no change of a weight is held, or only pieces of one.
    """
    import torch

    wide = {word: tensor.double() for word, tensor in tensors.items()}
    try:
        if "lora_up" in wide and "lora_mid" not in wide:
            up, down = wide["lora_up"].flatten(1), wide["lora_down"].flatten(1)
            return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt()) * abs(scale(wide))
        for word, change in _CHANGES.items():
            if word in wide:
                return float(torch.linalg.vector_norm(change(wide)))
    except (KeyError, RuntimeError, IndexError) as error:
        raise ValueError(str(error)) from error
    raise ValueError("no weight is changed")


def extent(tensors: Mapping[str, Shaped]) -> tuple[int, int]:
    """Return how many rows and columns the weight has that the tensors change; a
    convolution's columns are in x kh x kw. (0, 0) if they do not tell.
    """
    shapes = {word: tuple(tensor.shape) for word, tensor in tensors.items()}
    for words, read in _EXTENTS:
        if all(word in shapes for word in words):
            return read(*(shapes[word] for word in words))
    halves = [_half(shapes, half) for half in ("lokr_w1", "lokr_w2")]
    return halves[0][0] * halves[1][0], halves[0][1] * halves[1][1]


def magnitude(tensors: Tensors, ndim: int) -> torch.Tensor | None:
    """Return DoRA's magnitudes for a weight of so many dimensions, ready to multiply it, or None without."""
    if "magnitude" in tensors:
        return tensors["magnitude"].float().reshape(-1, *[1] * (ndim - 1))
    return tensors["dora_scale"].float() if "dora_scale" in tensors else None


def scale(t: Tensors) -> float:
    """Return alpha / rank; 1 where no factor has a rank, whatever alpha says, as every reader has it."""
    r = rank(t)
    return float(t["alpha"]) / r if r and "alpha" in t else 1.0


def _lora(t: Tensors) -> torch.Tensor:
    down, up = t["lora_down"].flatten(1), t["lora_up"].flatten(1)
    change = _tucker(t["lora_mid"], up.T, down) if "lora_mid" in t else up @ down
    return change * scale(t)


def _loha(t: Tensors) -> torch.Tensor:
    first, second = (
        _tucker(t[f"hada_t{i}"], t[f"hada_w{i}_a"], t[f"hada_w{i}_b"])
        if f"hada_t{i}" in t
        else t[f"hada_w{i}_a"] @ t[f"hada_w{i}_b"]
        for i in (1, 2)
    )
    return first * second * scale(t)


def _lokr(t: Tensors) -> torch.Tensor:
    import torch

    w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        w2 = t["lokr_w2"]
    elif "lokr_t2" in t:
        w2 = _tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    else:
        w2 = t["lokr_w2_a"] @ t["lokr_w2_b"]
    return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous()) * scale(t)


def _tucker(core: torch.Tensor, out: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """(R, R, kh, kw) with (R, out) and (R, in) is (out, in, kh, kw)."""
    import torch

    return torch.einsum("ijkl,io,jn->onkl", core, out, into)


_CHANGES: Mapping[str, Callable[[Tensors], torch.Tensor]] = {
    "lora_up": _lora,
    "hada_w1_a": _loha,
    "lokr_w1": _lokr,
    "lokr_w1_a": _lokr,
    "diff": lambda t: t["diff"],
    "w_norm": lambda t: t["w_norm"],
}
"""By the word that tells which kind it is."""

Shape = tuple[int, ...]
_EXTENTS: tuple[tuple[tuple[str, ...], Callable[..., tuple[int, int]]], ...] = (
    (
        ("lora_up", "lora_down", "lora_mid"),
        lambda up, down, mid: (up[0], math.prod(down[1:]) * math.prod(mid[2:])),
    ),
    (("lora_up", "lora_down"), lambda up, down: (up[0], math.prod(down[1:]))),
    (("hada_t1", "hada_w1_a", "hada_w1_b"), lambda t, a, b: (a[1], b[1] * math.prod(t[2:]))),
    (("hada_w1_a", "hada_w1_b"), lambda a, b: (a[0], b[1])),
    (("diff",), lambda diff: (diff[0], math.prod(diff[1:]))),
    (("w_norm",), lambda norm: (norm[0], 1)),
)
"""Rows and columns of the weight, by the words that tell."""


def _half(shapes: Mapping[str, Shape], half: str) -> tuple[int, int]:
    """Rows and columns of one factor of a LoKr, whole or divided again."""
    if half in shapes:
        return shapes[half][0], math.prod(shapes[half][1:])
    first, second, core = (shapes.get(f"{half}_a"), shapes.get(f"{half}_b"), shapes.get("lokr_t2"))
    if first is None or second is None:
        return 0, 0
    if half == "lokr_w2" and core is not None:
        return first[1], second[1] * math.prod(core[2:])
    return first[0], second[1]


def _wide(tensors: Tensors) -> dict[str, torch.Tensor]:
    """fp32, in which LoHa's small products do not vanish."""
    return {word: tensor.float() for word, tensor in tensors.items()}


def _shaped(change: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if change.shape[0] != weight.shape[0]:
        raise ValueError(f"{tuple(change.shape)} does not fit {tuple(weight.shape)}")
    return change.reshape(weight.shape)


def _rescaled(sizes: torch.Tensor, weight: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """m (W + delta) / |W + delta| - W, with one magnitude m per output or, in older files, per input."""
    import torch

    merged = weight.float() + change
    kept = 0 if sizes.shape[0] == merged.shape[0] else 1
    others = [axis for axis in range(merged.ndim) if axis != kept]
    norms = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    if sizes.shape != norms.shape:
        raise ValueError(f"{tuple(sizes.shape)} are no magnitudes of {tuple(weight.shape)}")
    return sizes * merged / norms - weight.float()
