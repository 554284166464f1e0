"""The README tells the truth where a test can know it: the map, the example, the commands and the links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdtrainer.__main__ import VERBS
from sdtrainer.config import build, parse
from sdtrainer.workspace import PROJECT

TEXT = (PROJECT / "README.md").read_text(encoding="utf-8")
MAP = re.search(r"```\nsdtrainer/\n(.*?)```", TEXT, re.S)
PACKAGE = PROJECT / "sdtrainer"


def on_the_map() -> set[str]:
    """The modules that the map names, by path inside the package."""
    assert MAP
    folder, found = "", set()
    for line in MAP[1].splitlines():
        if re.match(r"  \S", line):
            opened = re.match(r"  (\w+/) ", line)
            folder = opened[1] if opened else ""
        found |= {folder + name for name in re.findall(r"[\w/]+\.py\b", line)}
    return found


def test_the_map_names_every_module_and_nothing_else() -> None:
    modules = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"
    }
    assert len(modules) > 60
    assert on_the_map() == modules


def test_the_map_is_in_the_order_of_the_imports() -> None:
    from test_architecture import place

    assert MAP
    units = re.findall(r"^  (\w+)(?:/|\.py) ", MAP[1], re.M)
    assert len(units) > 20
    assert [place(unit) for unit in units] == sorted(place(unit) for unit in units)


def test_the_run_file_of_the_example_is_valid() -> None:
    example = re.search(r"```toml\n(.*?)```", TEXT, re.S)
    assert example
    config = build(parse(example[1], "README.md"))
    assert (config.run.name, config.train.steps) == ("my-cat", "10 epochs")


def test_the_commands_exist() -> None:
    verbs = set(re.findall(r"\./launch\.sh ([a-z]+)", TEXT))
    assert verbs - {"test"} == set(VERBS) - {"worker", "chore", "starter"}
    assert "```sh\n./launch.sh " in TEXT and "./launch.sh test" in TEXT.split("## The tabs")[0]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT)) - {"docs/screenshot.png"}))
def test_links_lead_somewhere(link: str) -> None:
    assert (PROJECT / Path(link)).exists()
