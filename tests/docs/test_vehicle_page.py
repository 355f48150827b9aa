"""The page about the vehicle proxy: its examples run as they stand there, its tables are what the code has."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cli.conftest import Daemon
from petalbus.handlers.mavlink.requests.files import FileRequests
from petalbus.handlers.mavlink.requests.looking import Looking
from petalbus.handlers.mavlink.requests.missions import MissionRequests
from petalbus.handlers.mavlink.requests.vehicle import Requests
from petalbus.petals.base import Petal
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy

from .pages import DOCS, Example, examples, table

PAGE = DOCS / "vehicle-proxy.md"
PETALS = [example for example in examples(PAGE, "python") if "class " in example.code]
SECONDS = 20.0


@pytest.fixture
async def mavlink(running_bus: Daemon) -> AsyncIterator[MavLinkExternalProxy]:
    proxy = MavLinkExternalProxy()
    await proxy.start()
    try:
        assert await proxy.wait_until_ready(10.0), proxy.reason
        yield proxy
    finally:
        await proxy.stop()


async def test_the_examples_run_as_they_stand(mavlink: MavLinkExternalProxy) -> None:
    names: dict[str, Any] = {"mavlink": mavlink}
    bodies = [example for example in examples(PAGE, "python") if example not in PETALS]
    assert len(bodies) >= 5
    for example in bodies:  # one after the other: later ones use what earlier ones defined
        await asyncio.wait_for(run(example, names), SECONDS)
    assert names["answer"].status_code.value == "FAIL_ACK_DENIED", "PX4's simulation does not reboot"


async def run(example: Example, names: dict[str, Any]) -> None:
    code = compile("\n" * (example.line - 1) + example.code, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    ended = eval(code, names)
    if inspect.iscoroutine(ended):
        await ended


async def test_the_petal_hears_its_messages(mavlink: MavLinkExternalProxy) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    exec(PETALS[0].code, names)
    petal: Petal = names["Watcher"]()
    petal.inject_proxies({"ext_mavlink": mavlink})
    await petal.async_startup()
    async with asyncio.timeout(SECONDS):
        while mavlink.statistics()["handlers"][0]["delivered"] < 3:
            await asyncio.sleep(0.02)


def test_every_argument_of_the_bulk_calls_is_on_the_page() -> None:
    written = set(re.findall(r"^\| `(\w+)` \| [\dT][^|]* \|", PAGE.read_text(), re.MULTILINE))
    for call in (MavLinkExternalProxy.get_params_bulk_lossy, MavLinkExternalProxy.set_params_bulk_lossy):
        wanted = set(inspect.signature(call).parameters) - {"self", "names", "params_to_set"}
        assert wanted <= written, wanted - written


@pytest.mark.parametrize("name", [name for name in dir(MavLinkExternalProxy) if name.startswith("build_")])
def test_every_helper_is_on_the_page(name: str) -> None:
    assert f"`{name}" in PAGE.read_text()


def test_every_record_type_is_on_the_page() -> None:
    registered: list[str] = []

    class Bus:
        def on(self, record_type: str, **_options: Any) -> Any:
            registered.append(record_type)
            return lambda function: function

    for kind in (Requests, Looking, FileRequests, MissionRequests):
        requests = kind.__new__(kind)
        requests.register(Bus())  # type: ignore[arg-type]  # it only registers
    written = []
    for row in table(PAGE, "type"):
        first, *others = [name.strip(" `") for name in row[0].split(",")]
        written += [first, *(f"{first.rpartition('.')[0]}{name}" for name in others)]
    assert sorted(registered) == sorted(written)
