"""The house keeps its order: modules import only from lines above their own, and are read in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "sdtrainer"

ORDER = (
    "launcher",  # the standard library alone: it runs before anything is installed
    "__init__",
    "section",
    "files seeds events hardware child pace",
    "hub",
    "starter",  # makes the starter model: knows no more of the app than this
    "diffusion",
    "flow",
    "seams",
    "anatomy",
    "formats optim",
    "recognition",
    "data families methods",  # these do not know each other
    "run_sections",
    "config",
    "frozen",
    "workspace",
    "recaption",
    "savings",
    "presets plan trackers",
    "decisions",
    "advice",
    "activations axes",
    "planner memory",
    "storage",
    "fitting",
    "drawing classics",
    "samplers",
    "sample probe",
    "verdict",
    "training",
    "result",
    "trace",
    "captioners doctor",
    "job console chores",
    "toolbox masking exchange classes",
    "compare bench",
    "__main__",
    "ui",
    "verbs",
)
"""Every module and folder of the package, top to bottom; those on one line do not know each other."""

MAX_LINES = 400
LONGER = {"launcher.py": 520}
"""The launcher cannot be divided: it is one file that an old Python is handed on its own."""


@dataclass(frozen=True)
class Import:
    """`unit` is a module or folder at the top of the package."""

    importer: str
    unit: str
    line: int


def files() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 60, "the package was not found"
    return found


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[Import]:
    """Yield what a file imports from the package, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in _names(node, path):
            unit = name.split(".")[1] if "." in name else "__init__"
            if not (PACKAGE / unit).is_dir() and not (PACKAGE / f"{unit}.py").is_file():
                unit = "__init__"  # a name such as __version__
            yield Import(unit_of(path), unit, node.lineno)  # type: ignore[attr-defined]


def _names(node: ast.AST, path: Path) -> list[str]:
    """The dotted names inside the package that a statement imports."""
    if isinstance(node, ast.Import):
        found = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        package = ["sdtrainer", *path.relative_to(PACKAGE).parts[:-1]]
        start = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*start, *(node.module or "").split(".")]).rstrip(".")
        found = [f"{module}.{alias.name}" for alias in node.names]
    else:
        found = []
    return [name for name in found if name.split(".")[0] == "sdtrainer"]


def place(unit: str) -> int:
    return next(number for number, line in enumerate(ORDER) if unit in line.split())


def test_the_order_names_every_module_and_nothing_else() -> None:
    named = [unit for line in ORDER for unit in line.split()]
    assert sorted(named) == sorted({unit_of(path) for path in files()})


def test_modules_import_only_from_lines_above_their_own() -> None:
    seen, wrong = 0, []
    for path in files():
        for found in imports(path):
            seen += 1
            if found.importer != found.unit and place(found.unit) >= place(found.importer):
                wrong.append(f"{path.relative_to(PROJECT)}:{found.line} imports {found.unit}")
    assert seen > 300, "the imports were not found"
    assert not wrong, "\n".join(wrong)


def test_the_launcher_imports_the_standard_library_alone() -> None:
    import sys

    tree = ast.parse((PACKAGE / "launcher.py").read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names and {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_gradio_is_known_to_the_page_alone() -> None:
    knowing = set()
    for path in [*files(), PROJECT / "app.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] == "gradio" for name in names):
                knowing.add(path)
    assert knowing
    assert all(path.name == "app.py" or path.is_relative_to(PACKAGE / "ui") for path in knowing)


@pytest.mark.parametrize("path", [*files(), PROJECT / "app.py"], ids=lambda p: str(p.relative_to(PROJECT)))
def test_a_file_is_one_idea_told_at_its_top(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring says what this file is for"
    assert text.count("\n") <= LONGER.get(path.name, MAX_LINES)
