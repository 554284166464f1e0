"""Settings as data: one declaration each, from which form, command line, presets, docs and errors are read.

Owns `Section` (a frozen group of settings), `knob()` (one setting), `Duration` (steps, epochs or percent), `walk()`
(all settings of a tree of sections), `override()` (dotted changes) and `UserError`. Knows no particular setting.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo


class UserError(Exception):
    """Something that the user can put right: `what` happened, and the `hint` that says what to do.

    `path` is the dotted setting concerned, if one is; the page turns that field red.
    """

    def __init__(self, what: str, hint: str, path: str = "") -> None:
        super().__init__(f"{what} {hint}".strip())
        self.what, self.hint, self.path = what, hint, path


class Section(BaseModel):
    """A group of settings: immutable, every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)


def knob(
    default: Any,
    title: str,
    help: str,
    *,
    unit: str = "",
    level: Literal["basic", "advanced"] = "advanced",
    secret: bool = False,
    is_path: bool = False,
    lines: int = 1,
    **bounds: Any,
) -> Any:
    """Declare one setting: a pydantic field that also carries what the form and the docs show.

    `level` basic settings are always visible, advanced ones are folded. `is_path` marks file-system paths, which a
    shared page confines to the workspace. `bounds` are pydantic's own (ge, gt, le, lt, multiple_of, max_length).
    """
    extra = {"unit": unit, "level": level, "secret": secret, "is_path": is_path, "lines": lines}
    factory = (
        {"default_factory": lambda: type(default)(default)}
        if isinstance(default, list | dict)
        else {"default": default}
    )
    return Field(title=title, description=help, json_schema_extra=extra, **factory, **bounds)


_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%|)\s*$")


def _duration(text: str) -> str:
    match = _DURATION.match(text)
    if not match:
        raise ValueError("write a number of steps (1500), epochs (10 epochs) or a part of the run (25%)")
    number, unit = float(match[1]), match[2].rstrip("s")
    if unit == "%" and number > 100:
        raise ValueError("a part of the run is at most 100%")
    if unit in ("", "step"):
        if number != int(number):
            raise ValueError("steps are whole numbers")
        return str(int(number))
    return f"{number:g}%" if unit == "%" else f"{number:g} epochs"


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Duration = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_duration)]
"""A length of training as written: "1500" (steps), "10 epochs" or "25%" of the run. Becomes steps once, in the plan."""


def steps_of(duration: str, steps_per_epoch: int, total_steps: int) -> int:
    """Return a Duration in optimizer steps, rounded up; 0 stays 0."""
    if duration.endswith("%"):
        return math.ceil(float(duration[:-1]) / 100 * total_steps)
    if duration.endswith("epochs"):
        return math.ceil(float(duration.removesuffix("epochs")) * steps_per_epoch)
    return int(duration)


@dataclass(frozen=True)
class Knob:
    """One setting as declared. `path` is dotted (method.rank); `kind` names the union member it belongs to, or ''."""

    path: str
    kind: str
    title: str
    help: str
    unit: str
    level: str
    default: Any
    annotation: Any
    choices: tuple[Any, ...]
    ge: float | None
    le: float | None
    is_path: bool
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
        kind = _type_word(self.annotation)
        if self.ge is not None and self.le is not None:
            return f"{kind} from {self.ge:g} to {self.le:g}"
        if self.ge is not None:
            return f"{kind} of at least {self.ge:g}"
        return f"{kind} of at most {self.le:g}" if self.le is not None else kind


def walk(section: type[Section]) -> Iterator[Knob]:
    """Yield every setting of a tree of sections, in order of declaration; unions yield each member's."""
    for name, field in section.model_fields.items():
        for member in _members(field.annotation):
            if isinstance(member, type) and issubclass(member, Section):
                yield from _walk_one(member, name)


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
        level=str(extra["level"]), default=field.get_default(call_default_factory=True), annotation=field.annotation,
        choices=_choices(field.annotation), ge=_bound(field, Ge, Gt), le=_bound(field, Le, Lt),
        is_path=bool(extra["is_path"]), secret=bool(extra["secret"]), lines=int(str(extra["lines"])),
    )  # fmt: skip


def _bound(field: FieldInfo, inclusive: type, exclusive: type) -> float | None:
    for rule in field.metadata:
        if isinstance(rule, inclusive):
            return getattr(rule, inclusive.__name__.lower())
        if isinstance(rule, exclusive):
            return getattr(rule, exclusive.__name__.lower())
    return None


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


def _type_word(annotation: Any) -> str:
    members = [m for m in _members(annotation) if m is not type(None)]
    return " or ".join(_WORDS.get(m, "a list" if get_origin(m) in (list, tuple) else "text") for m in members)


def override(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested `values` with dotted `changes` laid over it.

    A change of `<section>.kind` drops the other fields of that section, which belonged to the old kind.
    """
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for path in sorted(changes, key=lambda p: not p.endswith(".kind")):
        head, _, tail = path.partition(".")
        if not tail:
            result[head] = changes[path]
            continue
        section = result.setdefault(head, {})
        if tail == "kind" and section.get("kind") != changes[path]:
            section = result[head] = {}
        section[tail] = changes[path]
    return result
