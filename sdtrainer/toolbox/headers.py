"""What the header of an adapter file says that a tool has made or changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from .. import __version__
from ..formats.metadata import ARCHITECTURES
from ..seams import Facts
from .models import OWN

HISTORY_KEY = "sdtrainer_made"
"""The header's list of what was done to a file, oldest first."""


def new(facts: Facts, name: str, base: str, rank: int, alpha: float) -> dict[str, str]:
    """Return the header of a new LoRA for a base model: what readers know it by."""
    version, architecture = ARCHITECTURES[facts.title, facts.prediction_type == "v_prediction"]
    return {
        "format": "pt",
        "sdtrainer_version": __version__,
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_base_model_version": version,
        "ss_sd_model_name": base,
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": name,
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        **network(rank, alpha),
    }


def network(rank: int, alpha: float) -> dict[str, str]:
    """Return what a header says of a LoRA's size: its largest rank, and alpha."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": "{}",
    }


def kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a header without what is made anew for another file."""
    return {key: value for key, value in metadata.items() if key not in OWN}


def with_history(metadata: Mapping[str, str], did: Mapping[str, object]) -> dict[str, str]:
    """Return the header with one more line of what was done to the file."""
    try:
        before = json.loads(metadata.get(HISTORY_KEY, "[]"))
    except ValueError:
        before = []
    return dict(metadata) | {HISTORY_KEY: json.dumps([*before, dict(did)], ensure_ascii=False)}
