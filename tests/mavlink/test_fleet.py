"""Several vehicles on one link, with scripted ones: who is meant, what waits for what, who is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mavlink.peer import ARM_DISARM, LAND, TAKEOFF, Peer, obedient, truthful
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.mavlink.fleet import DOUBT_S, MOST_UNITS, NoSuchVehicle, Unit, VehicleAmbiguous
from petalbus.handlers.mavlink.flight.commands import IN_PROGRESS
from petalbus.handlers.mavlink.flight.vehicle import FORGET_AFTER_S

from support.mavlink_rig import Rig, rig
from support.servers import RealServer

Scripted = Callable[..., Any]


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


@pytest.fixture
async def gcs(vehicle: Rig) -> AsyncIterator[Bus]:
    async with Bus(vehicle.server.url, app="gcs", bus=vehicle.bus_name) as bus:
        yield bus


@pytest.fixture
async def scripted(vehicle: Rig, open_peer: Scripted) -> Scripted:
    """``peer = await scripted(7, on_message)``: a vehicle with that system id, heard."""

    async def connect(system: int, on_message: Any = truthful, **heartbeat: Any) -> Peer:
        peer: Peer = await open_peer(remote=vehicle.address, system=system, on_message=on_message)
        peer.heartbeat(**heartbeat)
        peer.position()
        await heard(vehicle, system)
        peer.position()
        return peer

    return connect


async def heard(vehicle: Rig, system: int) -> Unit:
    fleet = vehicle.handler.fleet
    await fleet.wait_heard(system, 5.0)
    return fleet.unit(system)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def was_silent(unit: Unit, seconds: float) -> None:
    """As if the vehicle had been heard last so long ago."""
    assert unit.vehicle.state is not None
    unit.vehicle.state.heard -= seconds


async def order(gcs: Bus, command: str, *, timeout: float = 8.0, **data: Any) -> dict[str, Any]:
    told: dict[str, Any] = (await gcs.request("vehicle", "command", {"command": command, **data}, timeout=timeout)).data
    return told


async def refusal(gcs: Bus, command: str, **data: Any) -> ReplyError:
    with pytest.raises(ReplyError) as caught:
        await order(gcs, command, **data)
    return caught.value


class Slow:
    """A vehicle that acknowledges nothing until it is told to."""

    def __init__(self) -> None:
        self.free = False

    def __call__(self, peer: Peer, message: Any) -> None:
        if self.free:
            obedient(peer, message)


async def test_who_names_no_system_means_the_first_one(vehicle: Rig, gcs: Bus, scripted: Scripted) -> None:
    first, second = await scripted(7), await scripted(3)
    assert (await order(gcs, "arm"))["system"] == 7
    assert (await order(gcs, "arm", system=3))["system"] == 3
    assert (await order(gcs, "arm", system=7))["system"] == 7
    assert (len(first.commands(ARM_DISARM)), len(second.commands(ARM_DISARM))) == (2, 1)
    stop = await gcs.request("vehicle", "emergency_command", {"action": "emergency_stop"}, timeout=5)
    assert stop.data["system"] == 7, "the reply says whose motors were stopped"
    land = await gcs.request("vehicle", "emergency_command", {"action": "land_immediately", "system": 3}, timeout=5)
    assert land.data["system"] == 3
    assert not first.commands(LAND)
    told = vehicle.handler.statistics()
    assert (told["vehicle"]["system"], [one["system"] for one in told["vehicles"]]) == (7, [7, 3])
    assert [one["primary"] for one in told["vehicles"]] == [True, False]
    assert told["commands_sent"] >= 6, "the stop came right after an arm: it is said until a heartbeat confirms it"


async def test_a_system_that_is_not_heard_is_refused_by_name(vehicle: Rig, gcs: Bus, scripted: Scripted) -> None:
    await scripted(7)
    await scripted(3)
    refused = await refusal(gcs, "arm", system=9)
    assert refused.error_code == "VEHICLE_NOT_CONNECTED"
    assert "vehicle 9 is not heard on the MAVLink link (heard are 3, 7)" in str(refused)
    assert (refused.detail["system"], refused.detail["heard"]) == (9, [3, 7])
    for wrong in (0, 256, True, "7", 7.0):
        refused = await refusal(gcs, "arm", system=wrong)
        assert (refused.error_code, refused.detail["field"]) == ("COMMAND_INVALID", "system")
    with pytest.raises(ReplyError) as caught:
        await gcs.request("vehicle", "mavlink.param.list", {"system": 9}, timeout=8)
    assert (caught.value.error_code, caught.value.detail["heard"]) == ("VEHICLE_NOT_CONNECTED", [3, 7])


async def test_a_landing_of_one_does_not_end_the_takeoff_of_the_other(
    vehicle: Rig, gcs: Bus, scripted: Scripted
) -> None:
    """One sender; the other vehicle's landing, arming and emergency stop go past, and what waited goes on then."""
    slow = Slow()
    first, second = await scripted(1, slow), await scripted(2)
    flying = asyncio.create_task(order(gcs, "takeoff", altitude=5, system=1), name="takeoff")
    await first.until(lambda: first.commands(ARM_DISARM))
    for command in ("land", "arm", "emergency_stop"):
        assert (await order(gcs, command, system=2))["status"] == "success"
    assert not flying.done()
    first.ack(ARM_DISARM)
    slow.free = True
    told = await flying
    assert (told["status"], told["stage"], told["system"]) == ("success", "takeoff", 1)
    assert len(first.commands(TAKEOFF)) == 1
    assert not second.commands(TAKEOFF)


