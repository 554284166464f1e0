"""edit FILE: changes what a file says of itself and nothing else: its tensors stay as they are, bit for bit.

Writes ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec), which ComfyUI and others show, and where a reader
of its own words is known, those: `trained_words` for nodes that show trigger words, `ssmd_cover_images` for
the previews of A1111 and ComfyUI. The hashes that files carry cover the tensors alone; they are taken anew.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import recognition
from ..chores import Answer, Doing
from ..events import PhaseBegan, Saved
from ..formats.metadata import ARCHITECTURES
from ..formats.safetensors_file import read_header, relabel, sha256
from ..recognition.bases import BASES
from ..recognition.found import Found
from ..section import Section, UserError, knob
from ..workspace import Workspace
from .outputs import overwrite_knob, target, to_knob
from .places import existing

EMPTY = "-"
"""What a person writes to empty an entry."""
PREVIEW_SIDE = 512
"""In pixels. ModelSpec asks for 256 at most in `thumbnail`; the cover may be larger."""
THUMBNAIL_SIDE = 256

_TEXTS: Mapping[str, str] = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "trigger": "modelspec.trigger_phrase",
    "tags": "modelspec.tags",
}
"""Setting: entry of the header."""
_SUFFIXES = {"adapter": "/lora", "embedding": "/textual-inversion"}
_RESOLUTIONS = {"SD1": "512x512", "SD2": "768x768"}


class Settings(Section):
    """Change a file's description. What is left empty stays as it is; a dash alone empties it."""

    file: str = knob(
        "",
        "File",
        "A .safetensors file: a LoRA, a whole model, an embedding.",
        level="basic",
        is_path=True,
    )
    title: str = knob("", "Title", "The name that programs show.", level="basic", max_length=300)
    author: str = knob("", "Author", "Who made it.", level="basic", max_length=300)
    description: str = knob(
        "", "Description", "What it does and how to use it.", level="basic", lines=3, max_length=10_000
    )
    trigger: str = knob(
        "", "Trigger words", "The words of a prompt that call it up.", level="basic", max_length=1000
    )
    tags: str = knob(
        "", "Tags", "Words to find it by, with commas between them: style, watercolour.", max_length=1000
    )
    preview: str = knob(
        "",
        "Preview",
        "A picture that programs show beside its name. It is made small and put into the file.",
        is_path=True,
    )
    to: str = to_knob()
    overwrite: bool = overwrite_knob()
    in_place: bool = knob(
        False,
        "Change the file itself",
        "Puts the changed file in the place of the original instead of beside it.",
    )


def work(settings: Settings, workspace: Workspace) -> Doing:
    """Raises UserError: nothing is to be changed, or the target is taken."""
    file = existing(settings.file, "file")
    if file.suffix not in (".safetensors", ".sft"):
        raise UserError(
            f"File: {file.name} cannot hold a description.", "Choose a .safetensors file.", "file"
        )
    before = dict(read_header(file).metadata)
    changes = _changes(settings)
    path = _target(settings, workspace, file)
    yield PhaseBegan("work", f"Reading {file.name}")
    after = _with_hashes(_complete(before | changes, recognition.look(file), file), file)
    after = {entry: text for entry, text in after.items() if text}
    yield PhaseBegan("work", f"Writing {path.name}")
    relabel(file, path, after)
    yield Saved(step=0, what="export", path=str(path), bytes=path.stat().st_size)
    changed = sorted(e for e in before.keys() | after.keys() if before.get(e) != after.get(e))
    return {"path": str(path), "bytes": path.stat().st_size, "changed": changed}


def told(answer: Answer) -> Iterator[str]:
    yield f"Changed: {', '.join(answer['changed']) or 'nothing'}."
    yield answer["path"]


def current(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a header says, by setting."""
    return {name: metadata.get(entry, "") for name, entry in _TEXTS.items()}


def picture_in(metadata: Mapping[str, str]) -> bytes:
    """Return the preview that a header holds, as a picture file; nothing if it holds none."""
    text = metadata.get("modelspec.thumbnail", "").partition("base64,")[2] or _first_cover(metadata)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _changes(settings: Settings) -> dict[str, str]:
    """The new entries; an empty text is one to take out."""
    given = {name: getattr(settings, name).strip() for name in _TEXTS}
    changes = {_TEXTS[name]: "" if text == EMPTY else text for name, text in given.items() if text}
    if given["trigger"]:
        changes["trained_words"] = "" if given["trigger"] == EMPTY else json.dumps([given["trigger"]])
    if settings.preview == EMPTY:
        changes |= {"modelspec.thumbnail": "", "ssmd_cover_images": ""}
    elif settings.preview:
        changes |= _pictures(Path(settings.preview).expanduser())
    if not changes:
        raise UserError("Nothing is to be changed.", "Fill in a title, a description or another field.")
    return changes


def _target(settings: Settings, workspace: Workspace, file: Path) -> Path:
    if not settings.in_place:
        return target(settings, workspace, file.name, [file])
    if settings.to:
        raise UserError("Save as and Change the file itself are both set.", "Choose one of them.", "in_place")
    return file


def _complete(metadata: dict[str, str], found: Found, file: Path) -> dict[str, str]:
    """Add what ModelSpec asks of every description, as far as it is known."""
    known = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _architecture(found),
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": file.stem,
        "modelspec.resolution": _RESOLUTIONS.get(found.base, "1024x1024" if found.base else ""),
    }
    return known | {entry: text for entry, text in metadata.items() if text or entry not in known}


def _architecture(found: Found) -> str:
    base = BASES.get(found.base)
    _, known = ARCHITECTURES.get((base.title if base else "", False), ("", ""))
    return known + _SUFFIXES.get(found.kind, "") if known else ""


def _with_hashes(metadata: dict[str, str], file: Path) -> dict[str, str]:
    tensors = sha256(file, tensors_only=True)
    return metadata | {"sshs_model_hash": tensors, "modelspec.hash_sha256": f"0x{tensors}"}


def _pictures(path: Path) -> dict[str, str]:
    from ..data.images import open_rgb

    image: Any = open_rgb(path, "white")
    cover, thumbnail = (_jpeg(image, side) for side in (PREVIEW_SIDE, THUMBNAIL_SIDE))
    return {
        "modelspec.thumbnail": f"data:image/jpeg;base64,{thumbnail}",
        "ssmd_cover_images": json.dumps([cover]),
    }


def _jpeg(image: Any, side: int) -> str:
    small = image.copy()
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return base64.b64encode(out.getvalue()).decode()


def _first_cover(metadata: Mapping[str, str]) -> str:
    try:
        covers = json.loads(metadata.get("ssmd_cover_images", "[]"))
    except ValueError:
        return ""
    return str(covers[0]) if isinstance(covers, list) and covers else ""
