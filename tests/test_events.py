"""The log of a run: every event comes back as it was said, whenever the process was killed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from sdtrainer import events
from sdtrainer.events import EVENTS, Event, Said, Stepped, Validated

_EXAMPLES: dict[Any, Any] = {
    str: 'a "zib" – ü\n',
    int: 7,
    float: 0.25,
    bool: True,
    list[float]: [0.5, 1e-9],
    dict[str, float]: {"denoiser": 1e-4},
    float | None: None,
}


def example(kind: type[Event]) -> Event:
    """An event of this kind with something in every field."""
    hints = get_type_hints(kind)
    return kind(**{f.name: _value(hints[f.name]) for f in dataclasses.fields(kind)})


def _value(hint: Any) -> Any:
    return get_args(hint)[-1] if get_origin(hint) is Literal else _EXAMPLES[hint]


def said(path: Path, offset: int = 0) -> list[Event]:
    return [event for event, _ in events.read(path, offset)]


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_survives_its_line_of_json(kind: type[Event]) -> None:
    event = example(kind)
    line = events.to_json(event)
    assert "\n" not in line
    assert events.from_json(line) == event


def test_every_kind_of_event_is_in_the_list() -> None:
    kinds = {
        k for k in vars(events).values() if isinstance(k, type) and issubclass(k, Event) and k is not Event
    }
    assert kinds == set(EVENTS) and len(EVENTS) == len(kinds) > 10


def test_an_event_knows_its_time_and_cannot_be_changed() -> None:
    event = Said("info", "hello")
    assert event.at > 1.7e9
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.text = "other"  # type: ignore[misc]


def test_numbers_that_are_none_become_null() -> None:
    event = Stepped(3, 9, [0.5, math.nan], [math.inf, -math.inf], {"denoiser": math.nan}, 0.1, None, 4, 0)
    line = json.loads(events.to_json(event), parse_constant=pytest.fail)
    assert (line["losses"], line["grad_norms"]) == ([0.5, None], [None, None])
    assert line["lr"] == {"denoiser": None}
    assert json.loads(events.to_json(Validated(1, math.nan)))["loss"] is None


@pytest.mark.parametrize(
    "line", ["", "{", "null", "[]", "3", '{"event": "Nothing"}', '{"event": "Said"}', '{"a": 1}']
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        events.from_json(line)


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    assert said(log) == []
    first, second, third = (Validated(step, 0.5) for step in range(3))
    events.append(log, first)
    events.append(log, second)
    read = list(events.read(log))
    assert [event for event, _ in read] == [first, second]
    assert read[-1][1] == log.stat().st_size
    events.append(log, third)
    assert said(log, read[0][1]) == [second, third]
    assert said(log, read[-1][1]) == [third]


def test_an_unfinished_last_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    whole, late = Said("info", "ü" * 50), Said("info", "late")
    events.append(log, whole)
    line = events.to_json(late).encode() + b"\n"
    with log.open("ab") as file:
        file.write(line[:20])
    read = list(events.read(log))
    assert [event for event, _ in read] == [whole]
    with log.open("ab") as file:
        file.write(line[20:])
    assert said(log, read[-1][1]) == [late]


@pytest.mark.parametrize("left", [1, 30, -2])
def test_a_torn_line_costs_only_itself(tmp_path: Path, left: int) -> None:
    log = tmp_path / "events.jsonl"
    before, torn, after = (Said("warning", text) for text in ("before ü", "torn ü", "after ü"))
    events.append(log, before)
    with log.open("ab") as file:
        file.write(events.to_json(torn).encode()[:left])
    events.append(log, after)
    events.append(log, after)
    assert said(log) == [before, after, after]
    assert log.read_bytes().count(b"\n") == 4


def test_a_line_torn_inside_a_letter_costs_only_itself(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    line = events.to_json(Said("info", "ü")).encode()
    log.write_bytes(line[: line.index(b"\xc3") + 1])
    events.append(log, Said("info", "after"))
    assert [event.text for event in said(log)] == ["after"]  # type: ignore[attr-defined]
