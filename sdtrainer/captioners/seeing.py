"""What models that look and write share: loading by the field's own classes, and writing a batch of captions.

Only weights in safetensors are read, and no code that lies beside them is run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families.quiet import no_loading_bars
from ..formats.safetensors_file import TensorInfo, read_header
from ..hardware import detect
from ..seams import BYTES
from ..section import UserError
from . import As, Captioner, Captioning, Device, Picture, weights
from .room import quickest
from .section import Settings
from .writing import tidy

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

MOST_PIXELS = 1024
"""No model reads more than this many pixels a side; larger pictures are made smaller first."""
_SPARE, _OVERHEAD = 1.2, 2**30
"""What a model takes beside its weights, at most: estimates, as is the whole of `memory`."""
_MOST_MISSING = 0.1
"""The part of its tensors that a file may lack, as some are made from others."""
_DTYPES: Mapping[As, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_MISFITS = (ValueError, KeyError, IndexError, AttributeError, TypeError)
"""What the library raises where files do not belong together."""
_MOST_RATIO = 100
"""Qwen-VL refuses pictures 200 times as wide as high."""


@dataclass(frozen=True)
class Inputs:
    """What a model is given for a batch. `num_told` tokens at the start of what it returns are no part of the
    caption.
    """

    tensors: Mapping[str, torch.Tensor]
    num_told: int = 0


class Seeing(Captioner):
    """A captioner that is a model of transformers.

    `kinds` are its classes by the `model_type` of config.json, and `processor` is that of its tools;
    `num_beams` is how many captions it weighs against each other.
    """

    kinds: Mapping[str, str]
    processor: str
    num_beams: int = 1

    def tools(self, folder: Path) -> Any:
        """Return what turns pictures and words into tensors and back."""
        import transformers

        return getattr(transformers, self.processor).from_pretrained(folder, local_files_only=True)

    def inputs(
        self, tools: Any, model: torch.nn.Module, images: Sequence[Image], settings: Settings
    ) -> Inputs:
        """Return what the model is to be given."""
        raise NotImplementedError

    def words(self, tools: Any, tokens: torch.Tensor) -> list[str]:
        return tools.batch_decode(tokens, skip_special_tokens=True)

    def memory(self, folder: Path, precision: As) -> int:
        tensors = [t for file in weights(folder) for t in read_header(file).tensors.items()]
        return int(_SPARE * sum(_num_bytes(*tensor, precision) for tensor in tensors)) + _OVERHEAD

    def load(self, folder: Path | None, device: Device, precision: As, settings: Settings) -> Captioning:
        assert folder
        try:
            cls = self._class(folder)
            tools, model = self.tools(folder), self._model(cls, folder, device, precision)
        except (OSError, RuntimeError, *_MISFITS) as error:
            raise self._useless(folder, "could not be loaded", error) from error

        def caption(pictures: Sequence[Picture]) -> list[str]:
            try:
                return self._write(tools, model, [_shrunk(p.image) for p in pictures if p.image], settings)
            except _MISFITS as error:
                raise self._useless(folder, "could not look at a picture", error) from error

        return caption

    def _useless(self, folder: Path, what: str, error: Exception) -> UserError:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return UserError(
            f"{self.title}: the model in '{folder}' {what} ({said}).",
            "Check that all of its files are of one model, or leave this empty to download the usual one.",
            "model",
        )

    def _class(self, folder: Path) -> Any:
        """Return the class of the model in this folder."""
        import transformers

        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind not in self.kinds:
            raise UserError(
                f"{self.title}: the model in '{folder}' is of the kind '{kind}'.",
                f"Choose one of the kind {' or '.join(self.kinds)}.",
                "model",
            )
        return getattr(transformers, self.kinds[kind])

    def _model(self, cls: Any, folder: Path, device: Device, precision: As) -> torch.nn.Module:
        import torch

        no_loading_bars()
        model, found = cls.from_pretrained(
            folder,
            dtype="auto" if precision == "int8" else getattr(torch, _DTYPES[precision]),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if len(found["missing_keys"]) > _MOST_MISSING * len(model.state_dict()):
            raise UserError(
                f"{self.title}: the model in '{folder}' lacks {len(found['missing_keys'])} of its tensors.",
                "Choose one that was converted to the format of transformers.",
                "model",
            )
        model = model.requires_grad_(False).eval()
        if precision == "int8":
            _round(model, device, getattr(torch, _DTYPES[quickest(device, detect(), self.is_wide)]))
        return model.to(device)

    def _write(
        self, tools: Any, model: torch.nn.Module, images: Sequence[Image], settings: Settings
    ) -> list[str]:
        import torch

        asked = self.inputs(tools, model, images, settings)
        with torch.inference_mode():
            written = model.generate(
                **_placed(asked.tensors, model),
                max_new_tokens=settings.max_tokens,
                num_beams=self.num_beams,
                do_sample=False,
            )[:, asked.num_told :]
        tokenizer = getattr(tools, "tokenizer", tools)
        special = torch.tensor(tokenizer.all_special_ids, device=written.device)
        lengths = (~torch.isin(written, special)).sum(1).tolist()
        return [
            tidy(text, is_cut=length >= settings.max_tokens - 1)
            for text, length in zip(self.words(tools, written), lengths, strict=True)
        ]


def _round(model: torch.nn.Module, device: Device, dtype: torch.dtype) -> None:
    """Keep the matrices in 8 bits, one after another: until then they lie in the file. All else, and what is
    computed, is of the given format.
    """
    from ..training.quantized import QuantizedLinear, quantise

    quantise(model, "int8", device)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.dtype = dtype
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not name.endswith(".scales"):
            tensor.data = tensor.data.to(dtype)


def _placed(tensors: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Bring tensors to the model, numbers with a point in its format, which is that of its embeddings."""
    dtype = model.get_input_embeddings().weight.dtype
    return {
        name: tensor.to(model.device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }


def _shrunk(image: Image) -> Image:
    """Make it small enough, and a line as wide as models take it."""
    small = image.copy()
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    least = -(-max(small.size) // _MOST_RATIO)
    return (
        small
        if min(small.size) >= least
        else small.resize((max(small.width, least), max(small.height, least)))
    )


def _num_bytes(name: str, tensor: TensorInfo, precision: As) -> int:
    """Return the bytes of a tensor: in 8 bits only the matrices are, not the tables of words."""
    is_whole = precision == "int8" and (len(tensor.shape) != 2 or "embed" in name)
    return math.prod(tensor.shape) * (2 if is_whole else 1 if precision == "int8" else BYTES[precision])
