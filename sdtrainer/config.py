"""Config: everything that a person can ask of a run, and its TOML form.

Owns the sections that belong to no one room, the assembly of all sections, loading and saving run files and
presets, and the table of renamed settings. Decides nothing: "auto" is resolved in the plan.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tomlkit
from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from . import files
from .data.section import DataSection
from .diffusion import NoiseSection
from .families import BaseSection
from .methods import METHODS
from .methods import sections as method_sections
from .optim import OptimSection
from .section import Duration, Knob, Section, UserError, knob, override, walk

SCHEMA = 1
RENAMED: Mapping[int, Mapping[str, str]] = {}
"""Renames by the schema that they ended: {1: {"train.old": "train.new"}} is for schema 1 and before."""


class RunSection(Section):
    """The run as a whole."""

    name: str = knob(
        "my-lora",
        "Name",
        "Names the run folder and the exported file. Letters, digits, spaces, dots, dashes and underscores.",
        level="basic",
        max_length=80,
    )
    goal: Literal["subject", "style", "concept"] = knob(
        "subject",
        "Goal",
        "What is taught: one subject (a person, pet or object), a style, or a broader concept. Used for "
        "advice and in the file's description.",
        level="basic",
    )
    note: str = knob("", "Note", "Anything worth remembering about this run.", lines=2)

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w .\-]*", name) or name.endswith((".", " ")):
            raise ValueError(
                "use letters, digits, spaces, dots, dashes and underscores, beginning with a letter or digit"
            )
        return name


class TrainSection(Section):
    """How long and how finely."""

    steps: Duration = knob(
        "1500",
        "Length",
        "Steps (1500) or epochs (10 epochs; one epoch shows every image, with its repeats, once). Too few "
        "learns nothing; too many learns the pictures by heart.",
        level="basic",
    )
    batch_size: int = knob(
        1,
        "Batch size",
        "Images per step. Larger is smoother and uses the card better, but needs more memory.",
        unit="images",
        level="basic",
        ge=1,
        le=256,
    )
    resolution: int | list[int] = knob(
        0,
        "Resolution",
        "Size of the training pictures: their area is that of a square of this side. 0 takes what the model "
        "was made for. A list such as [512, 768] trains on several sizes at once.",
        unit="px",
        level="basic",
    )
    seed: int = knob(
        42, "Seed", "The same seed and settings give the same result on the same machine.", ge=0, le=2**31 - 1
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = knob(
        "auto",
        "Precision",
        "Number format of the computation. 'auto' takes bf16 where the card has it, else fp16, and fp32 on a "
        "processor. fp32 needs about twice the memory and time.",
    )
    checkpointing: Literal["auto", "on", "off"] = knob(
        "auto",
        "Gradient checkpointing",
        "Saves much memory by computing some things twice; each step takes about a quarter longer.",
    )
    validate_every: Duration = knob(
        "10%",
        "Validate every",
        "How often the loss on held-out images is measured. Needs validation images; 0 switches it off.",
    )

    @field_validator("steps")
    @classmethod
    def _is_absolute(cls, steps: str) -> str:
        if steps.endswith("%"):
            raise ValueError("write steps (1500) or epochs (10 epochs)")
        if float(steps.split()[0]) <= 0:
            raise ValueError("at least one step is needed")
        return steps

    @field_validator("resolution")
    @classmethod
    def _is_sensible(cls, resolution: int | list[int]) -> int | list[int]:
        sides = resolution if isinstance(resolution, list) else [resolution]
        for side in sides:
            if resolution != 0 and (side < 64 or side > 2048 or side % 8):
                raise ValueError("sides are multiples of 8 from 64 to 2048, or 0 for the model's own")
        if not sides:
            raise ValueError("give at least one size")
        return resolution

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The sizes asked for; empty for the model's own."""
        sides = self.resolution if isinstance(self.resolution, list) else [self.resolution]
        return tuple(sides) if sides != [0] else ()


