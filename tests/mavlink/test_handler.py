"""The handler between a real bus and a vehicle: the simulated one, or a scripted one where it must misbehave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

import petalbus
from mavlink.peer import ARM_DISARM, IN_PROGRESS, LAND, TAKEOFF, Peer, obedient
from petalbus import Bus, Priority, Record, ReplyError
from petalbus.handlers.mavlink import MavlinkHandler, decode
from petalbus.handlers.mavlink.errors import EndpointError
from petalbus.handlers.mavlink.flight.commands import CommandTimes
from petalbus.handlers.mavlink.options import MavlinkOptions

from support.procs import Child, Children
from support.servers import RealServer

SIM = "petalbus.handlers.mavlink.sim"
QUICK = MavlinkOptions(times=CommandTimes(answer=0.5, progress=1.0, whole=5.0, repeat=0.2, confirm=0.5, doubt=2.0))


class Vehicle:
    """A bus with a running handler, and a client that commands it."""

    def __init__(self, handler: MavlinkHandler, gcs: Bus) -> None:
        self.handler = handler
        self.gcs = gcs

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.handler.link.transport.local  # type: ignore[attr-defined]
        return address

    async def command(self, command: str, *, timeout: float = 10.0, **extra: Any) -> Record:
        keywords = {name: extra.pop(name) for name in ("id", "priority", "on_progress") if name in extra}
        return await self.gcs.request("vehicle", "command", {"command": command, **extra}, timeout=timeout, **keywords)


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Vehicle]:
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(petalbus.connect(server.url, app="vehicle", bus=bus_name))
        handler = await stack.enter_async_context(MavlinkHandler(bus, endpoint="udpin:127.0.0.1:0", options=QUICK))
        gcs = await stack.enter_async_context(petalbus.connect(server.url, app="gcs", bus=bus_name))
        yield Vehicle(handler, gcs)


@pytest.fixture
async def sim(vehicle: Vehicle, children: Children) -> Child:
    """The simulated vehicle, connected."""
    child = await children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{vehicle.address[1]}", "--journal", "-")
    assert await vehicle.handler.vehicle.wait_connected(10.0)
    return child


@pytest.fixture
async def scripted(vehicle: Vehicle, open_peer: Callable[..., Any]) -> Callable[..., Any]:
    """``peer = await scripted(on_message)``: a connected vehicle that does what the function says."""

    async def connect(on_message: Any = obedient, **heartbeat: Any) -> Peer:
        peer: Peer = await open_peer(remote=vehicle.address, on_message=on_message)
        peer.position()
        peer.heartbeat(**heartbeat)
        assert await vehicle.handler.vehicle.wait_connected(5.0)
        peer.position()
        return peer

    return connect


async def test_a_takeoff_is_answered_with_the_vehicles_acknowledgement(vehicle: Vehicle, sim: Child) -> None:
    told: list[Any] = []
    reply = await vehicle.command(
        "takeoff",
        parameters={"altitude": 10, "speed": 2.0},
        command_id="cmd_123",
        on_progress=lambda record: told.append(record.data),
    )
    assert reply.type == "command_response"
    assert reply.data == {
        "status": "success",
        "command": "takeoff",
        "stage": "takeoff",
        "mavlink_command": "MAV_CMD_NAV_TAKEOFF",
        "result": "MAV_RESULT_ACCEPTED",
        "result_code": 0,
        "command_id": "cmd_123",
        "unused_parameters": ["speed"],
        "system": 1,
    }
    assert [(one["stage"], one["result_code"]) for one in told] == [("arm", 0)]
    await sim.line("NAV_TAKEOFF")
    landed = await vehicle.gcs.request("vehicle", "emergency_command", {"action": "land_immediately"})
    assert landed.data["status"] == "success"
    await sim.line("NAV_LAND")


async def test_a_refusal_is_a_reply_that_says_so(vehicle: Vehicle, sim: Child) -> None:
    await vehicle.command("takeoff", parameters={"altitude": 3})
    await asyncio.sleep(1.0)
    reply = await vehicle.command("disarm")
    assert (reply.data["status"], reply.data["result"]) == ("failed", "MAV_RESULT_TEMPORARILY_REJECTED")


async def test_every_frame_is_a_record_in_the_topic(vehicle: Vehicle, sim: Child) -> None:
    names: set[str] = set()
    numbers: list[int] = []
    async with vehicle.gcs.subscribe("mavlink.rx") as records, asyncio.timeout(10):
        async for record in records:
            decoded = decode(record)
            assert record.type == f"mavlink.{decoded['mavpackettype']}"
            assert record.content_type == "application/x-mavlink"
            assert record.source == "vehicle"
            assert record.mono is not None
            assert 0 <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) - record.mono < 5e9
            numbers.append(decoded["header"]["seq"])
            names.add(decoded["mavpackettype"])
            if len(numbers) >= 150:
                break
    assert {"ATTITUDE", "GLOBAL_POSITION_INT", "GPS_RAW_INT", "HEARTBEAT", "BATTERY_STATUS"} <= names
    assert numbers == [(numbers[0] + index) & 0xFF for index in range(150)], "none lost, none doubled, in order"


async def test_two_thousand_messages_a_second_are_stored_without_loss(
    vehicle: Vehicle, scripted: Callable[..., Any]
) -> None:
    peer = await scripted()
    before = vehicle.handler.ingest.published
    message = mavlink.MAVLink_attitude_message(1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    due = time.monotonic()
    for _ in range(200):
        for _ in range(10):
            peer.send(message)
        due += 0.005
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    async with asyncio.timeout(10):
        while vehicle.handler.ingest.published - before < 2000:
            await asyncio.sleep(0.02)
    statistics = vehicle.handler.statistics()
    assert statistics["lost"] == statistics["waiting"] == statistics["link"]["received"]["lost"] == 0
    assert await vehicle.gcs.call("XLEN", vehicle.gcs.keys.topic("mavlink.rx")) == vehicle.handler.ingest.published


@pytest.mark.parametrize(
    ("payload", "field", "allowed"),
    [
        ({"command": "explode"}, "command", "takeoff"),
        ({"command": "takeoff", "parameters": {}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": 600}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitide": 6}}, "parameters.altitide", "altitude, speed"),
    ],
)
async def test_what_is_wrong_is_refused_with_field_and_limit(
    vehicle: Vehicle, scripted: Callable[..., Any], payload: dict[str, Any], field: str, allowed: str
) -> None:
    peer = await scripted()
    with pytest.raises(ReplyError, match=field) as caught:
        await vehicle.gcs.request("vehicle", "command", payload)
    assert caught.value.error_code == "COMMAND_INVALID"
    assert caught.value.detail["field"] == field
    assert allowed in caught.value.detail["allowed"]
    assert not peer.commands()


async def test_without_a_vehicle_the_error_comes_at_once(vehicle: Vehicle) -> None:
    vehicle.handler._opened -= 60  # as if it had run for a minute: the first heartbeat is not waited for any more
    began = time.monotonic()
    with pytest.raises(ReplyError, match="no vehicle was heard") as caught:
        await vehicle.command("arm", command_id="x1")
    assert time.monotonic() - began < 0.5
    assert caught.value.error_code == "VEHICLE_NOT_CONNECTED"
    assert caught.value.detail["command_id"] == "x1"


async def test_a_command_from_before_the_first_heartbeat_waits_for_it(
    vehicle: Vehicle, scripted: Callable[..., Any]
) -> None:
    asked = asyncio.create_task(vehicle.command("arm"), name="test.arm")
    await asyncio.sleep(0.2)
    await scripted()
    assert (await asked).data["status"] == "success"


async def test_i2_the_same_message_twice_commands_the_vehicle_once(
    vehicle: Vehicle, scripted: Callable[..., Any]
) -> None:
    peer = await scripted()
    replies = [await vehicle.command("arm", id="one-arm") for _ in range(3)]
    assert {reply.id for reply in replies} == {replies[0].id}
    assert len(peer.commands()) == 1


async def test_no_acknowledgement_is_an_unknown_outcome_and_nothing_is_repeated(
    vehicle: Vehicle, scripted: Callable[..., Any]
) -> None:
    peer = await scripted(lambda _peer, _message: None)
    with pytest.raises(ReplyError, match="may or may not have been executed") as caught:
        await vehicle.command("land")
    assert caught.value.error_code == "OUTCOME_UNKNOWN"
    assert (caught.value.detail["outcome"], caught.value.detail["times_sent"]) == ("unknown", 1)
    await asyncio.sleep(0.6)
    assert len(peer.commands()) == 1


async def test_progress_of_the_vehicle_is_told(vehicle: Vehicle, scripted: Callable[..., Any]) -> None:
    def slow(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG":
            peer.ack(message.command, IN_PROGRESS, progress=40)
            asyncio.get_running_loop().call_later(0.2, peer.ack, message.command)

    await scripted(slow)
    told: list[Any] = []
    reply = await vehicle.command("land", on_progress=lambda record: told.append(record.data))
    assert [(one["status"], one["progress"]) for one in told] == [("in_progress", 40)]
    assert reply.data["status"] == "success"


@pytest.mark.alone
async def test_i4_an_emergency_stop_overtakes_what_waits_for_its_answer(
    vehicle: Vehicle, scripted: Callable[..., Any]
) -> None:
    def only_stop(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG" and message.param2 == 21196:
            obedient(peer, message)

    peer = await scripted(only_stop, armed=True)
    waiting = [
        asyncio.create_task(vehicle.command("land", timeout=5.0), name="test.land"),
        asyncio.create_task(vehicle.command("disarm", timeout=5.0), name="test.disarm"),
    ]
    await peer.until(lambda: peer.commands(LAND))
    began = time.monotonic()
    stop = asyncio.create_task(vehicle.command("emergency_stop", priority=Priority.CRITICAL), name="test.stop")
    await peer.until(lambda: [one for one in peer.commands(ARM_DISARM) if one.param2 == 21196])
    assert time.monotonic() - began < 0.25, "it left while the land was still unanswered"
    while not stop.done():  # a disarm was under way: a heartbeat after the acknowledgement must say it, too
        peer.heartbeat(armed=False)
        await asyncio.sleep(0.02)
    assert (await stop).data["status"] == "success"
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, ReplyError) for result in results)


async def test_a_takeoff_is_given_up_when_its_deadline_passes_half_way(
    vehicle: Vehicle, scripted: Callable[..., Any]
) -> None:
    """The sender stopped waiting: the vehicle must not start to fly afterwards."""

    def late(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG":
            asyncio.get_running_loop().call_later(0.4, peer.ack, message.command)

    peer = await scripted(late)
    with pytest.raises(petalbus.RequestTimeout):
        await vehicle.command("takeoff", parameters={"altitude": 3}, timeout=0.25, id="late-takeoff")
    async with asyncio.timeout(10):
        while not (await vehicle.gcs.status("late-takeoff")).final:
            await asyncio.sleep(0.05)
    assert not peer.commands(TAKEOFF)


async def test_the_heartbeat_reaches_the_vehicle(vehicle: Vehicle, scripted: Callable[..., Any]) -> None:
    peer = await scripted()
    beats = await peer.until(lambda: peer.of("HEARTBEAT")[2:])
    assert (beats[0].type, beats[0].autopilot, beats[0].get_srcSystem(), beats[0].get_srcComponent()) == (6, 8, 2, 140)


HANDLER_PROCESS = """
import asyncio, sys
import petalbus
from petalbus.handlers.mavlink import MavlinkHandler

