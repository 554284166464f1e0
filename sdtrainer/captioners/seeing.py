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
from ..seams import BYTES
from ..section import UserError
from . import As, Captioner, Captioning, Device, Picture
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
_DTYPES: Mapping[As, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float16"}


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
        files = list(folder.glob("*.safetensors"))
        tensors = [t for file in files for t in read_header(file).tensors.items()]
        return int(_SPARE * sum(_num_bytes(*tensor, precision) for tensor in tensors)) + _OVERHEAD

    def load(self, folder: Path | None, device: Device, precision: As, settings: Settings) -> Captioning:
        assert folder
        try:
            tools, model = self.tools(folder), self._model(folder, device, precision)
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{self.title}: the model in '{folder}' could not be loaded ({said}).",
                "Check that the folder is complete, or leave this empty to download the usual model.",
                "model",
            ) from error

        def caption(pictures: Sequence[Picture]) -> list[str]:
            return self._write(tools, model, [_shrunk(p.image) for p in pictures if p.image], settings)

        return caption

    def _model(self, folder: Path, device: Device, precision: As) -> torch.nn.Module:
        import torch
        import transformers

        no_loading_bars()
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind not in self.kinds:
            raise UserError(
                f"{self.title}: the model in '{folder}' is of the kind '{kind}'.",
                f"Choose one of the kind {' or '.join(self.kinds)}.",
                "model",
            )
        dtype = _DTYPES[precision] if precision != "int8" or device != "cpu" else "float32"
        model, found = getattr(transformers, self.kinds[kind]).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
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
            from ..training.quantized import quantise

            quantise(model, "int8", device)
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


def _placed(tensors: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Bring tensors to the model, numbers with a point in its format."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }


def _shrunk(image: Image) -> Image:
    small = image.copy()
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return small


def _num_bytes(name: str, tensor: TensorInfo, precision: As) -> int:
    """Return the bytes of a tensor: in 8 bits only the matrices are, not the tables of words."""
    is_whole = precision == "int8" and (len(tensor.shape) != 2 or "embed" in name)
    return math.prod(tensor.shape) * (2 if is_whole else 1 if precision == "int8" else BYTES[precision])
