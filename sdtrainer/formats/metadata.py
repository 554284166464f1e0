"""The text in a file's header: what was trained, on what, and how.

Three vocabularies: `ss_*` (sd-scripts' own, shown by A1111 and others), `modelspec.*` (Stability's ModelSpec
1.0.1) and `sdtrainer_config`, the whole configuration, so that a file alone can start its run again. Every
value is text. Of the user's disk nothing gets in but the base model's name: tests/test_formats_metadata.py.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..section import UserError

_SD2 = "Stable Diffusion 2"
ARCHITECTURES = {
    # (title of the base model, predicts v): ss_base_model_version, modelspec.architecture
    ("Stable Diffusion 1", False): ("sd_v1", "stable-diffusion-v1"),
    ("Stable Diffusion 1", True): ("sd_v1_v", "stable-diffusion-v1"),
    (_SD2, False): ("sd_v2", "stable-diffusion-v2-512"),
    (_SD2, True): ("sd_v2_v", "stable-diffusion-v2-768-v"),
    ("Stable Diffusion XL", False): ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    ("Stable Diffusion XL", True): ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    ("Stable Diffusion 3 Medium", False): ("sd3m", "stable-diffusion-v3-medium"),
    ("Stable Diffusion 3.5 Medium", False): ("3-5-medium", "stable-diffusion-v3.5-medium"),
    ("Stable Diffusion 3.5 Large", False): ("3-5-large", "stable-diffusion-v3.5-large"),
}
"""Sources: sd-scripts (what its SD3 calls its model types) and SwarmUI's T2IModelClassSorter."""
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample", "flow": ""}
_MODULES = {
    "full": ("", ""),
    "lora": ("networks.lora", "lora"),
    "loha": ("lycoris.kohya", "lora"),
    "lokr": ("lycoris.kohya", "lora"),
    "hypernetwork": ("modules.hypernetworks", "hypernetwork"),
    "textual_inversion": ("", "textual-inversion"),
}
"""Method: ss_network_module, and the suffix of the architecture; empty for what is none."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a file came about, in plain values. Learning rates of 0 mean that the part was not trained.

    `base_title` says which model it is ("Stable Diffusion 2"), `base_name` is a title, a file name or a hub
    id; of a path only its last part is written. `resolution` is
    (width, height). `tag_frequency` is how often each caption tag occurs. `started` and `finished` are
    seconds since 1970. `config_text` is TOML; the settings in `path_settings` (dotted), and whatever else
    looks like an absolute path, are emptied in it.
    """

    name: str
    method: str
    base_title: str
    prediction_type: str
    base_name: str
    resolution: tuple[int, int]
    steps: int
    total_steps: int
    epochs: int
    total_epochs: int
    batch_size: int
    accumulation: int
    denoiser_lr: float
    text_encoder_lr: float
    optimizer: str
    lr_schedule: str
    warmup_steps: int
    seed: int
    precision: str
    num_images: int
    started: float
    finished: float
    version: str
    rank: int = 0
    alpha: float = 0.0
    network_args: Mapping[str, Any] = field(default_factory=dict)
    base_hash: str = ""
    num_class_images: int = 0
    clip_skip: int = 0
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    zero_terminal_snr: bool = False
    loss: str = "mse"
    max_grad_norm: float = 0.0
    gradient_checkpointing: bool = False
    tag_frequency: Mapping[str, int] = field(default_factory=dict)
    trigger: str = ""
    title: str = ""
    author: str = ""
    description: str = ""
    config_text: str = ""
    path_settings: Sequence[str] = ()


def build(p: Provenance) -> dict[str, str]:
    """Return everything that goes into the header, except the hashes, which the writer adds."""
    return {**_sd_scripts(p), **_modelspec(p), **_ours(p)}


