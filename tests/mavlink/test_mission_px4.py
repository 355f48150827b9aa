"""What PX4 does with a mission after it took it, and while others talk to it: what is true is told, or asked for."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.ground import BOTH, stop, until
from mavlink.peer import PX4 as PX4_NUMBER
from mavlink.peer import Peer
from mavlink.some_missions import mission, onboard, places
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.mavlink.missions.client import MissionTimeout
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect

from support.mavlink_rig import rig
from support.servers import RealServer

PACKER = Packer(load_dialect(), system=1, component=1)


async def test_a_list_that_another_station_replaces_by_one_of_the_same_length(open_ground: Callable[..., Any]) -> None:
    """Without a word to us: the vehicle goes on with the items of the new one. It is fetched anew."""
    ground, sim = await open_ground(PX4)
    old = mission(6)
    new = [replace(item, x=item.x + 7000) for item in old]
    lists = onboard(sim).lists
    lists.replace(0, old)

    async def replaced(_done: int, _total: int) -> None:
        lists.replace(0, new)

    assert places(await ground.missions.download(tell=replaced)) == places(new)


class Older:
    """PX4 as it was: no ids, and some acknowledgements go to who was spoken with before."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.items = 4
        self.partner = 255, 190
        self.deaf = deaf

    def __call__(self, peer: Peer, message: Any) -> None:
        kind, sender = message.get_type(), (message.get_srcSystem(), message.get_srcComponent())
        if kind == "MISSION_REQUEST_LIST":
            self.partner = (255, 190) if self.deaf else sender
            peer.send(mavlink.MAVLink_mission_count_message(*sender, self.items, 0))
        elif kind == "MISSION_CLEAR_ALL" or (kind == "MISSION_COUNT" and not message.count):
            self.items = 0
            peer.send(mavlink.MAVLink_mission_ack_message(*self.partner, 0, 0))


@pytest.fixture
async def played(open_ground: Callable[..., Any], open_peer: Callable[..., Any]) -> Callable[..., Any]:
    async def connect(vehicle: Any) -> Any:
        ground = await open_ground()
        peer = await open_peer(remote=ground.address, on_message=vehicle)
        peer.heartbeat(autopilot=PX4_NUMBER)
        assert await ground.vehicle.wait_connected(10.0)
        return ground, peer

    return connect


async def test_acknowledgements_go_to_who_asked_for_a_list(played: Callable[..., Any]) -> None:
    """So it is us, and nothing has to be waited for."""
    for verify in (True, False):
        vehicle = Older()
        ground, peer = await played(vehicle)
        await ground.missions.clear(timeout=2.0)
        assert len(peer.of("MISSION_CLEAR_ALL")) == 1
        vehicle.partner, vehicle.items = (255, 190), 4
        assert (await ground.missions.upload([], verify=verify, timeout=2.0)).sent == 0
        assert len(peer.of("MISSION_COUNT")) == 1
        assert vehicle.items == 0


async def test_a_removal_that_nobody_acknowledges_to_us(played: Callable[..., Any]) -> None:
    """What is there decides."""
    vehicle = Older(deaf=True)
    ground, _peer = await played(vehicle)
    await ground.missions.clear(timeout=1.0)
    assert vehicle.items == 0
    vehicle.items, vehicle.deaf = 4, True
    ground, _peer = await played(lambda peer, message: _only_counts(vehicle, peer, message))
    with pytest.raises(MissionTimeout, match="removal"):
        await ground.missions.clear(timeout=1.0)


def _only_counts(vehicle: Older, peer: Peer, message: Any) -> None:
    if message.get_type() == "MISSION_REQUEST_LIST":
        vehicle(peer, message)


async def test_a_list_of_another_id_is_told_in_the_middle(played: Callable[..., Any]) -> None:
    """Same length, another id, no refusal: what came before belongs to another list."""
    lists = {1: mission(4), 2: mission(4, step=-70)}
    now = 1

    def count(peer: Peer) -> None:
        peer.send_bytes(PACKER.pack_payload(44, struct.pack("<HBBBI", 4, 2, 140, 0, now)))

    def vehicle(peer: Peer, message: Any) -> None:
        nonlocal now
        kind = message.get_type()
        if kind == "MISSION_REQUEST_LIST":
            count(peer)
        elif kind == "MISSION_REQUEST_INT":
            if message.seq == 2 and now == 1:
                now = 2
                count(peer)
            fields = {**lists[now][message.seq].fields(), "target_system": 2, "target_component": 140}
            peer.send(load_dialect().message("MISSION_ITEM_INT", **fields, mission_type=0))

    ground, _peer = await played(vehicle)
    assert await ground.missions.download() == lists[2]


async def test_no_question_stands_in_the_way_of_an_upload(open_ground: Callable[..., Any]) -> None:
    """An upload of before stands at item 0 of an empty vehicle: a question for its list would block it for long.

    What MISSION_CURRENT tells is enough.
    """
    ground, sim = await open_ground(PX4)
    await until(lambda: ground.missions.progress.total == 0)
    target = {"target_system": 1, "target_component": 1, "mission_type": 0}
    ground.calls.send("MISSION_COUNT", 1, count=3, **target)
    await until(lambda: onboard(sim)._upload)
    assert (await ground.missions.upload(mission(3), timeout=3.0)).verified == "opaque_id"
    # this is what the question does
    await ground.missions.clear()
    ground.calls.send("MISSION_COUNT", 1, count=3, **target)
    await until(lambda: onboard(sim)._upload)
    assert await ground.missions.count() == 0
    with ground.calls.listen({47}, 1) as inbox:
        ground.calls.send("MISSION_COUNT", 1, count=3, **target)
        answer = await inbox.get(5.0)
    assert answer is not None
    assert ground.calls.dialect.fields(answer)["type"] == 1


@BOTH
async def test_what_the_bus_is_told(server: RealServer, bus_name: str, autopilot: Any) -> None:
    """A reply says whether the mission will be flown, an error what the vehicle has."""
    async with rig(server, bus_name) as vehicle, Bus(server.url, app="asker", bus=bus_name) as bus:
        options = SimOptions(endpoint=f"udpout:127.0.0.1:{vehicle.address[1]}", autopilot=autopilot)
        async with SimVehicle(options) as sim:
            flying = asyncio.create_task(sim.fly())
            try:
                assert await vehicle.handler.vehicle.wait_connected(15.0)
                progress = vehicle.handler.fleet.primary.missions.progress
                await until(lambda: autopilot is ARDUPILOT or progress.state)
                items = [{"command": "NAV_TAKEOFF", "altitude": 8}, {"command": "NAV_RETURN_TO_LAUNCH"}]
                wanted = {"items": items, "timeout": 20}
                done = (await bus.request("vehicle", "mavlink.mission.upload", wanted, timeout=60)).data
                assert done["feasible"] is (True if autopilot is PX4 else None)
                onboard(sim).feasible = False
                items[0]["altitude"] = 9
                done = (await bus.request("vehicle", "mavlink.mission.upload", wanted, timeout=60)).data
                assert done["feasible"] is (False if autopilot is PX4 else None)
                assert bool(done["texts"]) is (autopilot is PX4)
                items[1] = {"command": 4000}
                with pytest.raises(ReplyError) as caught:
                    await bus.request("vehicle", "mavlink.mission.upload", wanted, timeout=60)
                assert caught.value.error_code == "MISSION_REFUSED"
                assert caught.value.detail["vehicle_has"] == ("old" if autopilot is PX4 else "mixed")
            finally:
                await stop(flying)
