"""Config: everything that a person can ask of a run, and its TOML form.

Owns the assembly of all sections, loading and saving run files and presets, the table of renamed settings and
the words for a wrong one. Decides nothing: "auto" is resolved in the plan.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tomlkit
from pydantic import Discriminator, Field, Tag, ValidationError, field_validator
from pydantic_core import ErrorDetails

from . import files
from .data.prior import PriorSection
from .data.section import DataSection
from .diffusion import NoiseSection
from .families import BaseSection
from .methods import METHODS
from .methods import sections as method_sections
from .optim import OptimSection
from .run_sections import CheckpointSection, ExportSection, RunSection, SampleSection, TrainSection
from .section import Knob, Section, UserError, override, short, walk

SCHEMA = 2
RENAMED: Mapping[int, Mapping[str, str]] = {1: {"base.use_t5": "base.t5"}}
"""Renames by the schema that they ended: {1: {"train.old": "train.new"}} is for schema 1 and before."""


def _kind_of(given: Any) -> Any:
    """The kind of method that is meant; left unsaid, the first."""
    return given.get("kind", METHODS[0]) if isinstance(given, Mapping) else getattr(given, "kind", METHODS[0])


MethodSection = Annotated[  # built from the list of methods
    Union[tuple(Annotated[s, Tag(kind)] for kind, s in zip(METHODS, method_sections(), strict=True))],  # noqa: UP007
    Discriminator(_kind_of),
]


class Config(Section):
    """Everything that can be asked of a run. Where a default is not said here it is each section's own."""

    schema_version: int = Field(default_factory=lambda: SCHEMA, alias="schema")
    run: RunSection = RunSection()
    base: BaseSection = BaseSection()
    data: DataSection = DataSection()
    prior: PriorSection = PriorSection()
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
    names = [str(part) for index, part in enumerate(error["loc"]) if not (index == 1 and part in METHODS)]
    path = ".".join(names[:2])
    if error["type"] == "union_tag_invalid":
        path, error["input"] = "method.kind", error["input"]["kind"]
    place = _place(path, values, source, text)
    if error["type"] == "extra_forbidden":
        return UserError(f"{place}There is no setting '{path}'.", _similar(path, error["loc"]), path)
    if len(names) == 1 and path in Config.model_fields and error["type"] != "union_tag_invalid":
        hint = f"Write its settings below a line [{path}]."
        return UserError(f"{place}'{path}' is a section, not a setting.", hint, path)
    title, allowed = _declared(path, error["loc"])
    reason = str(error.get("ctx", {}).get("error", "")) or allowed or error["msg"]
    return UserError(f"{place}{title} ({path}) is {short(error['input'])}.", f"Allowed: {reason}.", path)


def _declared(path: str, location: tuple[Any, ...]) -> tuple[str, str]:
    """Return the title of a setting, and what it may be."""
    if path.startswith("method") and not path.partition(".")[2].removeprefix("kind"):
        return "Method", f"one of {', '.join(METHODS)}"
    declared = [k for k in knobs() if k.path == path]
    found = next((k for k in declared if k.kind in location), next(iter(declared), None))
    return (found.title, found.allowed()) if found else (path.capitalize(), "")


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


def _similar(path: str, location: tuple[Any, ...]) -> str:
    import difflib

    others = [k.kind for k in knobs() if k.path == path]
    if others:
        return f"It belongs to {' and '.join(others)}: remove it, or choose that method."
    known = [k.path for k in knobs() if k.kind in ("", *location)] if "." in path else [*Config.model_fields]
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else "Run 'show' for all settings."
