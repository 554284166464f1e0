"""sample FILE ... --prompt TEXT: draw with any base model and any adapters, at one or several strengths.

Every picture is a PNG that says how it was drawn, in the words of A1111 (formats/picture_text.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import families, files, recognition
from ..chores import Answer, Doing
from ..config import Config
from ..events import PhaseBegan, Progress, Said
from ..families import STARTER, BaseSection
from ..formats import picture_text
from ..formats.picture_text import Drawn, Named
from ..recognition.bases import BASES
from ..samplers import OWN, SamplerName
from ..seams import Facts
from ..section import Section, UserError, knob
from ..workspace import RunFolder, Workspace
from .places import existing

if TYPE_CHECKING:
    from ..plan import Plan
    from ..result import Worn
    from ..sample import Request, Sampler

_CALLS = {"lora": "lora", "loha": "lora", "lokr": "lora", "hypernetwork": "hypernet"}
"""Method: A1111's word for such a file in a prompt; an embedding is called by its own name."""
_KNOWN_WIDTHS = {base.text_width for base in BASES.values()}


class Settings(Section):
    """Draw pictures with a base model and adapters."""

    what: list[str] = knob(
        [],
        "Adapters",
        "LoRA files, embeddings, hypernetworks or run folders, each at full strength or at one "
        "given after a colon, as in my-cat.safetensors:0.8. None: the base model alone.",
        level="basic",
        is_path=True,
        lines=2,
    )
    base: str = knob(
        "",
        "Base model",
        "The model that draws: 'starter', a diffusers folder, a file or a hub id. Empty: the one that the "
        "first adapter names.",
        level="basic",
        is_path=True,
        is_hub_id=True,
    )
    prompt: list[str] = knob([], "Prompts", "What to draw, one picture for each.", level="basic", lines=3)
    negative: str = knob("", "Negative prompt", "What the pictures should not show.", level="basic", lines=2)
    strength: list[float] = knob(
        [1.0],
        "Strengths",
        "All adapters are drawn at these parts of their own strength, side by side: 0, 0.5, 1 shows the base "
        "model, half and full strength.",
        level="basic",
    )
    seed: int = knob(
        1,
        "First seed",
        "Prompt number n is drawn with this seed + n; the same seed gives the same picture.",
        level="basic",
        ge=0,
        le=2**32 - 1,
    )
    steps: int = knob(0, "Steps", "More is finer and slower. 0 takes what suits the model.", ge=0, le=200)
    guidance: float = knob(
        0.0,
        "Guidance",
        "How strictly the prompt is followed; too high burns the colours. 0 takes what suits the model.",
        ge=0,
        le=30,
    )
    width: int = knob(0, "Width", "0 takes the model's own.", unit="px", ge=0, le=2048, multiple_of=8)
    height: int = knob(0, "Height", "0 takes the model's own.", unit="px", ge=0, le=2048, multiple_of=8)
    sampler: SamplerName = knob(
        OWN,
        "Sampler",
        "The way from noise to a picture, by the names of A1111. The model's own suits it; those with an a "
        "or SDE add noise on the way.",
    )
    out: str = knob(
        "",
        "Folder",
        "Where the pictures go. Empty: the folder 'drawings' of the workspace.",
        is_path=True,
    )


@dataclass(frozen=True)
class _Task:
    """What is asked for, looked up: `config` is what the first adapter that carries one was trained with."""

    base: BaseSection
    facts: Facts
    worn: tuple[Worn, ...]
    config: Config | None


def work(settings: Settings, workspace: Workspace) -> Doing:
    """Raises UserError: nothing is to be drawn, a file is missing, or does not fit the base."""
    task = _task(settings)
    from ..result import Worn, load  # torch, only now

    strengths = list(dict.fromkeys(settings.strength)) if task.worn else [1.0]
    total = len(strengths) * len(settings.prompt)
    yield PhaseBegan("work", f"Loading {_name(task.base.path)}")
    is_zero = bool(task.config and task.config.noise.zero_terminal_snr)
    loaded = load(task.base, is_zero, (settings.width, settings.height))
    yield from _leaner(loaded.plan)
    folder = Path(settings.out).expanduser() if settings.out else workspace.drawings
    pictures: list[dict[str, Any]] = []
    yield PhaseBegan("work", f"Drawing {total} picture{'s' if total > 1 else ''}")
    for number, strength in enumerate(strengths, 1):
        worn = tuple(Worn(one.file, one.strength * strength) for one in task.worn)
        sampler = loaded.wearing(worn, is_last=number == len(strengths))
        if settings.sampler != OWN:
            sampler.use(settings.sampler)
        for request in _requests(settings, task, sampler.parts.facts):
            text = picture_text.written(_drawn(request, task, worn, sampler))
            path = _save(loaded.draw(sampler, request), folder, _stem(task), text)
            pictures.append(
                {"path": str(path), "prompt": request.prompt, "strength": strength, "seed": request.seed}
            )
            yield Progress(len(pictures), total, "pictures")
        del sampler  # before another copy of the model is made
    return {"pictures": pictures, "what": settings.what}


def _leaner(plan: Plan) -> Iterator[Said]:
    """Say what T5 is read with less exactly, or not at all."""
    chosen = [choice for choice in plan.choices if choice.path == "base.t5" and choice.value != "plain"]
    yield from (Said("info", f"{choice.why}.") for choice in chosen)


