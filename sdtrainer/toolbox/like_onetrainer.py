"""The settings that OneTrainer writes into a file: its whole configuration as JSON, in the entry ot_config.

Source of names and words: modules/util/config/TrainConfig.py and modules/util/enum of Nerogar/OneTrainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .likeness import (
    Likeness,
    Row,
    Unlike,
    carry,
    forget_rates,
    leave,
    length,
    number,
    optimizer,
    run_name,
    side,
    switch,
    table,
    whole,
)  # fmt: skip

SOURCE = "OneTrainer"
ENTRY = "ot_config"

_SCHEDULES = {
    "constant": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_restarts": "cosine_restarts", "cosine_with_hard_restarts": "cosine_restarts",
}  # fmt: skip
_PRECISIONS = {"float_32": "fp32", "float_16": "fp16", "bfloat_16": "bf16"}
_FILTERS = {
    "attn-mlp": "attention and feed-forward", "attn-only": "attention", "full": "with convolutions",
}  # fmt: skip


def _epochs(given: Any) -> str:
    return f"{whole(given)} epochs"


def _warmup(given: Any) -> str:
    """Steps or, up to 1, a part of the whole."""
    found = number(given)
    return f"{found * 100:g}%" if 0 < found <= 1 else length(given)


def _stem(given: Any) -> str:
    return run_name(str(given).replace("\\", "/").rpartition("/")[2].rpartition(".")[0])


_ROWS: tuple[Row, ...] = (
    Row("output_model_destination", "run.name", _stem),
    Row("epochs", "train.steps", _epochs),
    Row("batch_size", "train.batch_size", whole),
    Row("gradient_accumulation_steps", "optim.accumulation", whole),
    Row("resolution", "train.resolution", side),
    Row("train_dtype", "train.precision", table(_PRECISIONS, "this format is not here")),
    Row("optimizer.optimizer", "optim.name", optimizer),
    Row("optimizer.weight_decay", "optim.weight_decay", number),
    Row("optimizer.beta1", "optim.beta1", number),
    Row("optimizer.beta2", "optim.beta2", number),
    Row("unet.learning_rate", "optim.lr", number),
    Row("transformer.learning_rate", "optim.lr", number),
    Row("learning_rate", "optim.lr", number),
    Row("text_encoder.learning_rate", "optim.text_encoder_lr", number),
    Row("learning_rate_scheduler", "optim.schedule", table(_SCHEDULES, "this schedule is not here")),
    Row("learning_rate_warmup_steps", "optim.warmup", _warmup),
    Row("learning_rate_cycles", "optim.restarts", whole),
    Row("learning_rate_min_factor", "optim.min_lr_ratio", number),
    Row("clip_grad_norm", "optim.max_grad_norm", number, 0.0),
    Row("ema", "optim.ema", lambda given: str(given).upper() != "OFF"),
    Row("ema_decay", "optim.ema_decay", number),
    Row("offset_noise_weight", "noise.offset", number),
    Row("rescale_noise_scheduler_to_zero_terminal_snr", "noise.zero_terminal_snr", switch),
    Row("text_encoder_layer_skip", "base.clip_skip", whole),
    Row("dropout_probability", "method.dropout", number),
    Row(
        "layer_filter_preset",
        "method.targets",
        table(_FILTERS, "these layers are not known by name here; they were taken from the tensors"),
    ),
)

_OFF = (0, 0.0, False, "OFF")
_LEFT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "base_model_name": ((), "it names no file of this computer: choose it as Base model"),
    "perturbation_noise_weight": (_OFF, "noise on the noised picture is not here"),
    "mae_strength": (_OFF, "of the ways to count errors only mse and huber are here"),
    "log_cosh_strength": (_OFF, "of the ways to count errors only mse and huber are here"),
    "masked_training": (_OFF, "masks are set with the pictures, not here"),
    "learning_rate_scaler": (("NONE",), "the rate is not scaled by the batch here"),
    "timestep_distribution": (("UNIFORM",), "timesteps are drawn as suits the base model"),
    "custom_learning_rate_scheduler": ((), "program code is not taken over"),
}


def likeness(config: Mapping[str, Any], into: Likeness) -> None:
    """Read a configuration into what the file's tensors told already."""
    flat = _flat(config)
    told = into.values.pop("method.targets", None)
    carry(_ROWS, flat, into)
    if told is not None:
        into.values.setdefault("method.targets", told)
    leave(_LEFT, flat, into)
    _loss(flat, into)
    forget_rates(into)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _loss(flat: Mapping[str, Any], into: Likeness) -> None:
    """One weighting of timesteps has a counterpart, and one loss beside the mean square."""
    try:
        if "loss_weight_fn" in flat:
            into.values["noise.min_snr_gamma"] = _gamma(flat)
    except Unlike as unlike:
        into.leave("loss_weight_fn", flat["loss_weight_fn"], str(unlike))
    if flat.get("huber_strength") not in (*_OFF, None):
        into.values["noise.loss"] = "huber"
        into.values["noise.huber_delta"] = flat.get("huber_delta", 1.0)


def _gamma(flat: Mapping[str, Any]) -> float:
    name = str(flat["loss_weight_fn"]).upper()
    if name not in ("CONSTANT", "MIN_SNR_GAMMA"):
        raise Unlike("of the weightings only min-SNR is here")
    return 0.0 if name == "CONSTANT" else number(flat.get("loss_weight_strength", 5.0))
