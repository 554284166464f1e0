"""The settings that sd-scripts and its kin write into a file: entries ss_*, all of them text.

Source of names and meanings: train_network.py and library/train_util.py of kohya-ss/sd-scripts; of the
arguments of its networks, those and lycoris/kohya.py of KohakuBlueleaf/LyCORIS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .likeness import (
    Likeness,
    Row,
    Unlike,
    carry,
    forget_rates,
    leave,
    length,
    literal,
    number,
    optimizer,
    run_name,
    side,
    switch,
    table,
    whole,
)  # fmt: skip

SOURCE = "kohya's sd-scripts"

_SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_restarts": "cosine_restarts",
}  # fmt: skip
_PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
_LOSSES = {"l2": "mse", "huber": "huber"}


def _lr(given: Any) -> float:
    """Read "0.0001", or the first of "[5e-05, 5e-05]"."""
    found = literal(given)
    return number(found[0] if isinstance(found, list | tuple) else found)


def _clip_skip(given: Any) -> int:
    """There the last layer counts as 1."""
    return max(0, whole(given) - 1)


def _of_pictures() -> Iterator[Row]:
    """What is said of all pictures, or else of each set of them, then without the "ss_"."""
    rows = (
        Row("resolution", "train.resolution", side),
        Row("shuffle_caption", "data.shuffle_tags", switch),
        Row("keep_tokens", "data.keep_tags", whole),
        Row("caption_dropout_rate", "data.caption_dropout", number),
        Row("caption_tag_dropout_rate", "data.tag_dropout", number),
        Row("flip_aug", "data.flip", switch),
        Row("random_crop", "data.crop", lambda given: "random" if switch(given) else "center"),
        Row("min_bucket_reso", "data.bucket_min", whole),
        Row("max_bucket_reso", "data.bucket_max", whole),
        Row("bucket_no_upscale", "data.upscale", lambda given: not switch(given)),
    )
    for row in rows:
        yield from (replace(row, entry=f"ss_{row.entry}"), row)


_ROWS: tuple[Row, ...] = (
    Row("ss_output_name", "run.name", run_name),
    Row("ss_max_train_steps", "train.steps", length),
    Row("ss_steps", "train.steps", length),
    Row("ss_batch_size_per_device", "train.batch_size", whole),
    Row("batch_size_per_device", "train.batch_size", whole),
    Row("ss_total_batch_size", "train.batch_size", whole),
    Row("ss_gradient_accumulation_steps", "optim.accumulation", whole),
    Row("ss_seed", "train.seed", whole),
    Row("ss_mixed_precision", "train.precision", table(_PRECISIONS, "this format is not here")),
    Row("ss_optimizer", "optim.name", optimizer),
    Row("ss_unet_lr", "optim.lr", _lr),
    Row("ss_learning_rate", "optim.lr", _lr),
    Row("ss_text_encoder_lr", "optim.text_encoder_lr", _lr),
    Row("ss_lr_scheduler", "optim.schedule", table(_SCHEDULES, "this schedule is not here")),
    Row("ss_lr_warmup_steps", "optim.warmup", length, "0"),
    Row("ss_max_grad_norm", "optim.max_grad_norm", number),
    Row("ss_min_snr_gamma", "noise.min_snr_gamma", number, 0.0),
    Row("ss_noise_offset", "noise.offset", number, 0.0),
    Row("ss_zero_terminal_snr", "noise.zero_terminal_snr", switch),
    Row("ss_loss_type", "noise.loss", table(_LOSSES, "this way to count errors is not here")),
    Row("ss_huber_c", "noise.huber_delta", number),
    Row("ss_clip_skip", "base.clip_skip", _clip_skip, 0),
    Row("ss_network_dropout", "method.dropout", number, 0.0),
    *_of_pictures(),
)

_OFF = ("False", "0", "0.0", False, 0)
_LEFT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "ss_sd_model_name": ((), "it names no file of this computer: choose it as Base model"),
    "ss_vae_name": ((), "the VAE is always that of the base model"),
    "ss_scale_weight_norms": (_OFF, "there is no limit to the size of weights here"),
    "ss_multires_noise_iterations": (_OFF, "noise of several sizes is not here"),
    "ss_adaptive_noise_scale": (_OFF, "noise that follows the picture is not here"),
    "ss_ip_noise_gamma": (_OFF, "noise on the noised picture is not here"),
    "ss_debiased_estimation": (_OFF, "of this weighting only min-SNR is here"),
    "ss_v_pred_like_loss": (_OFF, "of this weighting only min-SNR is here"),
    "ss_scale_v_pred_loss_like_noise_pred": (_OFF, "of this weighting only min-SNR is here"),
    "ss_color_aug": (_OFF, "colours of pictures are never changed here"),
    "ss_face_crop_aug_range": ((), "crops around faces by chance are not here"),
    "ss_caption_dropout_every_n_epochs": (_OFF, "captions are left out by chance here: Caption dropout"),
    "ss_num_reg_images": (_OFF, "class images are no part of the file: see Prior preservation"),
    "ss_enable_bucket": (("True",), "pictures always keep their shape here"),
    "ss_full_fp16": (_OFF, "what is trained is never kept in fp16 here"),
    "ss_network_module": (
        ("networks.lora", "lycoris.kohya", "networks.lora_sd3"),
        "what it changed was taken from the tensors",
    ),
}

_ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
_OWN = (
    "algo", "conv_dim", "conv_alpha", "factor", "dora_wd", "use_tucker", "use_cp", "decompose_both",
    "full_matrix", "preset", "targets", "loraplus_lr_ratio", "rank_dropout", "module_dropout",
)  # fmt: skip
"""Arguments of networks that are read, or told by the tensors."""
_NO_RANK = ("", "None", None, "0", 0)


def likeness(metadata: Mapping[str, str], into: Likeness) -> None:
    """Read a file's entries into what its tensors told already."""
    entries = _of_first_dataset(metadata) | dict(metadata)
    carry(_ROWS, entries, into)
    leave(_LEFT, entries, into)
    _repeats(metadata, into)
    _optimizer_arguments(metadata.get("ss_optimizer", ""), into)
    _network_arguments(_json(metadata.get("ss_network_args", ""), dict), into)
    forget_rates(into)