class SampleSection(Section):
    """Pictures drawn while training, to watch what is learnt."""

    prompts: list[str] = knob(
        [],
        "Prompts",
        "One picture is drawn for each line, with the same seeds every time. Use the trigger word in some "
        "and leave it out in others. Empty: no pictures.",
        level="basic",
        lines=4,
    )
    every: Duration = knob(
        "10%", "Draw every", "How often pictures are drawn. 0 draws only at the end.", level="basic"
    )
    at_start: bool = knob(
        True, "Draw before training", "Shows what the model draws before it has learnt anything."
    )
    negative: str = knob("", "Negative prompt", "What the pictures should not show.")
    steps: int = knob(
        25, "Sampling steps", "More is finer and slower; 20-30 is usual.", unit="steps", ge=1, le=200
    )
    guidance: float = knob(
        7.0, "Guidance", "How strictly the prompt is followed; too high burns the colours.", ge=1, le=30
    )
    width: int = knob(0, "Width", "0 takes the training resolution.", unit="px", ge=0, le=2048, multiple_of=8)
    height: int = knob(
        0, "Height", "0 takes the training resolution.", unit="px", ge=0, le=2048, multiple_of=8
    )
    seed: int = knob(1, "First seed", "Prompt number n is drawn with this seed + n.", ge=0, le=2**31 - 1)


class CheckpointSection(Section):
    """Saved states from which a run can go on."""

    every: Duration = knob(
        "10%",
        "Save a checkpoint every",
        "How much work a crash may cost. 0 saves none before the end.",
        level="basic",
    )
    keep: int = knob(
        2,
        "Checkpoints kept",
        "Older ones are deleted. Each holds weights and optimizer state.",
        ge=1,
        le=1000,
    )


class ExportSection(Section):
    """The files for other programs."""

    precision: Literal["fp32", "fp16", "bf16"] = knob(
        "fp16",
        "Stored as",
        "Number format of the exported file. fp16 halves the size; the loss is not visible.",
    )
    formats: list[Literal["kohya", "diffusers"]] = knob(
        ["kohya"],
        "Formats",
        "kohya: read by A1111, Forge, ComfyUI and diffusers. diffusers: that library's own layout.",
    )
    title: str = knob(
        "", "Title", "Shown by programs that read the file's description. Empty: the run's name."
    )
    author: str = knob("", "Author", "Stored in the file if given.")

    @field_validator("formats")
    @classmethod
    def _not_empty(cls, formats: list[str]) -> list[str]:
        if not formats:
            raise ValueError("choose at least one format")
        return formats


# built from the list of methods
MethodSection = Annotated[Union[method_sections()], Field(discriminator="kind")]  # noqa: UP007
if len(method_sections()) == 1:
    MethodSection = method_sections()[0]  # type: ignore[misc]


class Config(Section):
    """Everything that can be asked of a run. Where a default is not said here it is each section's own."""

    schema_version: int = Field(default_factory=lambda: SCHEMA, alias="schema")
    run: RunSection = RunSection()
    base: BaseSection = BaseSection()
    data: DataSection = DataSection()
    method: MethodSection = method_sections()[0]()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    noise: NoiseSection = NoiseSection()
    sample: SampleSection = SampleSection()
    checkpoint: CheckpointSection = CheckpointSection()
    export: ExportSection = ExportSection()

    @field_validator("schema_version")
    @classmethod
    def _is_of_today(cls, schema: int) -> int:
        if schema != SCHEMA:
            raise ValueError(f"{SCHEMA}. A newer sdtrainer may have written this file; then update")
        return schema

    def values(self) -> dict[str, Any]:
        """Return the settings as nested plain values, schema first."""
        return self.model_dump(by_alias=True, mode="json")


def knobs() -> tuple[Knob, ...]:
    """Return every setting, in the order of the sections."""
    return tuple(walk(Config))


def build(values: Mapping[str, Any], source: str = "", text: str = "") -> Config:
    """Check nested values and return the Config.

    Raises:
        UserError: names the setting, its value, what is allowed, and `source` with the line in `text`
            if the value is written there.
    """
    today = migrate(values)
    try:
        return Config.model_validate(today)
    except ValidationError as error:
        raise _user_error(error.errors()[0], today, source, text) from None


def load(path: Path) -> dict[str, Any]:
    """Read a TOML file into nested values, with errors naming file and line. Raises UserError."""
    text = read_text(path)
    values = parse(text, str(path))
    build(values, str(path), text)
    return values


def parse(text: str, source: str) -> dict[str, Any]:
    """Read TOML into nested values. Raises UserError naming source and line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        where = f", {place.split(',')[0].rstrip(')')}" if place.startswith("line") else ""
        raise UserError(
            f"{source}{where}: this is not TOML ({what}).",
            'Mend this line; text needs quotes, as in name = "me".',
        ) from None


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "cannot be read"
        raise UserError(f"{path} {reason}.", "Check the path and the file.") from None


def save(config: Config, path: Path) -> None:
    """Write the config as TOML, atomically."""
    files.write_text(path, to_toml(config))


def to_toml(config: Config) -> str:
    return tomlkit.dumps(config.values())


def changed(config: Config, than: Config) -> dict[str, tuple[Any, Any]]:
    """Return {path: (value there, value here)} of every setting that differs."""
    old, new = flatten(than.values()), flatten(config.values())
    return {
        path: (old.get(path), new.get(path))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    }


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values as {dotted path: value}."""
    return {
        f"{section}.{name}": value
        for section, fields in values.items()
        if isinstance(fields, Mapping)
        for name, value in fields.items()
    }