async def test_orders_for_one_vehicle_keep_their_order(vehicle: Rig, gcs: Bus, scripted: Scripted) -> None:
    """Also for one that is not the primary: its second order leaves when the first is answered."""
    slow = Slow()
    await scripted(1)
    second = await scripted(2, slow)
    arming = asyncio.create_task(order(gcs, "arm", system=2), name="arm")
    await second.until(lambda: second.commands(ARM_DISARM))
    returning = asyncio.create_task(order(gcs, "mode", parameters={"mode": "mission"}, system=2), name="mode")
    assert (await order(gcs, "arm"))["system"] == 1, "the primary one is not held up"
    assert len(second.commands()) == 1
    second.ack(ARM_DISARM)
    slow.free = True
    assert (await arming)["status"] == "success"
    assert (await returning)["status"] == "success"


async def test_the_configured_vehicle_is_the_primary_one(
    server: RealServer, bus_name: str, open_peer: Scripted
) -> None:
    async with rig(server, bus_name, target_system=5) as vehicle, Bus(server.url, app="gcs", bus=bus_name) as gcs:
        other: Peer = await open_peer(remote=vehicle.address, system=1, on_message=obedient)
        other.heartbeat()
        await heard(vehicle, 1)
        refused = await refusal(gcs, "arm")
        assert "vehicle 5 is not heard on the MAVLink link (heard are 1)" in str(refused)
        assert (await order(gcs, "arm", system=1))["system"] == 1
        configured: Peer = await open_peer(remote=vehicle.address, system=5, on_message=obedient)
        configured.heartbeat()
        await heard(vehicle, 5)
        assert (await order(gcs, "arm"))["system"] == 5
        was_silent(vehicle.handler.fleet.primary, FORGET_AFTER_S + 1)
        other.heartbeat()
        await asyncio.sleep(0.1)
        assert vehicle.handler.fleet.primary.system == 5, "nothing takes the place of the configured one"


async def test_when_the_primary_vehicle_is_lost(vehicle: Rig, gcs: Bus, scripted: Scripted) -> None:
    """For 30 s nothing else is meant; then the first one that is heard, but an emergency stop must name its vehicle."""
    fleet = vehicle.handler.fleet
    first, second = await scripted(1), await scripted(2)
    second.heartbeat()
    was_silent(fleet.primary, 20)
    second.heartbeat()
    refused = await refusal(gcs, "arm")
    assert refused.error_code == "VEHICLE_NOT_CONNECTED"
    assert (refused.detail["system"], refused.detail["heard"]) == (1, [2])
    first.heartbeat()
    await until(lambda: fleet.primary.vehicle.connected)
    fleet.unit(2).met -= 100  # as if they had flown side by side for long, before the first one fell silent
    was_silent(fleet.primary, FORGET_AFTER_S + 1)
    second.heartbeat()
    await until(lambda: fleet.primary.system == 2)
    assert (await order(gcs, "arm"))["system"] == 2
    refused = await refusal(gcs, "emergency_stop")
    assert refused.error_code == "VEHICLE_AMBIGUOUS"
    assert "vehicle 1 was lost a short time ago and vehicle 2 took its place" in str(refused)
    assert (await order(gcs, "emergency_stop", system=2))["system"] == 2
    assert (await order(gcs, "land"))["system"] == 2
    first.heartbeat()
    await until(lambda: fleet.heard == [1, 2])
    assert fleet.primary.system == 2, "the target does not change back and forth"
    assert (await refusal(gcs, "emergency_stop")).error_code == "VEHICLE_AMBIGUOUS"
    was_silent(fleet.unit(1), DOUBT_S + 1)
    assert (await order(gcs, "emergency_stop"))["system"] == 2


