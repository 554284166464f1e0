"""Whole models as the tools take them: recognised, their tensors read when they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import families, recognition
from ..diffusion import Schedule
from ..families import ASSETS, STARTER, BaseSection
from ..formats import diffusers_folder, safetensors_file, tokenizer_files, whole_model
from ..formats.naming import part_name
from ..formats.whole_model import WholeModel
from ..recognition import Found
from ..recognition.bases import BASES
from ..recognition.contents import contents_of
from ..seams import DENOISER, Facts, Parts
from ..section import UserError

OWN = (
    whole_model.CONFIG_KEY,
    *(whole_model.tokenizer_key(encoder) for encoder in ("text_encoder", "text_encoder_2")),
    *("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "format"),
)
"""What a header says that is made anew for another file."""


@dataclass(frozen=True, eq=False)
class Model:
    """`base` is its row of recognition.bases.BASES. The tensors of `whole` are deferred."""

    path: Path
    facts: Facts
    base: str
    whole: WholeModel
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def blueprint(self) -> Parts:
        return blueprint(self.facts)

    def state(self, part: str) -> Mapping[str, Any]:
        """Return the tensors of a part by the word that adapter files have for it ("unet")."""
        return next(s for name, s in self.whole.states.items() if part_name(name, self.facts) == part)


def open_model(path: str, title: str, setting: str) -> Model:
    """Open a model; reads headers, configs and tokenizers. `title` is the setting's, for errors.

    Raises:
        UserError: no whole model lies there.
    """
    facts, place = recognise(path, title, setting), place_of(path)
    try:
        whole, metadata = (_of_folder if place.is_dir() else _of_file)(place, facts)
    except UserError as error:
        raise _of_setting(error, title, setting) from None
    base = recognition.look(place).base
    facts = replace(facts, encoders=tuple(e for e in facts.encoders if e in whole.states))
    return Model(place, facts, base, whole, {k: v for k, v in metadata.items() if k not in OWN})


def recognise(path: str, title: str, setting: str) -> Facts:
    """Return what is known of a model without opening it.

    Raises:
        UserError: no whole model lies there.
    """
    place = place_of(path)
    if not path or not place.exists():
        said = f"'{path}' does not exist" if path else "nothing is chosen"
        raise UserError(
            f"{title}: {said}.", "Give a .safetensors file or diffusers folder of a whole model.", setting
        )
    try:
        return families.recognise(BaseSection(path=str(place)))
    except UserError as error:
        raise _of_setting(error, title, setting) from None


def place_of(path: str) -> Path:
    """Return where a model lies; the starter's may be named by its word."""
    return ASSETS / "starter-model" if path == STARTER else Path(path).expanduser()


def _of_setting(error: UserError, title: str, setting: str) -> UserError:
    """The error about a base model, as one of another setting."""
    what = error.what.replace("Base model", title, 1)
    return UserError(what if what.startswith(title) else f"{title}: {what}", error.hint, setting)


def blueprint(facts: Facts) -> Parts:
    """Return a model's modules without weights, to know names and shapes by."""
    import torch

    return Parts(facts, families.family_of(facts).skeleton(facts), {}, Schedule(torch.empty(0)))


def mismatch(base: str, other: Found) -> bool:
    """Return whether a file that was found is for another kind of base model; unknown, it is not."""
    if not other.base or not base:
        return False
    mine, theirs = BASES[base], BASES[other.base]
    return (mine.family, mine.text_width) != (theirs.family, theirs.text_width)


def _of_folder(place: Path, facts: Facts) -> tuple[WholeModel, Mapping[str, str]]:
    from ..formats import deferred

    states = whole_model.states_of_folder(diffusers_folder.read(place, deferred.tensors))
    component = diffusers_folder.COMPONENTS[facts.family][DENOISER]
    weights = diffusers_folder.weights_in(place / component.folder, component.weights)
    metadata = safetensors_file.read_header(weights.files[0]).metadata if weights else {}
    return WholeModel(facts.family, states, _configs(facts), _tokenizers(facts)), metadata


def _of_file(place: Path, facts: Facts) -> tuple[WholeModel, Mapping[str, str]]:
    from ..formats import deferred

    tensors, configs = deferred.tensors(place), _configs(facts)
    states, unheld = whole_model.states_in(tensors, configs), whole_model.unheld_in(tensors, configs)
    return WholeModel(facts.family, states, configs, _tokenizers(facts), unheld), contents_of(place).metadata


def _tokenizers(facts: Facts) -> dict[str, dict[str, str]]:
    """The files of each text encoder's."""
    loaded = families.family_of(facts).load(facts, (), {}).tokenizers
    return {encoder: tokenizer_files.files_of(tokenizer) for encoder, tokenizer in loaded.items()}


def _configs(facts: Facts) -> dict[str, dict[str, Any]]:
    is_zero = bool(facts.config[whole_model.SCHEDULER].get("rescale_betas_zero_snr"))
    return whole_model.configs_of(facts, is_zero)
