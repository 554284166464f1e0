"""Settings as data: one declaration each, from which form, command line, presets, docs and errors are read.

Owns `Section` (a frozen group of settings), `knob()` (one setting), `Duration` (steps, epochs or percent),
`walk()` (all settings of a tree of sections), `checked()` (a section made of values), `override()` (dotted
changes) and `UserError`. Knows no particular setting.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


class UserError(Exception):
    """Something that the user can put right: `what` happened, and the `hint` that says what to do.

    `path` is the dotted setting concerned, if one is; the page turns that field red.
    """

    def __init__(self, what: str, hint: str, path: str = "") -> None:
        super().__init__(
            " ".join(f"{what} {hint}".strip().splitlines())
        )  # a line, whatever the user's paths hold
        self.what, self.hint, self.path = what, hint, path


class Section(BaseModel):
    """A group of settings: immutable, every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Left alone, pydantic reads true as the number 1, and the text "4" as the number 4."""
        kinds = _members(cls.model_fields[str(info.field_name)].annotation)
        if (
            isinstance(value, bool | str)
            and not {bool, str}.intersection(kinds)
            and {int, float} & set(kinds)
        ):
            raise PydanticCustomError("wrong_type", "not a number")
        return value


def knob(
    default: Any,
    title: str,
    help: str,
    *,
    unit: str = "",
    level: Literal["basic", "advanced"] = "advanced",
    secret: bool = False,
    is_path: bool = False,
    is_hub_id: bool = False,
    lines: int = 1,
    **bounds: Any,
) -> Any:
    """Declare one setting: a pydantic field that also carries what the form and the docs show.

    `level` basic settings are always visible, advanced ones are folded. `is_path` marks file-system paths,
    which a shared page confines to the workspace; with `is_hub_id` they may name a model on the hub as well.
    `bounds` are pydantic's own: ge, gt, le, lt, multiple_of, min_length, max_length.
    """
    extra = {"unit": unit, "level": level, "secret": secret, "lines": lines}
    extra |= {"is_path": is_path, "is_hub_id": is_hub_id}
    factory = (
        {"default_factory": lambda: type(default)(default)}
        if isinstance(default, list | dict)
        else {"default": default}
    )
    return Field(title=title, description=help, json_schema_extra=extra, **factory, **bounds)


_DURATION = re.compile(r"^\s*(\d{1,9}(?:\.\d{1,9})?)\s*(steps?|epochs?|%|)\s*$")
_LENGTH = "steps (1500), epochs (10 epochs) or a part of the run (25%)"


def _duration(text: str) -> str:
    match = _DURATION.match(text)
    if not match:
        raise ValueError(f"a number of {_LENGTH}")
    number, unit = Decimal(match[1]), match[2].rstrip("s")
    if unit == "%" and number > 100:
        raise ValueError("a part of the run is at most 100%")
    if unit in ("", "step"):
        if number % 1:
            raise ValueError("steps are whole numbers")
        return str(int(number))
    return f"{number.normalize():f}%" if unit == "%" else f"{number.normalize():f} epochs"


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Duration = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_duration)]
"""A length of training as written: "1500" (steps), "10 epochs" or "25%" of a run. The plan makes steps."""


def steps_of(duration: str, steps_per_epoch: int | Fraction, total_steps: int) -> int:
    """Return a Duration in optimizer steps, rounded up; 0 stays 0. In floats 7% of 100 would be 8."""
    if duration.endswith("%"):
        return math.ceil(Fraction(duration[:-1]) * total_steps / 100)
    if duration.endswith("epochs"):
        return math.ceil(Fraction(duration.removesuffix("epochs")) * steps_per_epoch)
    return int(duration)


@dataclass(frozen=True)
class Knob:
    """One setting as declared.

    `path` is dotted (method.rank); `kind` names the union member that it belongs to, or is ''. `bounds` are
    pydantic's own, by name: {"ge": 1, "le": 256}.
    """

    path: str
    kind: str
    title: str
    help: str
    unit: str
    level: str
    default: Any
    annotation: Any
    choices: tuple[Any, ...]
    bounds: Mapping[str, float]
    is_duration: bool
    is_path: bool
    is_hub_id: bool
    secret: bool
    lines: int

    @property
    def section(self) -> str:
        return self.path.split(".")[0]

    @property
    def name(self) -> str:
        return self.path.split(".")[-1]

    @property
    def key(self) -> tuple[str, str, str]:
        """(section, kind, name): `rank` exists once per method."""
        return (self.section, self.kind, self.name)

    def allowed(self) -> str:
        """Say which values are allowed, in words."""
        if self.choices:
            return "one of " + ", ".join(str(c) for c in self.choices)
        kind = f"a number of {_LENGTH}" if self.is_duration else _type_word(self.annotation)
        bounds = dict(self.bounds)
        if {"ge", "le"} <= bounds.keys():
            kind += f" from {_number(bounds.pop('ge'))} to {_number(bounds.pop('le'))}"
        rules = [words.format(_number(bounds[name])) for name, words in _RULES.items() if name in bounds]
        return ", ".join(filter(None, (kind, " and ".join(rules))))


def walk(section: type[Section]) -> Iterator[Knob]:
    """Yield every setting of a tree of sections, in order of declaration; unions yield each member's."""
    for name, field in section.model_fields.items():
        for member in _members(field.annotation):
            if isinstance(member, type) and issubclass(member, Section):
                yield from _walk_one(member, name)


