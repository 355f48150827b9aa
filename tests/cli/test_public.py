"""`import petalbus`: the public names, quick to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import petalbus
from petalbus.daemon.bus.client import Bus

from support.procs import child_environment


def python(code: str) -> str:
    """Run a program text; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment(), check=True, timeout=20
    )
    return done.stdout.strip()


def test_importing_petalbus_loads_nothing_but_itself() -> None:
    code = "import sys; before = set(sys.modules); import petalbus; print(sorted(set(sys.modules) - before))"
    loaded = python(code)
    for name in ("asyncio", "pydantic", "redis", "hiredis", "orjson", "typer", "uvloop", "petalbus.daemon"):
        assert f"'{name}'" not in loaded


def test_every_public_name_is_there_and_listed() -> None:
    assert set(petalbus.__all__) <= set(dir(petalbus))
    for name in petalbus.__all__:
        assert getattr(petalbus, name) is not None, name
    assert petalbus.Bus is Bus
    with pytest.raises(AttributeError, match="nothing_like_this"):
        petalbus.nothing_like_this  # noqa: B018  # the access is the test


def test_what_is_lazy_at_run_time_is_what_a_type_checker_sees() -> None:
    """The two lists in the module must name the same."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(petalbus.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.name, node.module)
        for node in checked.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("petalbus.")
        for alias in node.names
    }
    assert seen == set(petalbus._HOMES.items())


def test_run_uses_uvloop_and_returns_the_result() -> None:
    code = (
        "import asyncio, petalbus\n"
        "async def main(): return type(asyncio.get_running_loop()).__module__\n"
        "print(petalbus.run(main()))"
    )
    assert python(code).startswith("uvloop")


def test_run_works_without_uvloop() -> None:
    code = (
        "import sys; sys.modules['uvloop'] = None\n"
        "import asyncio, petalbus\n"
        "async def main(): return type(asyncio.get_running_loop()).__module__\n"
        "print(petalbus.run(main()))"
    )
    assert python(code).startswith("asyncio")
