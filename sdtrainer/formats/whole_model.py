"""A whole model as files hold it: the tensors and the config of each part, and the tokenizers' files.

Owns what the single file and the folder have in common: taking the model out of live modules, putting one
into them, and the header entries by which a single file alone can be loaded again exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..seams import T5, VAE, Parts
from ..section import UserError
from . import diffusers_folder, ldm, legacy_pt, mmdit, safetensors_file, tokenizer_files
from .kohya import with_text_model

if TYPE_CHECKING:
    import torch

    from ..seams import Facts, Precision

MARKS = ("v_pred", "ztsnr")
"""Of a model that predicts v, and of one whose last timestep is pure noise."""
CONFIG_KEY = "sdtrainer_base_config"
SCHEDULER = "scheduler"
MAX_TOKENIZER_BYTES = 200_000
"""Above this it is the common CLIP tokenizer of 49,408 words, which every program has."""


@dataclass(frozen=True, eq=False)
class WholeModel:
    """`states`, `configs` are keyed by part, the latter also by "scheduler"; `tokenizers` are text by encoder
    and file. `unheld` are tensors of the file that it came from which no part holds.
    """

    family: str
    states: Mapping[str, ldm.State]
    configs: Mapping[str, Mapping[str, Any]]
    tokenizers: Mapping[str, Mapping[str, str]]
    unheld: ldm.State = field(default_factory=dict)


def layout_of(configs: ldm.Configs) -> ldm.Text:
    """Return how a single file stores the text encoders of a model with these configs."""
    return "both" if ldm.ENCODER_2 in configs else ldm.text_layout(configs[ldm.ENCODER]["hidden_size"])


def take(parts: Parts) -> WholeModel:
    """Return the model in these modules, whose tensors are shared, not copied."""
    tokenizers = {name: tokenizer_files.files_of(tokenizer) for name, tokenizer in parts.tokenizers.items()}
    return WholeModel(
        parts.facts.family,
        states_of(parts),
        configs_of(parts.facts, parts.schedule.has_zero_terminal),
        tokenizers,
        unheld_of(parts.facts),
    )


def unheld_of(facts: Facts) -> dict[str, torch.Tensor]:
    """Return the tensors of a single file that its model does not hold, but for marks; none of a folder.

    None either where the file is gone or another by now: what was learnt is worth more.
    """
    from safetensors import SafetensorError

    if facts.layout != "file":
        return {}
    try:
        state = read_tensors(Path(facts.path).expanduser())
    except (OSError, UserError, SafetensorError):
        return {}
    return unheld_in(state, facts.config)


def unheld_in(state: ldm.State, configs: ldm.Configs) -> dict[str, torch.Tensor]:
    """Return those of the tensors of a single file that a model with these configs does not hold."""
    is_three = mmdit.is_one(configs)
    kept = mmdit.unheld(state) if is_three else ldm.unheld(state, configs, layout_of(configs))
    return {name: tensor for name, tensor in kept.items() if name not in MARKS}


def states_of(parts: Parts) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of every part by their stored names."""
    return {part: _state(module) for part, module in parts.modules.items()}


def lay(states: Mapping[str, ldm.State], parts: Parts, strength: float) -> None:
    """Move the modules' weights to base + strength x (new - base), for the parts that are given. T5, which
    nothing changes, stays.

    Raises:
        UserError: a tensor is missing, is too many, or has another shape.
    """
    import torch

    mine = states_of(parts)
    states = {part: state for part, state in states.items() if part != T5}
    for part, new in states.items():
        _check_fit(part, mine[part], new)
    with torch.no_grad():
        for part, new in states.items():
            for name, weight in mine[part].items():
                weight.copy_(_between(weight, new[name], strength))


def _check_fit(part: str, mine: ldm.State, new: ldm.State) -> None:
    odd = sorted(mine.keys() ^ new.keys())
    odd += sorted(k for k in mine.keys() & new.keys() if mine[k].shape != new[k].shape)
    if odd:
        raise UserError(
            f"This model does not fit the base model: {odd[0]} of its {part.replace('_', ' ')} differs.",
            "Choose the base model that it was made from, or one of the same kind.",
        )


def fill(module: torch.nn.Module, state: ldm.State, dtype: torch.dtype) -> None:
    """Give a module without weights these, in a number format.

    Raises:
        RuntimeError: a tensor is missing, is too many, or has another shape.
    """
    stored = {_stored_name(module, name): name for name in module.state_dict()}
    named = {stored.get(name, name): value.to(dtype) for name, value in state.items()}
    module.load_state_dict(named, assign=True)


def _between(base: torch.Tensor, new: torch.Tensor, strength: float) -> torch.Tensor:
    new = new.to(base.device)
    return new if strength == 1 else base.float() + strength * (new.float() - base.float())


def write_file(
    path: Path, model: WholeModel, metadata: Mapping[str, str], precision: Precision | None
) -> None:
    """Write the original single-file layout, with the configs and small tokenizers in its header."""
    for _ in writing_file(path, model, metadata, precision):
        pass


def writing_file(
    path: Path, model: WholeModel, metadata: Mapping[str, str], precision: Precision | None
) -> Iterator[int]:
    """Do what `write_file` does, yielding the bytes of each tensor; by default each keeps its precision."""
    state = to_file(model.states, model.configs)
    unchanged = {k: v for k, v in model.unheld.items() if k not in state or v.shape == state[k].shape}
    header = dict(metadata) | _entries(model)
    yield from safetensors_file.writing(path, state, header, precision, unchanged | _marks(model))