def fields(section: type[Section]) -> dict[str, Knob]:
    """Return the settings of one section by name."""
    return {name: _knob_of(name, "", field) for name, field in section.model_fields.items()}


def checked(section: type[Section], values: Mapping[str, Any], where: str) -> Any:
    """Return one section made of `values`.

    Raises:
        UserError: names the setting, its value and what is allowed; `where` is what has these settings.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        wrong, known = error.errors()[0], fields(section)
        name = str(wrong["loc"][0])
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean '{close[0]}'?" if close else f"There are {', '.join(known)}."
            raise UserError(f"'{where}' has no setting '{name}'.", hint, name) from None
        reason = str(wrong.get("ctx", {}).get("error", "")) or known[name].allowed() or wrong["msg"]
        what = f"{known[name].title} ({name}) is {short(wrong['input'])}."
        raise UserError(what, f"Allowed: {reason}.", name) from None


def short(value: Any) -> str:
    """Return a value as a sentence shows it."""
    text = "a table" if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _walk_one(section: type[Section], prefix: str) -> Iterator[Knob]:
    kind = section.model_fields["kind"].default if "kind" in section.model_fields else ""
    for name, field in section.model_fields.items():
        if name != "kind":
            yield _knob_of(f"{prefix}.{name}", kind, field)


def _knob_of(path: str, kind: str, field: FieldInfo) -> Knob:
    extra = field.json_schema_extra or {}
    assert isinstance(extra, dict) and field.title, f"{path} is not declared with knob()"
    return Knob(
        path=path, kind=kind, title=field.title, help=field.description or "", unit=str(extra["unit"]),
        level=str(extra["level"]), default=field.get_default(call_default_factory=True), 
        annotation=field.annotation,
        choices=_choices(field.annotation), bounds=_bounds(field), is_duration=_is_duration(field),
        is_path=bool(extra["is_path"]), is_hub_id=bool(extra["is_hub_id"]),
        secret=bool(extra["secret"]), lines=int(str(extra["lines"])),
    )  # fmt: skip


_BOUNDS = {
    Ge: "ge",
    Gt: "gt",
    Le: "le",
    Lt: "lt",
    MultipleOf: "multiple_of",
    MinLen: "min_length",
    MaxLen: "max_length",
}
_RULES = {
    "gt": "above {}",
    "ge": "at least {}",
    "lt": "below {}",
    "le": "at most {}",
    "multiple_of": "a multiple of {}",
    "min_length": "at least {} long",
    "max_length": "at most {} characters",
}


def _bounds(field: FieldInfo) -> dict[str, float]:
    return {
        _BOUNDS[type(rule)]: getattr(rule, _BOUNDS[type(rule)])
        for rule in field.metadata
        if type(rule) in _BOUNDS
    }


def _is_duration(field: FieldInfo) -> bool:
    return any(isinstance(rule, AfterValidator) and rule.func is _duration for rule in field.metadata)


def _number(value: float) -> str:
    return f"{value:.10g}"


def _members(annotation: Any) -> tuple[Any, ...]:
    """The plain types inside Annotated and Union."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for a in get_args(annotation) for m in _members(a))
    return (annotation,)


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LISTS = {
    int: "a list of whole numbers, as in [512, 768]",
    float: "a list of numbers, as in [0.8, 1]",
    str: 'a list of texts, as in ["one", "two"]',
}


def _type_word(annotation: Any) -> str:
    return " or ".join(_WORDS[m] if m in _WORDS else _list_word(m) for m in _members(annotation))


def _list_word(annotation: Any) -> str:
    (item,) = get_args(annotation)
    return _LISTS[item] if item in _LISTS else f"a list of {' and '.join(_choices(item))}"


def override(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested `values` with dotted `changes` laid over it.

    A change of `<section>.kind` drops the other fields of that section, which belonged to the old kind.

    Raises:
        UserError: what should be a section is a value.
    """
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for path in sorted(changes, key=lambda p: not p.endswith(".kind")):
        head, _, tail = path.partition(".")
        if not tail:
            result[head] = changes[path]
            continue
        section = result.setdefault(head, {})
        if not isinstance(section, dict):
            raise UserError(
                f"'{head}' is a section, not a setting.", f"Write its settings below a line [{head}].", head
            )
        if tail == "kind" and section.get("kind", changes[path]) != changes[path]:
            section = result[head] = {}
        section[tail] = changes[path]
    return result
