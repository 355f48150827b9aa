"""MAVProxy, which others wrote: as a ground station of the simulated vehicle, and as the router before our handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mavlink.independent import SIM, free_port, needs_mavproxy, start_mavproxy
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mavlink.flight.commands import CommandTimes

from support.mavlink_rig import Rig, rig
from support.procs import Child, Children
from support.servers import RealServer

pytestmark = needs_mavproxy


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name, times=CommandTimes()) as one:  # heartbeats come once a second, as they do
        yield one


async def say(station: Child, text: str, answer: str) -> str:
    """Type a line at MAVProxy's prompt; the line that answers."""
    await station.write(text + "\n")
    return await station.line(answer, timeout=20)


async def test_a_ground_station_of_an_ardupilot_that_is_silent_at_first(children: Children, tmp_path: Path) -> None:
    """Parameters, arming, modes, takeoff, files and logs; telemetry comes because MAVProxy asks for it."""
    port = free_port()
    station = await start_mavproxy(children, tmp_path, port)
    await children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{port}", "--autopilot", "ardupilot", "--quiet")
    await station.line(r"Received \d+ parameters", timeout=20)
    await say(station, "param set RTL_ALT_M 17", "")
    await say(station, "param fetch RTL_ALT_M", r"RTL_ALT_M = 17\.0")
    await say(station, "mode GUIDED", "DO_SET_MODE: ACCEPTED")
    await say(station, "arm throttle", "COMPONENT_ARM_DISARM: ACCEPTED")
    await say(station, "takeoff 3", "NAV_TAKEOFF: ACCEPTED")
    await say(station, "ftp list /", "D APM")
    await say(station, "ftp crc /APM/LOGS/00000001.BIN", "crc: .* 0x")
    await say(station, "log list", "Log 3")
    await say(station, "long DO_SET_MODE 1 9", "DO_SET_MODE: ACCEPTED")
    await say(station, "long DO_SET_MODE 1 99", "DO_SET_MODE: FAILED")
    await say(station, "set streamrate 10", "")
    async with asyncio.timeout(20):
        while not any("ATTITUDE {" in line for line in station.output):
            await station.write("status ATTITUDE\n")
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("kind", ["px4", "ardupilot"])
async def test_our_handler_behind_it_as_a_router(vehicle: Rig, children: Children, tmp_path: Path, kind: str) -> None:
    """Commands, parameters, missions and files through it, while it asks the same vehicle itself: no answer is mixed.

    The vehicle is heard as the primary one, MAVProxy's own heartbeats are not.
    """
    port = free_port()
    station = await start_mavproxy(children, tmp_path, port, f"--out=udpout:127.0.0.1:{vehicle.address[1]}")
    sim = await children.module(
        *(SIM, "--endpoint", f"udpout:127.0.0.1:{port}", "--autopilot", kind, "--journal", "-"),
    )
    assert await vehicle.handler.vehicle.wait_connected(15.0)
    name = "MPC_XY_VEL_MAX" if kind == "px4" else "WP_SPD"
    async with Bus(vehicle.server.url, app="ground", bus=vehicle.bus_name) as bus:

        async def ask(what: str, data: dict[str, object]) -> dict[str, object]:
            told: dict[str, object] = (await bus.request("vehicle", what, data, timeout=20)).data
            return told

        async def theirs() -> None:
            for _ in range(10):
                await say(station, "long COMPONENT_ARM_DISARM 7", "COMPONENT_ARM_DISARM: DENIED")

        busy = asyncio.create_task(theirs(), name="mavproxy")
        rounds = 0
        async with asyncio.timeout(40):
            while not busy.done() or rounds < 5:
                rounds += 1
                assert (await ask("command", {"command": "arm"}))["status"] == "success"
                assert (await ask("command", {"command": "disarm"}))["status"] == "success"
                told = await ask("mavlink.param.set", {"params": [{"name": name, "value": 3.0 + rounds}]})
                assert (told["values"] == {}, told["refused"]) == (False, {}), told
                assert (await ask("mavlink.mission.download", {}))["items"] == []
            await busy
        status = (await bus.request("vehicle", "mavlink.status", {}, timeout=10)).data
        assert (status["vehicle"]["system"], status["stray_acks"]) == (1, 0)
    denied = [line for line in sim.output if '"MAV_RESULT_DENIED"' in line]
    assert len(denied) == 10
    assert all("[255, 230]" in line for line in denied), "theirs were denied, ours were not"
