"""``/mavftp``: the vehicle's folders over HTTP, on a real bus, with the MAVLink handler and a vehicle over UDP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from cli.conftest import Buses
from mavlink.ground import Flying, stop
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.http.app import HttpApp
from petalbus.daemon.http.mavftp import mavftp_router
from petalbus.handlers.mavlink.files.ftp_wire import FtpNak, Opcode
from petalbus.handlers.mavlink.sim.ftp_folders import Nak
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle

from .conftest import Serve, Site
from support.mavlink_rig import Rig, rig
from support.servers import RealServer

CARD = "/fs/microsd"
LOGS = ("fail_2026.log", "fail_a b.log", "fail_x.log")


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


@pytest.fixture
async def site(vehicle: Rig, serve: Serve) -> AsyncIterator[Site]:
    async with Bus(vehicle.server.url, app="petalbus", bus=vehicle.bus_name) as bus:
        yield await serve(build=lambda app: app.include(lambda: mavftp_router(lambda: bus)))


@pytest.fixture
async def flying(vehicle: Rig) -> AsyncIterator[Flying]:
    """A PX4 with failure logs on its card."""
    async with AsyncExitStack() as stack:
        sim = SimVehicle(SimOptions(f"udpout:127.0.0.1:{vehicle.address[1]}"))
        await stack.enter_async_context(sim)
        task = asyncio.create_task(sim.fly(), name="test.sim")
        stack.push_async_callback(stop, task)
        assert await vehicle.handler.vehicle.wait_connected(15.0)
        one = Flying(sim, task)
        for name in (*LOGS, "fail_x.txt", "log_1.log"):
            one.put(f"{CARD}/{name}", b"12345")
        yield one


async def posted(site: Site, path: str, **body: Any) -> dict[str, Any]:
    answer = await site.post(f"/mavftp/{path}", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_folders_are_listed_and_failure_logs_removed(site: Site, flying: Flying) -> None:
    """Compatibility (D.10): the members that existing programs read, with and without the first slash."""
    told = await posted(site, "list-directory")
    assert told["success"] is True
    contents = told["directory_contents"]
    assert ["fail_x.log", 5, False] in contents
    assert ["log", 0, True] in contents
    assert (await posted(site, "list-directory", remote_path="fs/microsd", system=1))["directory_contents"] == contents
    cleared = await posted(site, "clear-error-logs", remote_path="/fs/microsd")
    assert (cleared["success"], cleared["remote_path"]) == (True, "/fs/microsd")
    assert [cleared[name] for name in ("total", "deleted", "failed")] == [3, 3, 0]
    left = [name for name, _, _ in (await posted(site, "list-directory"))["directory_contents"]]
    assert not set(LOGS) & set(left)
    assert {"fail_x.txt", "log_1.log"} <= set(left)
    assert (await posted(site, "clear-error-logs"))["total"] == 0


async def test_what_the_vehicle_protects_is_told(site: Site, flying: Flying) -> None:
    """The shell is tried for names that may stand in its line; what stays there is named, and nothing is said to be
    removed that is not.
    """
    folders = flying.server._folders
    obey = folders.obey

    def protect(opcode: Opcode, request: Any) -> bytes:
        if opcode is Opcode.REMOVE_FILE:
            raise Nak(FtpNak.FILE_PROTECTED)
        return obey(opcode, request)

    folders.obey = protect  # type: ignore[method-assign]  # a logger holds them open
    told = await posted(site, "clear-error-logs")
    there = [name for name in LOGS if f"{CARD}/{name}" in flying.files]
    assert "fail_a b.log" in there
    assert (told["success"], told["total"], told["failed"]) == (False, 3, len(there))
    assert all(name in told["error"] for name in there)


async def test_what_cannot_be_is_refused_with_its_reason(site: Site, vehicle: Rig) -> None:
    for path in ("list-directory", "clear-error-logs"):
        told = await posted(site, path, system=9)
        assert told["success"] is False
        assert "vehicle 9 is not heard" in told["error"]
        assert told["message"]
        assert (await site.post(f"/mavftp/{path}", json={"remote_path": ""})).status_code == 422
        assert (await site.post(f"/mavftp/{path}", json={"system": 256})).status_code == 422


async def test_without_a_bus_it_is_not_available(serve: Serve) -> None:
    def build(app: HttpApp) -> None:
        app.include(lambda: mavftp_router(lambda: None))

    answer = await (await serve(build=build)).post("/mavftp/list-directory", json={})
    assert (answer.status_code, answer.json()["error"]) == (503, "bus_unavailable")


def test_the_daemon_serves_it() -> None:
    """With a simulated vehicle, over the whole way."""
    buses = Buses()
    try:
        url = buses.up("--sim", "--set", "http_port=0").ready()["http"]
        told = httpx.post(f"{url}/mavftp/list-directory", json={}, trust_env=False, timeout=30).json()
        assert ["log", 0, True] in told["directory_contents"]
    finally:
        buses.close()
