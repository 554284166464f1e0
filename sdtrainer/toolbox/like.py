"""like FILE: the settings with which a file was trained, as a run file; what could not be taken over is said.

A file of ours holds its whole configuration. Of others the tensors tell method, rank and layers, and the
header what its trainer wrote there: that is likeness.py's and the trainers' tables'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import config as configs
from .. import recognition
from ..chores import Answer, Doing
from ..events import PhaseBegan
from ..recognition.contents import contents_of
from ..recognition.found import Adapter, Found
from ..section import Section, UserError, knob, override
from ..workspace import Workspace
from . import like_kohya, like_onetrainer
from .likeness import Likeness, Row, carry, length, run_name
from .places import existing

OURS = "sdtrainer_config"
_KINDS = {"LoRA": "lora", "DoRA": "lora", "LoHa": "loha", "LoKr": "lokr"}
_NEEDED = ("base.path", "data.folder")
_OWN_DISK = "paths are never stored in files: choose it yourself"
_TOOLKIT: tuple[Row, ...] = (Row("name", "run.name", run_name), Row("step", "train.steps", length))
"""Of ai-toolkit, which writes how far it came (training_info) and its own name (software), no settings."""


class Settings(Section):
    """Take over the settings of another training."""

    file: str = knob(
        "",
        "File",
        "A file that was trained: a LoRA, an embedding, a whole model. Files of sdtrainer tell everything, "
        "those of kohya's scripts and OneTrainer most, others only their method and rank.",
        level="basic",
        is_path=True,
    )


def work(settings: Settings, workspace: Workspace) -> Doing:
    file = existing(settings.file, "file")
    yield PhaseBegan("work", f"Reading {file.name}")
    return as_values(of(file))


def told(answer: Answer) -> Iterator[str]:
    """Yield a run file; what was left out stands in its comments."""
    import tomlkit

    yield f"# Trained by {answer['source']}."
    yield from (f"# {left['name']} = {_line(left['value'])}: {left['why']}." for left in answer["left"])
    yield ""
    yield tomlkit.dumps(override({}, answer["values"])).strip()


def of(file: Path) -> Likeness:
    """Return the settings that a file tells, all of them allowed here.

    Raises:
        UserError: the file cannot be read, or tells nothing of a training.
    """
    found, metadata = recognition.look(file), contents_of(file).metadata if file.is_file() else {}
    if OURS in metadata:
        return _ours(metadata[OURS], file)
    like = _from_tensors(found)
    trigger = found.says.get("trigger words", "")
    if trigger:
        like.values["data.trigger"] = trigger.partition(",")[0].strip()
    if like_onetrainer.ENTRY in metadata:
        like.source = like_onetrainer.SOURCE
        like_onetrainer.likeness(_parsed(metadata[like_onetrainer.ENTRY]), like)
    elif "ss_max_train_steps" in metadata or "ss_optimizer" in metadata or "ss_network_args" in metadata:
        like.source = like_kohya.SOURCE
        like_kohya.likeness(metadata, like)
    elif name := _parsed(metadata.get("software", "")).get("name"):
        like.source = str(name)
        carry(_TOOLKIT, dict(metadata) | _parsed(metadata.get("training_info", "")), like)
    if not like.values:
        raise UserError(
            f"{file.name} tells nothing of its training.",
            "Choose a LoRA or another file that was trained with sdtrainer, kohya's scripts or OneTrainer.",
            "file",
        )
    return _allowed(like)


def as_values(like: Likeness) -> Answer:
    return {
        "source": like.source,
        "values": like.values,
        "left": [{"name": left.name, "value": left.value, "why": left.why} for left in like.left],
    }


def _ours(text: str, file: Path) -> Likeness:
    """Take all of it but the paths, which files do not hold, and what another version knew."""
    written = configs.migrate(configs.parse(text, file.name))
    like = _allowed(Likeness("sdtrainer", configs.flatten(written)))
    for knob_ in configs.knobs():
        if knob_.is_path and like.values.get(knob_.path) == "":
            del like.values[knob_.path]
            if knob_.path in _NEEDED:
                like.leave(knob_.path, "", _OWN_DISK)
    return like


def _from_tensors(found: Found) -> Likeness:
    like = Likeness("an unknown program")
    if found.adapter is None:
        return like
    kind = _KINDS.get(found.adapter.kind)
    if kind is None:
        like.leave("method", found.adapter.kind, "this kind cannot be trained here")
        return like
    like.values = {"method.kind": kind} | _sizes(found.adapter)
    like.values["method.targets"] = _targets(found.adapter.targets.get("denoiser", {}))
    like.values["method.train_text_encoder"] = found.adapter.trains_text_encoder
    if found.adapter.kind == "DoRA":
        like.values["method.dora"] = True
    return like


def _sizes(adapter: Adapter) -> dict[str, Any]:
    """The commonest rank, and its alpha. A LoKr whose second factor is whole has neither."""
    rank = next(iter(adapter.ranks), 0)
    if not rank:
        return {}
    sizes: dict[str, Any] = {"method.rank": rank}
    sizes["method.alpha"] = next(iter(adapter.alphas), 0.0) or float(rank)
    return sizes | ({"method.full_w2": False} if adapter.kind == "LoKr" else {})


def _targets(kinds: Mapping[str, int]) -> str:
    if "convolution" in kinds:
        return "with convolutions"
    return "attention and feed-forward" if "feed-forward" in kinds else "attention"


def _allowed(like: Likeness) -> Likeness:
    """Move what our settings do not allow to what is left."""
    while True:
        try:
            configs.build(override({}, like.values))
            return like
        except UserError as error:
            if error.path not in like.values:
                raise
            like.leave(error.path, like.values.pop(error.path), f"not allowed here: {error.hint.rstrip('.')}")


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _line(value: str) -> str:
    return " ".join(value.split()) or "(empty)"
