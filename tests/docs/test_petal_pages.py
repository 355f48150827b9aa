"""The pages about petals: their examples run as they stand there, and their tables are what the code has."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from petalbus.petals import Petal, on
from petalbus.testing import Faults, PetalHarness

from .pages import DOCS, examples, prose, table
from support.procs import child_environment

WRITING = DOCS / "writing-a-petal.md"
TESTING = DOCS / "testing-petals.md"


def defined_in(code: str) -> dict[str, Any]:
    """What an example defines."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, str(WRITING), "exec"), names)
    return names


def petals_of(code: str) -> list[type[Petal]]:
    return [one for one in defined_in(code).values() if inspect.isclass(one) and issubclass(one, Petal) and one.name]


async def test_the_petals_of_the_tutorial_work() -> None:
    first, second = (petals_of(example.code)[0] for example in examples(WRITING, "python"))
    async with PetalHarness(first) as h:
        reply = await h.request("battery-watch.limit", {"percent": 30})
        assert reply.data == {"limit": 30}
        await h.expect(type="battery-watch.changed", where={"limit": 30})
        assert (await h.http.get("/limit")).json() == {"limit": 30}
    async with PetalHarness(second) as h:
        heard: list[str] = h.petal.alerts  # type: ignore[attr-defined]  # the example's own
        for _ in range(500):  # its subscription begins a little after its start
            await h.publish("alerts", "alert", {"severity": "info", "message": "hello"})
            if heard:
                break
        assert set(heard) == {"hello"}


def test_the_tests_of_the_page_about_testing_pass(tmp_path: Path) -> None:
    """As a file of tests, under pytest, with the fixtures loaded as an installed package loads them."""
    (example,) = examples(TESTING, "python")
    (tmp_path / "test_camera.py").write_text(example.code)
    options = ["-q", "-W", "error", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "petalbus.petals.testing.plugin", *options],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_options_of_on_are_documented() -> None:
    written = {row[0].strip("`") for row in table(WRITING, "option")}
    assert written | {"type"} == set(inspect.signature(on).parameters)


def test_every_fault_is_documented() -> None:
    written = {row[0].strip("`").partition("=")[0] for row in table(TESTING, "fault")}
    assert written | {"seed"} == set(inspect.signature(Faults).parameters)


@pytest.mark.parametrize("member", [name for name in vars(PetalHarness.__mro__[1]) if not name.startswith("_")])
def test_every_call_of_the_harness_is_on_the_page(member: str) -> None:
    assert re.search(rf"`(await )?h\.{member}\b|`{member}`", TESTING.read_text()), f"{member} is not mentioned"


def test_the_arguments_of_the_harness_are_documented() -> None:
    named = set(inspect.signature(PetalHarness).parameters) - {"petal"}
    assert named - set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose(TESTING))))) == set()
