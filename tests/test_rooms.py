"""The order of the rooms, held by walking all imports; and what every file owes its reader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import toolkit

PACKAGE = Path(toolkit.__file__).parent
# Each may import itself and what stands before it. options stands behind plan and the backbones' names: it says what
# a person can set in their words, and only planning, tasks and the command line read it.
ROOMS = [
    "errors",
    "allocator",
    "storage",
    "progress",
    "hardware",
    "scores",
    "data",
    "backbones",
    "features",
    "heads",
    "plan",
]
ROOMS += [
    "settings",
    "options",
    "training",
    "planning",
    "reference",
    "experiments",
    "baselines",
    "evaluation",
    "checks",
    "tuning",
    "artifacts",
    "reporting",
    "tasks",
    "help_text",
    "flags",
    "cli",
]
ROOMS += ["__init__", "__main__"]
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_BODY_LINES = 300, 60


def module_name(file: Path) -> str:
    """Return a.b for a/b.py and a/b/__init__.py, relative to the package."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the package's modules that a file imports, in functions too; those for type checkers alone are left out."""
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name.removeprefix("toolkit.") in MODULES else str(node.module) for name in named]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        for name in found:
            if name == "toolkit" or name.startswith("toolkit."):
                yield name.removeprefix("toolkit").removeprefix(".") or "__init__"


def test_every_room_has_its_place_in_the_order() -> None:
    assert sorted({name.split(".")[0] for name in MODULES}) == sorted(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_only_rooms_before_it(name: str) -> None:
    place = ROOMS.index(name.split(".")[0])
    for imported in imports(MODULES[name]):
        assert imported in MODULES, f"{name} imports {imported}, which is no module"
        assert ROOMS.index(imported.split(".")[0]) <= place, f"{name} imports {imported}"


def test_no_import_goes_in_a_circle() -> None:
    graph = {name: set(imports(tree)) - {name} for name, tree in MODULES.items()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in finished:
            for imported in graph[name]:
                visit(imported, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_the_walk_sees_imports_of_every_kind() -> None:
    text = (
        "from typing import TYPE_CHECKING\n"
        "import toolkit.plan\n"
        "if TYPE_CHECKING:\n    import toolkit.cli\n"
        "def f():\n    from toolkit.backbones import names\n    from toolkit.errors import DataError\n"
    )
    assert sorted(imports(ast.parse(text))) == ["backbones.names", "errors", "plan"]


def test_every_folder_is_a_package_that_says_what_it_is() -> None:
    for folder in {file.parent for file in FILES}:
        tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), folder


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_are_short_and_everything_public_is_described(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    tree = ast.parse(text)
    if file.name != "__main__.py" or tree.body:
        assert ast.get_docstring(tree), "the file"
    for node in public(tree):
        assert ast.get_docstring(node), f"{node.name} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0
            assert lines <= MAX_BODY_LINES, f"{node.name} has {lines} lines"


def public(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield public functions and classes, and the public methods of those classes (a Protocol's excepted)."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef) and "Protocol" not in [ast.unparse(base) for base in node.bases]:
                yield from public(node)


def test_public_names_are_found_where_the_package_says() -> None:
    for name in toolkit.__all__:
        assert getattr(toolkit, name).__module__ == f"toolkit.{toolkit._HOMES[name]}"
    assert sorted(toolkit.__all__) == sorted(toolkit._HOMES) == sorted(dir(toolkit))
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = toolkit.nothing
