"""The order of the house: which way imports run, how long a file and a function may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.procs import ROOT

ROOMS = ("daemon", "handlers", "petals", "schemas", "src")
LINES_A_FILE = 400
LINES_A_FUNCTION = 50

FILES = sorted(
    path.relative_to(ROOT)
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents if parent != ROOT)
)


def level(module: str) -> int:
    """Where a module of ours stands: it may import what stands below it, or beside it in its own room."""
    for prefix, height in (
        ("petalbus.schemas", 0),
        ("petalbus._version", 0),
        ("petalbus.daemon.paths", 1),
        ("petalbus.daemon.server", 1),
        ("petalbus.daemon.bus", 2),
        ("petalbus.daemon.connect", 2),
        ("petalbus.handlers", 3),
        ("petalbus.petals", 4),
        ("petal_app_manager", 6),
    ):
        if module == prefix or module.startswith(f"{prefix}."):
            return height
    return 5


def module_name(file: Path) -> str:
    parts = list(file.with_suffix("").parts)
    parts = parts[1:] if parts[0] == "src" else ["petalbus", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import by the full name"
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_run_one_way(file: Path) -> None:
    """schemas <- bus core <- handlers <- petals <- daemon; a handler knows no other; nothing needs the old paths."""
    me = module_name(file)
    for line, name in imports(file):
        if name.split(".")[0] not in ("petalbus", "petal_app_manager", *ROOMS):
            continue
        where = f"{file}:{line} imports {name}"
        assert name.split(".")[0] not in ROOMS, f"{where}: it is petalbus.{name}"
        if me != "petalbus":  # the public names come from everywhere
            assert level(name) <= level(me), where
        if me.startswith("petalbus.handlers.") and name.startswith("petalbus.handlers."):
            assert me.split(".")[2] == name.split(".")[2], f"{where}: a handler never imports another"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_files_and_functions_are_short(file: Path) -> None:
    """So that one is read in one go."""
    text = (ROOT / file).read_text()
    assert text.count("\n") <= LINES_A_FILE, f"{file} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LINES_A_FUNCTION, f"{file}:{node.lineno} {node.name} has {length} lines"


def test_the_rooms_are_linked_into_the_import_package() -> None:
    """Relative links, so that a clone works wherever it lies."""
    for room in ("daemon", "handlers", "petals", "schemas"):
        link = ROOT / "src" / "petalbus" / room
        assert link.is_symlink()
        assert link.readlink() == Path("..", "..", room)


def test_every_lint_exception_has_its_reason() -> None:
    """In the configuration, and beside each `noqa` and `type: ignore` in the code."""
    ignored = re.compile(r'^    "[A-Z]+\d*",', re.MULTILINE)
    text = (ROOT / "pyproject.toml").read_text().partition("\nignore = [")[2].partition("[tool.mypy]")[0]
    entries = [line for line in text.splitlines() if ignored.match(line)]
    assert len(entries) > 5
    assert [line for line in entries if "#" not in line] == []
    exception = re.compile(r"#\s*(noqa\b|type:\s*ignore\b)")
    with_reason = re.compile(r"#\s*(noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*|type: ignore\[[a-z, -]+\])\s+(#|-)\s*\S")
    found = [
        f"{file}:{number}"
        for file in FILES
        for number, line in enumerate((ROOT / file).read_text().splitlines(), 1)
        if exception.search(line) and not with_reason.search(line)
    ]
    assert found == []