def with_changes(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Lay `path=value` words of the command line over nested values. Values are TOML; bare words are text.

    What a text setting is given is text without quotes too: run.name=2026 names the run "2026".

    Raises:
        UserError: a word is no assignment.
    """
    texts = {k.path for k in knobs() if k.annotation is str}
    changes = {}
    for word in assignments:
        path, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is not a setting.", "Write path=value, as in method.rank=8.")
        read = _toml_value(value.strip())
        is_bare = path.strip() in texts and not isinstance(read, str)
        changes[path.strip()] = value.strip() if is_bare else read
    return override(values, changes)


def migrate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of an older schema under today's names. Config refuses an unknown schema."""
    written = values.get("schema", SCHEMA)
    result = override(values, {})
    if not isinstance(written, int) or isinstance(written, bool) or not 1 <= written <= SCHEMA:
        return result
    for schema, renames in sorted(RENAMED.items()):
        for old, new in renames.items() if written <= schema else ():
            section, _, name = old.partition(".")
            if isinstance(result.get(section), dict) and name in result[section]:
                result = override(result, {new: result[section].pop(name)})
    return result | {"schema": SCHEMA}


def _toml_value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if read.keys() == {"value"} else text


def _user_error(error: ErrorDetails, values: Mapping[str, Any], source: str, text: str) -> UserError:
    names = [str(part) for part in error["loc"] if not _is_tag(part, error["loc"])]
    path = ".".join(names[:2])
    place = _place(path, values, source, text)
    if error["type"] == "extra_forbidden":
        return UserError(f"{place}There is no setting '{path}'.", _similar(path), path)
    if len(names) == 1 and path in Config.model_fields and "union_tag" not in error["type"]:
        hint = f"Write its settings below a line [{path}]."
        return UserError(f"{place}'{path}' is a section, not a setting.", hint, path)
    title, allowed = _declared(path, error["loc"])
    reason = str(error.get("ctx", {}).get("error", "")) or allowed or error["msg"]
    return UserError(f"{place}{title} ({path}) is {_short(error['input'])}.", f"Allowed: {reason}.", path)


def _declared(path: str, location: tuple[Any, ...]) -> tuple[str, str]:
    """Return the title of a setting, and what it may be."""
    if path.startswith("method") and not path.partition(".")[2].removeprefix("kind"):
        return "Method", f"one of {', '.join(METHODS)}"
    declared = [k for k in knobs() if k.path == path]
    found = next((k for k in declared if k.kind in location), next(iter(declared), None))
    return (found.title, found.allowed()) if found else (path.capitalize(), "")


def _short(value: Any) -> str:
    text = "a table" if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_tag(part: Any, location: tuple[Any, ...]) -> bool:
    """pydantic puts the union member's tag into the location: ('method', 'lora', 'rank')."""
    return len(location) > 2 and location[0] == "method" and part == location[1]


def _place(path: str, values: Mapping[str, Any], source: str, text: str) -> str:
    """Return "file, line 3: " if the wrong value is the file's; one of the command line has no place."""
    if text and repr(_at(path, migrate(parse(text, source)))) != repr(_at(path, values)):
        return ""
    return f"{source}{_line(text, path)}: " if source else ""


def _at(path: str, values: Mapping[str, Any]) -> Any:
    section, _, name = path.partition(".")
    found = values.get(section)
    return found.get(name) if name and isinstance(found, Mapping) else found


def _line(text: str, path: str) -> str:
    """Return ", line 3" of the setting, by its name of today or a former one, or of its section, or ''."""
    section = path.partition(".")[0]
    former = [old for renames in RENAMED.values() for old, new in renames.items() if new == path]
    table, found = "", dict[str, int]()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w.\-]+)\s*\]", line):
            table = header[1]
            found.setdefault(table, number)
        elif key := re.match(r"\s*([\w.\-]+)\s*=", line):
            found.setdefault(".".join(filter(None, (table, key[1]))), number)
    lines = [found[name] for name in (path, *former, section) if name in found]
    return f", line {lines[0]}" if lines else ""


def _similar(path: str) -> str:
    import difflib

    known = [k.path for k in knobs()] if "." in path else list(Config.model_fields)
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else "Run 'show' for all settings."