async def test_one_that_was_exchanged_is_stopped_without_a_name(vehicle: Rig, gcs: Bus, scripted: Scripted) -> None:
    """The second vehicle came when the first one was gone, as with one vehicle at a time."""
    await scripted(1)
    was_silent(vehicle.handler.fleet.primary, FORGET_AFTER_S + 1)
    await scripted(2)
    await until(lambda: vehicle.handler.fleet.primary.system == 2)
    assert (await order(gcs, "emergency_stop"))["system"] == 2


async def test_vehicles_are_bounded_and_forgotten_when_room_is_needed(vehicle: Rig, scripted: Scripted) -> None:
    fleet = vehicle.handler.fleet
    peer = await scripted(1)
    for system in range(2, MOST_UNITS + 6):
        peer.heartbeat(system=system)
    peer.heartbeat(system=0)
    peer.heartbeat(system=200, component=190)
    await until(lambda: fleet.refused == 5)
    assert [unit.system for unit in fleet.units] == list(range(1, MOST_UNITS + 1))
    with pytest.raises(NoSuchVehicle):
        fleet.unit(MOST_UNITS + 1)
    for system in (1, 3, 4):
        was_silent(fleet.unit(system), 50 - system)
    with fleet.using(fleet.unit(3)):
        peer.heartbeat(system=99)
        await heard(vehicle, 99)
    systems = {unit.system for unit in fleet.units}
    assert systems == {*range(1, MOST_UNITS + 1), 99} - {4}, "1 is the primary one, and something runs on 3"
    assert fleet.primary.system == 2, "1 was silent for too long, and 2 is the first of the others"


async def test_states_are_told_of_each_and_the_primary_one_last(vehicle: Rig, gcs: Bus, scripted: Scripted) -> None:
    """Topic vehicle.state: who looks at its newest record sees the primary vehicle; the proxy shows that one."""
    first = await scripted(1)
    proxy = await vehicle.proxy()
    second = await scripted(2, autopilot=3)
    states: list[dict[str, Any]] = []

    async def beat() -> None:
        while True:
            first.heartbeat()
            second.heartbeat(autopilot=3, armed=True)
            await asyncio.sleep(0.2)

    async def listen() -> None:
        async with gcs.subscribe("vehicle.state", name="test") as records:
            async for record in records:
                states.append(record.data)  # noqa: PERF401  # it is read while it grows

    tasks = [asyncio.create_task(beat(), name="beat"), asyncio.create_task(listen(), name="listen")]
    try:
        await until(lambda: {state["system"] for state in states} == {1, 2} and states[-1]["primary"])
        assert {state["system"] for state in states if state["primary"]} == {1}
        told = next(state for state in states if state["system"] == 2)
        assert (told["encoding"], told["armed"], told["connected"], told["primary"]) == ("c_cast", True, True, False)
        newest = vehicle.server.command("XREVRANGE", gcs.keys.topic("vehicle.state"), "+", "-", "COUNT", 1)
        assert newest, "there is one"
        assert (proxy.connected, proxy.target_system) == (True, 1)
        fresh = await vehicle.proxy()
        assert fresh.target_system == 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_landing_by_another_program_overtakes_only_its_vehicle(
    vehicle: Rig, gcs: Bus, scripted: Scripted
) -> None:
    """A frame past us (mavlink.send) ends what has not left yet of the orders for the vehicle that it names."""
    slow = {1: Slow(), 2: Slow()}
    peers = {system: await scripted(system, slow[system]) for system in (1, 2)}
    flying = {n: asyncio.create_task(order(gcs, "takeoff", altitude=5, system=n), name=f"{n}") for n in (1, 2)}
    for peer in peers.values():
        await peer.until(lambda peer=peer: peer.commands(ARM_DISARM))
    dialect = vehicle.handler.link.dialect
    land = dialect.message("COMMAND_LONG", command=LAND, target_system=2, target_component=1)
    frame = vehicle.handler.link.packer.pack(land)
    async with Bus(vehicle.server.url, app="other", bus=vehicle.bus_name) as other:
        await other.request("vehicle", "mavlink.send", frame, content_type="application/x-mavlink", timeout=5)
    for system, peer in peers.items():
        slow[system].free = True
        peer.ack(ARM_DISARM)
    assert (await flying[1])["stage"] == "takeoff"
    with pytest.raises(ReplyError) as caught:
        await flying[2]
    assert (caught.value.error_code, caught.value.detail["system"]) == ("COMMAND_OVERTAKEN", 2)


