"""The examples of the documents: those on the page about the client run as they stand there, on a real bus."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

import petalbus
from cli.conftest import Daemon

from .pages import DOCS, PAGES, Example, examples
from support.procs import child_environment

CLIENT = DOCS / "client.md"
PYTHON = [example for page in PAGES for example in examples(page, "python")]
JSON = [example for page in PAGES for example in examples(page, "json")]
PROGRAMS = [example for example in examples(CLIENT, "python") if "petalbus.run(" in example.code]
BODIES = [example for example in examples(CLIENT, "python") if example not in PROGRAMS]
SECONDS = 20.0


def test_the_page_about_the_client_has_examples() -> None:
    assert len(PROGRAMS) >= 1
    assert len(BODIES) >= 10


@pytest.mark.parametrize("example", PROGRAMS, ids=lambda example: example.label)
def test_programs_run_as_they_stand(example: Example, running_bus: Daemon) -> None:
    """Whole programs run in a process of their own, find the bus by themselves, and end without a complaint."""
    done = subprocess.run(
        [sys.executable, "-c", example.code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=child_environment({"XDG_STATE_HOME": str(running_bus.data.parent)}),
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("example", BODIES, ids=lambda example: example.label)
async def test_examples_run_as_they_stand(example: Example, running_bus: Daemon) -> None:
    """The others run inside of ``async with petalbus.connect(app="gcs") as bus``, as the page says."""
    code = compile("\n" * (example.line - 1) + example.code, str(CLIENT), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with asyncio.timeout(SECONDS), petalbus.connect(app="gcs") as bus:
        names: dict[str, Any] = {"petalbus": petalbus, "bus": bus}
        ended = eval(code, names)
        if inspect.iscoroutine(ended):
            await ended
        assert bus.statistics()["in_flight"] == 0


@pytest.mark.parametrize("example", PYTHON, ids=lambda example: example.label)
def test_python_of_every_page_compiles_and_imports_what_exists(example: Example) -> None:
    tree = ast.parse(example.code)
    compile(tree, example.label, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{example.label}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                import_module(alias.name)


@pytest.mark.parametrize("example", JSON, ids=lambda example: example.label)
def test_json_of_every_page_is_json(example: Example) -> None:
    json.loads(example.code)