def told(answer: Answer) -> Iterator[str]:
    yield from (picture["path"] for picture in answer["pictures"])


def split(text: str) -> tuple[str, float]:
    """Return the path and the strength of "my-cat.safetensors:0.8"; without one it is 1."""
    path, colon, strength = text.strip().rpartition(":")
    try:
        return (path, float(strength)) if colon and path else (text.strip(), 1.0)
    except ValueError:
        return text.strip(), 1.0


def _task(settings: Settings) -> _Task:
    if not [prompt for prompt in settings.prompt if prompt.strip()]:
        raise UserError("Prompts: there is none.", "Write what to draw.", "prompt")
    if not settings.strength:
        raise UserError("Strengths: there is none.", "Write 1, or several such as 0, 0.5, 1.", "strength")
    worn = tuple(_worn(text) for text in settings.what)
    configs = [_config_of(text, one.file) for text, one in zip(settings.what, worn, strict=True)]
    config = next(filter(None, configs), None)
    base = config.base if config else BaseSection(path="")
    if settings.base and settings.base != base.path:
        base = base.model_copy(update={"path": settings.base, "family": "auto"})
    if not base.path:
        silent = f"{worn[0].file.name} does not say which it belongs to" if worn else ""
        said = silent or "none is chosen"
        raise UserError(f"Base model: {said}.", "Choose one (--base PATH).", "base")
    facts = families.recognise(base)
    for one in worn:
        _check_fits(one.file, facts)
    return _Task(base, facts, worn, config)


def _worn(text: str) -> Worn:
    from ..result import Worn, exported_file

    name, strength = split(text)
    path = existing(name, "what", "Adapters")
    return Worn(exported_file(RunFolder(path)) if (path / "config.toml").is_file() else path, strength)


def _config_of(text: str, file: Path) -> Config | None:
    """A run folder's own settings, which hold paths, before those in its file; None where there are none, or
    another version wrote them.
    """
    from ..result import config_inside

    folder = Path(split(text)[0]).expanduser()
    try:
        if folder.is_dir() and folder != file:
            return RunFolder(folder).config()
        return config_inside(file) if file.is_file() and file.suffix in (".safetensors", ".pt") else None
    except UserError:
        return None


def _check_fits(file: Path, facts: Facts) -> None:
    """Refuse what its names tell to be of another kind of base model."""
    found = recognition.look(file)
    row = BASES.get(found.base)
    if row is None:
        return
    is_other = row.family != facts.family
    is_other |= row.text_width != facts.text_width and facts.text_width in _KNOWN_WIDTHS
    if is_other:
        raise UserError(
            f"Adapters: {file.name} is {found.title}, and the base model is {facts.title}.",
            f"Choose a base model of {row.title}, or another file.",
            "what",
        )


def _requests(settings: Settings, task: _Task, facts: Facts) -> Iterator[Request]:
    from ..sample import Request

    sample = task.config.sample if task.config else None
    for index, prompt in enumerate(settings.prompt):
        yield Request(
            prompt=prompt,
            negative=settings.negative,
            width=settings.width or facts.resolution,
            height=settings.height or facts.resolution,
            steps=settings.steps or (sample.steps if sample else 0) or facts.sampling_steps,
            guidance=settings.guidance or (sample.guidance if sample else 0) or facts.guidance,
            seed=settings.seed + index,
            clip_skip=task.base.clip_skip,
        )


def _drawn(request: Request, task: _Task, worn: Sequence[Worn], sampler: Sampler) -> Drawn:
    from .. import methods

    kinds = [(one, methods.recognise(one.file).kind) for one in worn if one.strength]
    whole = [one.file for one, kind in kinds if kind == "full"]
    hashes = {one.file.stem: hash_of(one.file) for one, kind in kinds if _CALLS.get(kind) == "lora"}
    listed = ", ".join(f"{name}: {digits}" for name, digits in hashes.items())
    return Drawn(
        prompt=request.prompt,
        negative=request.negative,
        adapters=tuple(
            Named(one.file.stem, one.strength, _CALLS[kind]) for one, kind in kinds if kind in _CALLS
        ),
        model=_name(str(whole[-1])) if whole else _name(task.base.path),
        sampler=sampler.sampler_name,
        steps=request.steps,
        guidance=request.guidance,
        seed=request.seed,
        width=request.width,
        height=request.height,
        clip_skip=request.clip_skip,
        more={"Lora hashes": listed} if listed else {},
    )


def hash_of(file: Path) -> str:
    """Return A1111's AutoV3 of an adapter file."""
    from ..formats.safetensors_file import sha256

    return sha256(file, tensors_only=file.suffix == ".safetensors")[:12]


def _name(path: str) -> str:
    place = Path(path)
    return "starter-model" if path == STARTER else place.stem if place.is_file() else place.name


def _stem(task: _Task) -> str:
    return task.worn[0].file.stem if task.worn else _name(task.base.path)


def _save(image: Any, folder: Path, stem: str, text: str) -> Path:
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text(picture_text.CHUNK, text)
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / f"{stem}-{number:03d}.png").exists():
        number += 1
    files.write(path, lambda part: image.save(part, format="PNG", pnginfo=told))
    return path