async def test_frames_keep_their_order_with_orders_for_their_vehicle(
    vehicle: Rig, gcs: Bus, scripted: Scripted
) -> None:
    """A frame for vehicle 2 waits for its sender's order to vehicle 2, and not for the one to vehicle 1."""
    slow = {1: Slow(), 2: Slow()}
    peers = {system: await scripted(system, slow[system]) for system in (1, 2)}
    packer, dialect = vehicle.handler.link.packer, vehicle.handler.link.dialect

    def frame(system: int) -> bytes:
        return bytes(packer.pack(dialect.message("COMMAND_LONG", command=LAND, target_system=system)))

    async def send(data: bytes) -> None:
        await gcs.request("vehicle", "mavlink.send", data, content_type="application/x-mavlink", timeout=8)

    ordered = {n: asyncio.create_task(order(gcs, "arm", system=n), name=f"{n}") for n in (1, 2)}
    for peer in peers.values():
        await peer.until(lambda peer=peer: peer.commands(ARM_DISARM))
        peer.ack(ARM_DISARM, IN_PROGRESS)
    slow[1].free = True
    peers[1].ack(ARM_DISARM)
    await ordered[1]
    peers[2].ack(ARM_DISARM, IN_PROGRESS)
    sent = {n: asyncio.create_task(send(frame(n)), name=f"frame {n}") for n in (1, 2)}
    await sent[1]
    peers[2].ack(ARM_DISARM, IN_PROGRESS)
    await asyncio.sleep(0.2)
    assert not peers[2].commands(LAND)
    slow[2].free = True
    peers[2].ack(ARM_DISARM)
    await ordered[2]
    await sent[2]
    await peers[2].until(lambda: peers[2].commands(LAND))


def test_the_errors_say_what_to_do() -> None:
    assert str(NoSuchVehicle(4, [])) == (
        "vehicle 4 is not heard on the MAVLink link (no vehicle is heard); nothing was sent"
    )
    assert VehicleAmbiguous(1, 2, [2]).detail == {"heard": [2]}


async def test_a_restart_makes_no_other_vehicle_the_primary_one(
    server: RealServer, bus_name: str, open_peer: Scripted
) -> None:
    """Whichever heartbeat comes first: the one of before is meant again, and until it is heard nobody is stopped."""

    async def meet(vehicle: Rig, *systems: int) -> None:
        for system in systems:
            peer = await open_peer(remote=vehicle.address, system=system, on_message=obedient)
            peer.heartbeat()
            await heard(vehicle, system)

    async with rig(server, bus_name) as first:
        await meet(first, 1, 2)
        assert first.handler.fleet.primary.system == 1
        async with asyncio.timeout(5):
            while await first.handler._bus.ask("GET", f"{first.handler._bus.keys.prefix}mavlink:primary") != b"1":
                await asyncio.sleep(0.01)
    async with rig(server, bus_name) as second:
        fleet = second.handler.fleet
        await meet(second, 2)
        with pytest.raises(VehicleAmbiguous):
            fleet.unit(irreversible=True)
        await meet(second, 1)
        assert fleet.unit(irreversible=True).system == 1
    async with rig(server, bus_name) as third:
        fleet = third.handler.fleet
        await meet(third, 2)
        fleet._expects_until = 0.0  # ten seconds later: it was exchanged on the bench
        assert fleet.unit(irreversible=True).system == 2