async def main():
    url, bus_name, endpoint = sys.argv[1:]
    async with petalbus.connect(url, app="vehicle", bus=bus_name) as bus:
        async with MavlinkHandler(bus, endpoint=endpoint) as handler:
            print("listening", handler.link.transport.local[1], flush=True)
            await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.processes
async def test_i2_no_second_command_after_the_handler_was_killed_in_the_middle(
    server: RealServer, bus_name: str, children: Children, open_peer: Callable[..., Any]
) -> None:
    """Killed between the command and its answer: the successor reports "outcome unknown" and sends nothing."""
    first = await children.code(HANDLER_PROCESS, server.url, bus_name, "udpin:127.0.0.1:0")
    port = int((await first.line("listening")).split()[1])
    peer: Peer = await open_peer(remote=("127.0.0.1", port), on_message=lambda _peer, _message: None)
    async with petalbus.connect(server.url, app="gcs", bus=bus_name) as gcs:
        peer.heartbeat()
        asked = asyncio.create_task(
            gcs.request("vehicle", "command", {"command": "land"}, timeout=20.0), name="test.land"
        )
        await peer.until(peer.commands)
        first.kill()
        await first.wait()
        second = await children.code(HANDLER_PROCESS, server.url, bus_name, f"udpin:127.0.0.1:{port}")
        await second.line("listening")
        peer.on_message = obedient
        peer.heartbeat()
        with pytest.raises(ReplyError) as caught:
            await asked
        assert caught.value.error_code == "OUTCOME_UNKNOWN"
        peer.heartbeat()
        again = await gcs.request("vehicle", "command", {"command": "arm"}, timeout=10.0)
        assert again.data["status"] == "success"
    assert [one.command for one in peer.commands()] == [LAND, ARM_DISARM]


