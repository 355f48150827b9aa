#!/usr/bin/env python3
"""Write docs/acceptance.md: each requirement, and the tests that name it.

    python3 scripts/acceptance.py            write the page
    python3 scripts/acceptance.py --check    only say whether it is current (exit code 1 when not)

A test names a requirement by its id (``I2``, ``S-133``) in its name or in the docstring of the test, its class or its
module. Nothing is imported: the tests are read as text, so that the page does not depend on what is installed.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "acceptance.md"
IDS = re.compile(r"(?<![\w-])(S-\d{3}|I(?:10|[1-9]))(?![\w-])")
CONTRACT = {
    "I1": "A publish that returned is never lost.",
    "I2": "One effect per message id; a duplicate publish returns the first one's stream id.",
    "I3": "Order is kept per source, recipient and priority, and per ordering key where one is given.",
    "I4": "A CRITICAL command starts within one running handler + 5 ms; LOW never starves.",
    "I5": "Memory stays under its ceiling; what is shed is declared and reported; commands are refused last, loudly.",
    "I6": "A dead consumer's work is taken over within 2 s; a live one's never.",
    "I7": "The bus boots after any damage to its append-only file and says what was lost.",
    "I8": "A poison record is dead-lettered once, with its reason, and blocks nobody.",
    "I9": "A wall-clock step of +-10 years changes none of I1-I8.",
    "I10": "A graceful stop leaves nothing delivered but unseen.",
}
HEAD = """# Acceptance

What must hold, and the tests that show it. This page is written by `scripts/acceptance.py` from the names and
docstrings of the tests; a test checks that it is current. `I1` to `I10` are the [delivery contract](delivery.md);
`S-...` are the requirements of the specification that this version covers. A test that a line names passes against real
servers and real processes.
"""


class Test(NamedTuple):
    """One test: its file below the root, its name, its sentence, and the requirements that it names."""

    file: str
    name: str
    sentence: str
    ids: frozenset[str]


def found_tests(root: Path) -> Iterator[Test]:
    """Every test function below ``tests/`` that names a requirement."""
    for path in sorted((root / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        shared = ids_in(ast.get_docstring(tree) or "")
        yield from _tests_of(tree, path.relative_to(root).as_posix(), shared)


def _tests_of(parent: ast.Module | ast.ClassDef, file: str, shared: frozenset[str]) -> Iterator[Test]:
    for node in parent.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            text = ast.get_docstring(node) or ""
            inside = shared | ids_in(text)
            methods = list(_tests_of(node, file, inside))
            # a state machine's test class has no test method of its own to name
            yield from methods or ([Test(file, node.name, sentence(text), inside)] if inside else [])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            text = ast.get_docstring(node) or ""
            ids = shared | ids_in(text) | ids_in(node.name.replace("_", " "))
            if ids:
                yield Test(file, node.name, sentence(text), ids)


def ids_in(text: str) -> frozenset[str]:
    """The requirement ids in a text; ``I1-I8`` names all between."""
    ids = set(IDS.findall(text))
    for first, last in re.findall(r"\bI(\d+)-I(\d+)\b", text):
        ids |= {f"I{number}" for number in range(int(first), int(last) + 1)}
    return frozenset(ids)


def sentence(docstring: str) -> str:
    """The first paragraph in one line, without the ids that it begins with."""
    text = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    return re.sub(r"^(?:(?:S-\d{3}|I\d+)(?:, |: | and ))+", "", text)


def page(tests: list[Test]) -> str:
    """The whole page."""
    parts = [HEAD, "## The delivery contract\n"]
    for number, promise in CONTRACT.items():
        parts += [f"### {number}\n", f"{promise}\n", *_lines(number, tests), ""]
    named = sorted({one for test in tests for one in test.ids if one.startswith("S-")})
    parts += ["## The specification\n", "| id | shown by |", "|---|---|"]
    for number in named:
        shown = "<br>".join(f"`{test.file}::{test.name}`" for test in tests if number in test.ids)
        parts.append(f"| {number} | {shown} |")
    return "\n".join(parts) + "\n"


def _lines(number: str, tests: list[Test]) -> list[str]:
    lines = []
    for test in tests:
        if number in test.ids:
            told = f": {test.sentence}" if test.sentence else ""
            lines.append(f"- `{test.file}::{test.name}`{told}")
    return lines or ["No test yet."]


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description="Write docs/acceptance.md from the tests' names and docstrings.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    check = parser.parse_args().check
    text = page(list(found_tests(ROOT)))
    current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if check:
        if text != current:
            print(f"{PAGE.relative_to(ROOT)} is not current: run python3 scripts/acceptance.py")
        return int(text != current)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