def without_paths(config_text: str, path_settings: Sequence[str] = ()) -> str:
    """Return the TOML without comments, with the named settings and all absolute paths emptied."""
    import tomlkit

    try:
        config = tomllib.loads(config_text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The configuration is not TOML: {error}.", "Save it anew from the page.") from error
    _empty_paths(config, "", frozenset(path_settings))
    return tomlkit.dumps(config)


def _sd_scripts(p: Provenance) -> dict[str, str]:
    module, _ = _MODULES[p.method]
    version, _ = _architecture(p)
    network = {
        "network_module": module,
        "network_dim": p.rank,
        "network_alpha": p.alpha,
        "network_args": json.dumps({k: str(v) for k, v in p.network_args.items()}),
    }
    values = {
        "v2": p.base_title == _SD2,
        "base_model_version": version,
        **(network if module else {}),
        "output_name": p.name,
        "sd_model_name": _last(p.base_name),
        "new_sd_model_hash": p.base_hash or None,
        "resolution": f"({p.resolution[0]}, {p.resolution[1]})",
        "clip_skip": p.clip_skip or None,
        "learning_rate": p.denoiser_lr or p.text_encoder_lr,
        "unet_lr": p.denoiser_lr or None,
        "text_encoder_lr": p.text_encoder_lr or None,
        "optimizer": p.optimizer,
        "lr_scheduler": p.lr_schedule,
        "lr_warmup_steps": p.warmup_steps,
        "num_train_images": p.num_images,
        "num_reg_images": p.num_class_images,
        "num_epochs": p.total_epochs,
        "epoch": p.epochs,
        "steps": p.steps,
        "max_train_steps": p.total_steps,
        "batch_size_per_device": p.batch_size,
        "total_batch_size": p.batch_size * p.accumulation,
        "gradient_accumulation_steps": p.accumulation,
        "gradient_checkpointing": p.gradient_checkpointing,
        "max_grad_norm": p.max_grad_norm,
        "mixed_precision": {"fp32": "no"}.get(p.precision, p.precision),
        "seed": p.seed,
        "min_snr_gamma": p.min_snr_gamma or None,
        "noise_offset": p.noise_offset or None,
        "zero_terminal_snr": p.zero_terminal_snr,
        "loss_type": {"mse": "l2"}.get(p.loss, p.loss),
        "training_started_at": p.started,
        "training_finished_at": p.finished,
        "training_comment": p.description or None,
        # sd-scripts counts tags per folder, whose names are the user's own: ours are all of one
        "tag_frequency": json.dumps({"images": dict(p.tag_frequency)}, ensure_ascii=False),
        "dataset_dirs": json.dumps({"images": {"n_repeats": 1, "img_count": p.num_images}}),
    }
    return {f"ss_{key}": str(value) for key, value in values.items()}


def _modelspec(p: Provenance) -> dict[str, str]:
    _, architecture = _architecture(p)
    _, suffix = _MODULES[p.method]
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/{suffix}".rstrip("/"),
        "implementation": "https://github.com/huggingface/diffusers",
        "title": p.title or p.name,
        "resolution": f"{p.resolution[0]}x{p.resolution[1]}",
        "date": datetime.fromtimestamp(p.finished, UTC).isoformat(timespec="seconds"),
        "prediction_type": _PREDICTIONS[p.prediction_type],
        "author": p.author,
        "description": p.description,
        "trigger_phrase": p.trigger,
        "encoder_layer": str(p.clip_skip) if p.clip_skip else "",
    }
    return {f"modelspec.{key}": value for key, value in values.items() if value}


def _ours(p: Provenance) -> dict[str, str]:
    values = {
        "format": "pt",
        "sdtrainer_version": p.version,
        "sdtrainer_config": without_paths(p.config_text, p.path_settings),
        # read by nodes that show trigger words
        "trained_words": json.dumps([p.trigger], ensure_ascii=False) if p.trigger else "",
    }
    return {key: value for key, value in values.items() if value}


def _architecture(p: Provenance) -> tuple[str, str]:
    return ARCHITECTURES[p.base_title, p.prediction_type == "v_prediction"]


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


_ABSOLUTE = re.compile(r"(?:^|[\s'\"(,;=])(?:[A-Za-z]:[\\/]|\\\\|~[\\/]|/(?=[^\s/]+/)|file://)")


def _empty_paths(node: Any, prefix: str, path_settings: frozenset[str]) -> None:
    """Walk tables and lists in place; list positions do not count in a dotted name."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        name = f"{prefix}.{key}".lstrip(".") if isinstance(node, dict) else prefix
        value = node[key]
        if isinstance(value, dict | list):
            _empty_paths(value, name, path_settings)
        elif isinstance(value, str) and (name in path_settings or _ABSOLUTE.search(value)):
            node[key] = ""