@pytest.mark.processes
async def test_the_server_killed_and_restarted_stops_nothing_for_good(
    own_server: RealServer, bus_name: str, open_peer: Callable[..., Any]
) -> None:
    """Frames go on being stored after it, what could not be stored is counted, and commands are answered again."""
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(petalbus.connect(own_server.url, app="vehicle", bus=bus_name))
        handler = await stack.enter_async_context(MavlinkHandler(bus, endpoint="udpin:127.0.0.1:0", options=QUICK))
        vehicle = Vehicle(
            handler, await stack.enter_async_context(petalbus.connect(own_server.url, app="gcs", bus=bus_name))
        )
        peer: Peer = await open_peer(remote=vehicle.address, on_message=obedient)

        async def beat_until(stored: int) -> None:
            async with asyncio.timeout(20):
                while handler.ingest.published < stored:
                    peer.heartbeat()
                    await asyncio.sleep(0.02)

        await beat_until(5)
        own_server.kill()
        peer.heartbeat()
        await asyncio.sleep(0.3)
        own_server.start()
        await beat_until(handler.ingest.published + 20)
        assert (await vehicle.command("arm")).data["status"] == "success"
        async with asyncio.timeout(10):
            while handler.ingest.published + handler.ingest.lost < peer.sent:
                await asyncio.sleep(0.02)
        stored = own_server.command("XLEN", bus.keys.topic("mavlink.rx"))
        assert handler.ingest.published <= stored <= handler.ingest.published + handler.ingest.lost


async def test_errors_leave_the_block_as_they_are(server: RealServer, bus_name: str) -> None:
    async with petalbus.connect(server.url, app="vehicle", bus=bus_name) as bus:
        with pytest.raises(KeyError, match="mine"):
            async with MavlinkHandler(bus, endpoint="udpin:127.0.0.1:0"):
                raise KeyError("mine")
        with pytest.raises(EndpointError):
            MavlinkHandler(bus, endpoint="carrier-pigeon")
