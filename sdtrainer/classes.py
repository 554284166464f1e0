"""classes RUN.toml: draw the class images of a run now, with the model and the code of its own training.

What is drawn here is not drawn before training; what is not, is. The chore `classes`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import config as configs
from . import families
from .config import Config
from .data import prior
from .events import Event, PhaseBegan
from .section import Section, UserError, knob
from .workspace import Workspace


class Settings(Section):
    """Which class images: those that these settings train with."""

    run: str = knob("", "Run file", "The settings that you train with (TOML).", level="basic", is_path=True)
    settings: list[str] = knob(
        [], "Settings", "path=value, laid over the run file, as in prior.images=100.", level="basic"
    )


def work(settings: Settings, workspace: Workspace) -> Generator[Event, None, dict[str, Any]]:
    """Raises UserError: these settings draw no class images, or could not be trained."""
    config = config_of(settings)
    check(config)
    yield PhaseBegan("work", "Reading the settings")
    from accelerate import Accelerator

    from .training import class_images
    from .training.base import load
    from .training.setup import drafted

    draft = drafted(config, workspace)
    assert draft.class_images is not None
    samples = draft.class_images.samples
    todo = prior.missing(samples)
    if todo:
        base = yield from load(draft.plan, families.family_of(draft.facts))
        yield from class_images.draw(draft.class_images, base, Accelerator(cpu=draft.plan.device == "cpu"))
    return {
        "prompt": config.prior.class_prompt.strip(),
        "images": len(samples),
        "drawn": len(todo),
        "folder": str(draft.class_images.folder),
    }


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    there = answer["images"] - answer["drawn"]
    yield f"'{answer['prompt']}': {answer['drawn']:,} class images drawn, {there:,} were there."
    yield answer["folder"]


def config_of(settings: Settings) -> Config:
    """Return the run file with what is laid over it; without a file that alone."""
    text = configs.read_text(Path(settings.run).expanduser()) if settings.run else ""
    values = configs.with_changes(configs.parse(text, settings.run), settings.settings)
    return configs.build(values, settings.run, text)


def as_words(config: Config) -> list[str]:
    """Return a config as `settings`, for those who have no file."""
    import tomlkit

    values = configs.flatten(config.values())
    return [f"{path}={tomlkit.item(value).as_string()}" for path, value in values.items()]


def check(config: Config) -> None:
    """Raise UserError where there is nothing to draw."""
    section = config.prior
    if section.folder:
        what = f"Folder of class images: they are taken from {section.folder}, so none are drawn."
        raise UserError(what, "Empty it to have them drawn.", "prior.folder")
    if not section.class_prompt.strip():
        what = "Class prompt: it is empty, so there are no class images."
        raise UserError(what, "Write what your subject is, as in 'a dog'.", "prior.class_prompt")