def _marks(model: WholeModel) -> dict[str, torch.Tensor]:
    """The empty tensors by which readers of SDXL know what a model predicts."""
    import torch

    scheduler, is_sdxl = model.configs[SCHEDULER], layout_of(model.configs) == "both"
    is_on = (scheduler.get("prediction_type") == "v_prediction", scheduler.get("rescale_betas_zero_snr"))
    marks = [mark for mark, is_so in zip(MARKS, is_on, strict=True) if is_so and is_sdxl]
    return {mark: torch.zeros(0) for mark in marks}


def to_file(states: Mapping[str, ldm.State], configs: ldm.Configs) -> dict[str, torch.Tensor]:
    """Return the tensors of the single file; T5 is never among them."""
    if mmdit.is_one(configs):
        return mmdit.to_file(states, configs)
    return ldm.to_ldm(states, configs, layout_of(configs))


def write_folder(path: Path, model: WholeModel, metadata: Mapping[str, str], precision: Precision) -> None:
    """Write a diffusers folder, whole or not at all."""
    diffusers_folder.write(path, model, metadata, precision)


def is_whole(path: Path) -> bool:
    """Return whether this is a diffusers folder or a single file in the original layout. Reads names only."""
    if path.is_dir():
        return diffusers_folder.is_folder(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    return any(name.startswith(ldm.UNET_PREFIX) for name in safetensors_file.read_header(path).tensors)


def read_states(path: Path, configs: ldm.Configs) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of each part of a model with these configs, from a single file or a folder.

    Raises:
        UserError: it is of another kind.
    """
    if path.is_dir():
        return states_of_folder(diffusers_folder.read(path))
    return states_in(read_tensors(path), configs)


def states_of_folder(read: Mapping[str, ldm.State]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of a folder under the names that this version of the libraries stores."""
    return {part: _named_alike(part, state) for part, state in read.items()}


def states_in(state: ldm.State, configs: ldm.Configs) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of each part, from those of a single file. Raises UserError for an unknown name."""
    if mmdit.is_one(configs):
        return mmdit.from_file(state, configs)
    return ldm.from_ldm(state, configs, layout_of(configs))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a single file by their names in it, mapped from disk and not read.

    Raises:
        UserError: it is gone, damaged, or holds program code.
    """
    from safetensors.torch import load_file

    if path.suffix.lower() in legacy_pt.SUFFIXES:
        return legacy_pt.tensors_of(legacy_pt.read(path))
    safetensors_file.read_header(path)  # which says what is wrong with the file
    return load_file(path)


_NEWER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_OLDER_VAE = re.compile("|".join(map(re.escape, _NEWER)))
"""The attention layers of a VAE as diffusers called them until 2023."""


def _named_alike(part: str, state: ldm.State) -> dict[str, torch.Tensor]:
    """Text encoders and VAEs by one version's names, whichever stored them."""
    if part == VAE:
        return {_OLDER_VAE.sub(lambda m: _NEWER[m[0]], key): value for key, value in state.items()}
    if part not in (ldm.ENCODER, ldm.ENCODER_2):
        return dict(state)
    named = {with_text_model(key): value for key, value in state.items()}
    return {key: value for key, value in named.items() if key != ldm.POSITION_IDS}


def inside(metadata: Mapping[str, str]) -> tuple[dict[str, Any] | None, dict[str, dict[str, str]]]:
    """Return what a single file's header carries: the configs or None, and the files of tokenizers by text
    encoder.
    """
    found = {encoder: _json(metadata, tokenizer_key(encoder)) for encoder in (ldm.ENCODER, ldm.ENCODER_2)}
    return _json(metadata, CONFIG_KEY), {encoder: texts for encoder, texts in found.items() if texts}


def tokenizer_key(encoder: str) -> str:
    """Return the name of a tokenizer's entry in the header."""
    return f"sdtrainer_{diffusers_folder.tokenizer_folder(encoder)}"


def _json(metadata: Mapping[str, str], key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(metadata.get(key, "null"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _entries(model: WholeModel) -> dict[str, str]:
    """What the header says beyond the usual. The new form of a tokenizer can be made from the older one."""
    entries = {CONFIG_KEY: json.dumps({k: v for k, v in model.configs.items() if k != T5})}
    for encoder, texts in model.tokenizers.items():
        if encoder == T5:
            continue
        older = {k: text for k, text in texts.items() if k != tokenizer_files.NEW_FORM}
        text = json.dumps(older, ensure_ascii=False)
        if len(text.encode()) < MAX_TOKENIZER_BYTES:
            entries[tokenizer_key(encoder)] = text
    return entries


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {_stored_name(module, name): value for name, value in module.state_dict().items()}


def _stored_name(module: torch.nn.Module, name: str) -> str:
    """What files call it: with the `text_model.` that transformers 5 dropped."""
    return with_text_model(name) if type(module).__name__.startswith("CLIPText") else name


def configs_of(facts: Facts, has_zero_terminal: bool) -> dict[str, dict[str, Any]]:
    """Return the configs as the base model has them; the scheduler's says what is predicted. No path of the
    disk.
    """
    configs = {
        name: {k: v for k, v in config.items() if k != "_name_or_path"}
        for name, config in facts.config.items()
    }
    if facts.prediction_type != "flow":  # which has schedulers of its own
        configs[SCHEDULER]["prediction_type"] = facts.prediction_type
    if has_zero_terminal:  # of the usual samplers, only DDIM starts from pure noise
        configs[SCHEDULER] |= {
            "_class_name": "DDIMScheduler",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        }
    return configs
