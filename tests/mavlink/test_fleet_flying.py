"""Several simulated vehicles, of both kinds, on one endpoint and on two: all of them are flown and asked at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

import petalbus
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mavlink import MavlinkHandler
from petalbus.handlers.mavlink.options import MavlinkOptions
from petalbus.handlers.mavlink.params.values import ParamEncoding, ParamType, decode_value
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle

from support.servers import RealServer

KINDS = {11: PX4, 12: ARDUPILOT, 13: PX4}


def waypoints(number: int) -> list[dict[str, Any]]:
    """A mission of so many items, each at a height of its own."""
    places = ({"x": 473977000 + 10 * seq, "y": 85455000, "z": 10.0 + seq} for seq in range(number))
    return [{"seq": seq, "frame": 6, "command": 16, **place} for seq, place in enumerate(places)]


class Skies:
    """A handler, its vehicles by system id, and who gives orders."""

    def __init__(self, handler: MavlinkHandler, gcs: Bus) -> None:
        self.handler = handler
        self.gcs = gcs
        self.sims: dict[int, SimVehicle] = {}

    async def ask(self, kind: str, data: dict[str, Any], *, timeout: float = 20.0) -> dict[str, Any]:
        told: dict[str, Any] = (await self.gcs.request("vehicle", kind, data, timeout=timeout)).data
        return told

    async def all(self, kind: str, data: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """The same to each vehicle at once, from one sender."""
        told = await asyncio.gather(*(self.ask(kind, {**data, "system": system}) for system in self.sims))
        assert [one["system"] for one in told] == list(self.sims)
        return {one["system"]: one for one in told}


@pytest.fixture(params=[1, 2], ids=["one-endpoint", "two-endpoints"])
async def skies(
    request: pytest.FixtureRequest, server: RealServer, bus_name: str, tmp_path: Any
) -> AsyncIterator[Skies]:
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(petalbus.connect(server.url, app="vehicle", bus=bus_name))
        gcs = await stack.enter_async_context(Bus(server.url, app="gcs", bus=bus_name))
        made = MavlinkHandler(
            bus,
            endpoint=",".join(f"udpin:127.0.0.{number}:0" for number in range(1, request.param + 1)),
            options=MavlinkOptions(transfers=tmp_path / "transfers"),
        )
        handler = await stack.enter_async_context(made)
        transport: Any = handler.link.transport
        wires = getattr(transport, "transports", (transport,))
        one = Skies(handler, gcs)
        for number, (system, autopilot) in enumerate(KINDS.items()):
            host, port = wires[number % len(wires)].local[:2]
            options = SimOptions(f"udpout:{host}:{port}", autopilot, system=system, seed=system, more_params=system)
            sim = one.sims[system] = await stack.enter_async_context(SimVehicle(options))
            flying = asyncio.create_task(sim.fly(), name=f"sim.{system}")
            stack.callback(flying.cancel)
            await handler.fleet.wait_heard(system, 15.0)
        yield one


async def test_all_are_flown_at_once(skies: Skies) -> None:
    """One sender orders all to take off, then one to land: the others stay up, and who is armed is known of each."""
    told = await skies.all("command", {"command": "takeoff", "altitude": 3})
    assert {one["status"] for one in told.values()} == {"success"}
    async with asyncio.timeout(30):
        while not all(sim.flight.airframe.height > 2.5 for sim in skies.sims.values()):
            await asyncio.sleep(0.05)
    landing = await skies.ask("command", {"command": "land", "system": 12})
    assert landing["system"] == 12
    async with asyncio.timeout(30):
        while skies.sims[12].flight.airframe.in_air:
            await asyncio.sleep(0.05)
    assert all(skies.sims[system].flight.airframe.height > 2.5 for system in (11, 13))
    status = await skies.ask("mavlink.status", {})
    assert (status["vehicle"]["system"], status["system"]) == (11, 11)
    assert [one["system"] for one in status["vehicles"]] == list(KINDS)
    assert [one["armed"] for one in status["vehicles"]][::2] == [True, True]
    assert [one["messages"]["GLOBAL_POSITION_INT"]["relative_alt"] > 2000 for one in status["vehicles"]] == [
        True,
        False,
        True,
    ]
    other = await skies.ask("mavlink.status", {"system": 12})
    assert (other["vehicle"]["system"], other["vehicle"]["autopilot"]) == (12, "MAV_AUTOPILOT_ARDUPILOTMEGA")


async def test_parameters_of_each_come_in_its_own_encoding(skies: Skies) -> None:
    """Setting one on one vehicle leaves the others alone; a list that is known of one is not told of another."""
    lists = await skies.all("mavlink.param.list", {"timeout": 15.0})
    assert {system: one["encoding"] for system, one in lists.items()} == {11: "bytewise", 12: "c_cast", 13: "bytewise"}
    for system, one in lists.items():
        assert len(one["values"]) == len(skies.sims[system].params.store)
        assert not one["refused"]
    name = "COM_DISARM_LAND"
    setting = {"params": [{"name": name, "value": 7.5}], "system": 13}
    assert (await skies.ask("mavlink.param.set", setting))["system"] == 13
    values = {}
    for system in (11, 13):
        told = await skies.ask("mavlink.param.get", {"names": [name], "system": system})
        values[system] = decode_value(bytes.fromhex(told["values"][name][0]), ParamType.REAL32, ParamEncoding.BYTEWISE)
    assert values[13] == 7.5
    assert values[11] != 7.5


async def test_missions_go_up_to_all_at_once(skies: Skies) -> None:
    lengths = dict(zip(KINDS, (30, 20, 10), strict=True))
    told = await asyncio.gather(
        *(
            skies.ask("mavlink.mission.upload", {"items": waypoints(length), "system": system, "home_is_first": True})
            for system, length in lengths.items()
        )
    )
    assert [(one["system"], one["items"]) for one in told] == list(lengths.items())
    counts = await skies.all("mavlink.mission.count", {})
    assert {system: one["count"] for system, one in counts.items()} == lengths
    back = await skies.ask("mavlink.mission.download", {"system": 13})
    assert [one["z"] for one in back["items"]] == [one["z"] for one in waypoints(10)]


async def test_files_logs_and_the_shell_are_each_vehicles_own(skies: Skies) -> None:
    logs = await skies.all("mavlink.log.list", {})
    assert all(one["logs"] for one in logs.values())
    number = logs[12]["logs"][0]["id"]
    fetched = await asyncio.gather(
        *(skies.ask("mavlink.log.get", {"id": logs[n]["logs"][0]["id"], "size": 2000, "system": n}) for n in KINDS)
    )
    assert len({one["file"] for one in fetched}) == 3, "logs with one number from two vehicles are two files"
    assert fetched[1]["id"] == number
    listed = await skies.all("mavlink.ftp.list", {"path": "/"})
    assert listed[11]["entries"] == listed[13]["entries"]
    assert (await skies.ask("mavlink.shell", {"command": "ver all", "system": 13}))["output"]