def _of_first_dataset(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What newer files say of each set of pictures on its own."""
    sets = [one for one in _json(metadata.get("ss_datasets", ""), list) if isinstance(one, dict)]
    first = dict(sets[0]) if sets else {}
    subsets = [one for one in first.pop("subsets", []) if isinstance(one, dict)]
    return first | (dict(subsets[0]) if subsets else {})


def _repeats(metadata: Mapping[str, str], into: Likeness) -> None:
    folders = _json(metadata.get("ss_dataset_dirs", ""), dict).values()
    repeats = {one["n_repeats"] for one in folders if isinstance(one, dict) and "n_repeats" in one}
    if len(repeats) == 1 and isinstance(found := repeats.pop(), int) and found:
        into.values["data.repeats"] = found
    elif repeats:
        into.leave("ss_dataset_dirs", sorted(map(str, repeats)), "all pictures have the same repeats here")


def _optimizer_arguments(text: str, into: Likeness) -> None:
    arguments = re.search(r"\((.*)\)\s*$", text)
    for name, value in re.findall(r"(\w+)=(\([^)]*\)|\[[^\]]*\]|[^,]+)", arguments[1] if arguments else ""):
        read = literal(value.strip())
        if name == "weight_decay":
            into.values["optim.weight_decay"] = read
        elif name == "betas" and isinstance(read, list | tuple) and len(read) >= 2:
            into.values |= {"optim.beta1": read[0], "optim.beta2": read[1]}
        else:
            into.leave(f"ss_optimizer: {name}", value.strip(), "this fine point of the optimizer is not here")


def _network_arguments(arguments: Mapping[str, Any], into: Likeness) -> None:
    kind, values = into.values.get("method.kind"), into.values
    algorithm = str(arguments.get("algo", "lora")).lower()
    if kind and algorithm not in _ALGORITHMS:
        into.leave("ss_network_args: algo", algorithm, f"this kind is not here; {kind} was taken instead")
    if kind == "lokr" and "factor" in arguments:
        values["method.factor"] = whole(arguments["factor"])
    if kind == "lora" and "loraplus_lr_ratio" in arguments:
        values["method.lr_ratio_b"] = number(arguments["loraplus_lr_ratio"])
    _convolutions(arguments, into)
    for name in ("rank_dropout", "module_dropout"):
        if arguments.get(name) not in (*_OFF, *("None", None)):
            into.leave(f"ss_network_args: {name}", arguments[name], "there is only Dropout here")
    for name in arguments.keys() - set(_OWN):
        into.leave(f"ss_network_args: {name}", arguments[name], "there is no such setting here")


def _convolutions(arguments: Mapping[str, Any], into: Likeness) -> None:
    """Convolutions of 3x3 may have a rank of their own."""
    dim, rank = arguments.get("conv_dim"), into.values.get("method.rank")
    if dim in _NO_RANK or rank is None or into.values.get("method.targets") != "with convolutions":
        return
    try:
        if whole(dim) != rank:
            into.values["method.rank_patterns"] = [
                f"{pattern}: {whole(dim)}" for pattern in ("*conv1", "*conv2", "*samplers*conv")
            ]
        alpha, own = number(arguments.get("conv_alpha", dim)), number(into.values["method.alpha"])
        if alpha / whole(dim) != own / rank:
            raise Unlike("the strength, alpha / rank, is the same for all layers here")
    except Unlike as unlike:
        into.leave("ss_network_args: conv_alpha", arguments["conv_alpha"], str(unlike))
    except (ValueError, TypeError, ZeroDivisionError):
        into.leave("ss_network_args: conv_dim", dim, "cannot be read")


def _json(text: str, kind: type) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return kind()
    return found if isinstance(found, kind) else kind()
