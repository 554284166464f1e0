"""The files of a CLIP tokenizer as text, in both the new form (tokenizer.json) and the older one (vocab.json,
merges.txt), so that every version of transformers reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEW_FORM = "tokenizer.json"
NAMES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", NEW_FORM)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def files_of(tokenizer: Any) -> dict[str, str]:
    """Return the text of each file of a CLIPTokenizer, by name; of T5's only what the new form needs."""
    whole = tokenizer.backend_tokenizer.to_str()
    model = json.loads(whole)["model"]
    if "merges" not in model:
        return {"tokenizer_config.json": json.dumps(_config_of_t5(tokenizer), indent=1), NEW_FORM: whole}
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    special = {name: str(getattr(tokenizer, name)) for name in _SPECIAL}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.model_max_length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    return {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *pairs, ""]),
        "tokenizer_config.json": json.dumps(config | special, indent=1),
        "special_tokens_map.json": json.dumps(special, indent=1),
        NEW_FORM: whole,
    }


def _config_of_t5(tokenizer: Any) -> dict[str, Any]:
    """Its older form, spiece.model, is no text: transformers reads it from the new form alone."""
    special = {name: str(getattr(tokenizer, name)) for name in ("eos_token", "unk_token", "pad_token")}
    return {"tokenizer_class": "T5TokenizerFast", "model_max_length": 512} | special


def write(texts: Mapping[str, str], folder: Path) -> None:
    """Write the files into a folder, which is made; what is no file of a tokenizer is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if isinstance(texts.get(name), str):
            (folder / name).write_text(texts[name], encoding="utf-8", newline="\n")
