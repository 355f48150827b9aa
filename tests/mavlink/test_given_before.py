"""What was given before an order to come down does not leave after it, however long it waited (S-003, I4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.drive import silent
from mavlink.peer import ARDUPILOT, ARM_DISARM, IN_PROGRESS, SET_MODE, TAKEOFF, Peer
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusError, ReplyError
from petalbus.handlers.mavlink.decode import CONTENT_TYPE
from petalbus.handlers.mavlink.flight.commands import CommandTimes
from petalbus.handlers.mavlink.flight.downs import Given
from petalbus.handlers.mavlink.requests.replying import given_at
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

from support.mavlink_rig import rig
from support.servers import RealServer

FORCE = 21196.0
PATIENT = CommandTimes(answer=3.0, repeat=0.2, confirm=3.0)
MISSION = {"command": SET_MODE, "params": [1.0, 4.0, 4.0], "timeout": 3.0}
DO_MOTOR_TEST = 209
SECOND = 1_000_000_000


def is_stop(message: Any) -> bool:
    return bool(message.command == ARM_DISARM and message.param1 == 0.0 and message.param2 == FORCE)


def only(*numbers: int) -> Callable[[Peer, Any], None]:
    """A vehicle that accepts these, and stops."""

    def obey(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG" and (message.command in numbers or is_stop(message)):
            peer.ack(message.command, to=(message.get_srcSystem(), message.get_srcComponent()))

    return obey


@asynccontextmanager
async def beating(peer: Peer, **heartbeat: Any) -> AsyncIterator[None]:
    """It is armed when it was told so last."""

    async def beat() -> None:
        while True:
            orders = peer.commands(ARM_DISARM)
            peer.heartbeat(armed=bool(orders) and orders[-1].param1 == 1.0, **heartbeat)
            await asyncio.sleep(0.2)

    task = asyncio.create_task(beat(), name="test.beat")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def outcome(asked: asyncio.Task[Any]) -> Any:
    """What became of a request: its data, or its error's code."""
    try:
        return (await asked).data
    except BusError as error:
        return getattr(error, "error_code", None) or repr(error)


def ask(bus: Bus, kind: str, data: Any, *, timeout: float = 15.0) -> asyncio.Task[Any]:
    return asyncio.create_task(bus.request("vehicle", kind, data, timeout=timeout), name=f"test.{kind}")


def stop(bus: Bus) -> asyncio.Task[Any]:
    return ask(bus, "command", {"command": "emergency_stop"})


def order(peer: Peer, number: int, **params: float) -> bytes:
    """A packed command of another program."""
    values = {f"param{place}": 0.0 for place in range(1, 8)} | params
    message = mavlink.MAVLink_command_long_message(1, 1, number, 0, *values.values())
    packer = mavlink.MAVLink(None, srcSystem=9, srcComponent=1)
    data: bytes = bytes(message.pack(packer))
    return data


async def test_an_arm_that_waits_behind_its_senders_request_does_not_leave_after_a_stop(
    server: RealServer, bus_name: str
) -> None:
    """It waits in its sender's lane, and its handler starts only after the stop was told as done."""
    async with (
        rig(server, bus_name, times=PATIENT) as vehicle,
        Bus(server.url, app="gcs", bus=bus_name) as gcs,
        Bus(server.url, app="human", bus=bus_name) as human,
    ):
        peer = await vehicle.scripted(only(ARM_DISARM, TAKEOFF))
        async with beating(peer):
            slow = ask(gcs, "mavlink.command", MISSION)
            await peer.until(lambda: peer.commands(SET_MODE))
            arm = ask(gcs, "command", {"command": "arm"})
            await asyncio.sleep(0.3)
            assert (await outcome(stop(human)))["status"] == "success"
            assert await outcome(arm) == "COMMAND_OVERTAKEN"
            assert all(is_stop(one) for one in peer.commands(ARM_DISARM))
            assert await outcome(slow) == "OUTCOME_UNKNOWN"
            # what is given after it leaves
            assert (await outcome(ask(gcs, "command", {"command": "arm"})))["status"] == "success"


@pytest.mark.parametrize("kind", ["arm", "raw", "frames"])
async def test_an_arm_that_waited_in_the_inbox_does_not_leave_after_a_stop(
    server: RealServer, bus_name: str, kind: str
) -> None:
    """The handler was away; the stop is CRITICAL and comes first when it returns."""
    async with rig(server, bus_name):
        pass
    async with (
        Bus(server.url, app="gcs", bus=bus_name) as gcs,
        Bus(server.url, app="human", bus=bus_name) as human,
    ):
        if kind == "frames":
            frame = order(Peer(), ARM_DISARM, param1=1.0)
            request = gcs.request("vehicle", "mavlink.send", frame, content_type=CONTENT_TYPE, timeout=15.0)
            arm = asyncio.create_task(request, name="test.frames")
        elif kind == "raw":
            arm = ask(gcs, "mavlink.command", {"command": ARM_DISARM, "params": [1.0]})
        else:
            arm = ask(gcs, "command", {"command": "arm"})
        await asyncio.sleep(0.5)
        stopped = stop(human)
        await asyncio.sleep(0.3)
        async with rig(server, bus_name, times=PATIENT) as vehicle:
            peer = await vehicle.scripted(only(ARM_DISARM))
            async with beating(peer):
                assert (await outcome(stopped))["status"] == "success"
                assert await outcome(arm) == "COMMAND_OVERTAKEN"
                assert all(is_stop(one) for one in peer.commands(ARM_DISARM))


async def test_a_raw_arm_that_waits_for_one_of_its_kind_does_not_leave_after_a_stop(
    server: RealServer, bus_name: str
) -> None:
    """Another app's; the stop overtakes the first and so makes room for the second."""
    async with (
        rig(server, bus_name, times=PATIENT) as vehicle,
        Bus(server.url, app="one", bus=bus_name) as one,
        Bus(server.url, app="two", bus=bus_name) as two,
    ):
        peer = await vehicle.scripted(only())
        async with beating(peer):
            arm = {"command": ARM_DISARM, "params": [1.0], "timeout": 30.0}
            first = ask(one, "mavlink.command", arm)
            await peer.until(lambda: peer.commands(ARM_DISARM))
            second = ask(two, "mavlink.command", arm)
            await asyncio.sleep(0.3)
            assert (await outcome(stop(one)))["status"] == "success"
            assert await outcome(second) == "COMMAND_OVERTAKEN"
            assert await outcome(first) == "OUTCOME_UNKNOWN"
            assert [command.param1 for command in peer.commands(ARM_DISARM)].count(1.0) == 1


async def test_a_raw_motor_test_that_waits_is_remembered_when_it_leaves(server: RealServer, bus_name: str) -> None:
    """And it does not leave after a stop, which ends the first and so makes room for the second."""

    def bench(peer: Peer, message: Any) -> None:
        ends = message.get_type() == "COMMAND_LONG" and message.command == DO_MOTOR_TEST and message.param4 == 0.0
        if ends or (message.get_type() == "COMMAND_LONG" and is_stop(message)):
            peer.ack(message.command)

    async with (
        rig(server, bus_name, times=PATIENT) as vehicle,
        Bus(server.url, app="one", bus=bus_name) as one,
        Bus(server.url, app="two", bus=bus_name) as two,
    ):
        peer = await vehicle.scripted(bench, autopilot=ARDUPILOT)
        async with beating(peer, autopilot=ARDUPILOT):
            tests = [
                ask(bus, "mavlink.command", {"command": DO_MOTOR_TEST, "params": [motor, 0, 10, 30], "timeout": 30.0})
                for bus, motor in ((one, 1.0), (two, 2.0))
            ]
            await peer.until(lambda: peer.commands(DO_MOTOR_TEST))
            await asyncio.sleep(0.3)
            noted = vehicle.handler.vehicle._procedures._stopping._tests.running()
            assert len(noted) == 1, "the second has not left"
            assert (await outcome(stop(one)))["status"] == "success"
            outcomes = [await outcome(test) for test in tests]
            assert sorted(outcomes) == ["COMMAND_OVERTAKEN", "OUTCOME_UNKNOWN"]
            assert len([test for test in peer.commands(DO_MOTOR_TEST) if test.param4 > 0]) == 1


async def test_a_raw_command_whose_deadline_passed_does_not_leave(server: RealServer, bus_name: str) -> None:
    """It waited for one of its kind; its sender was told so long ago."""
    async with (
        rig(server, bus_name) as vehicle,
        Bus(server.url, app="one", bus=bus_name) as one,
        Bus(server.url, app="two", bus=bus_name) as two,
    ):
        peer = await vehicle.scripted(silent)
        async with beating(peer):
            first = ask(one, "mavlink.command", {"command": TAKEOFF, "timeout": 2.0})
            await peer.until(lambda: peer.commands(TAKEOFF))
            params = [0, 0, 0, 0, 0, 0, 20]
            second = ask(two, "mavlink.command", {"command": TAKEOFF, "params": params}, timeout=0.8)
            await outcome(second)
            assert await outcome(first) == "OUTCOME_UNKNOWN"
            await asyncio.sleep(0.3)
            assert [command.param7 for command in peer.commands(TAKEOFF)] == [0.0]


async def test_what_only_asks_is_not_ended_by_an_order_to_come_down(server: RealServer, bus_name: str) -> None:
    async with (
        rig(server, bus_name) as vehicle,
        Bus(server.url, app="one", bus=bus_name) as one,
    ):
        peer = await vehicle.scripted(only(TAKEOFF))
        leaving = vehicle.handler.vehicle.foreign_command(512, [33.0])
        assert (await outcome(stop(one)))["status"] == "success"
        leaving()
        assert len(peer.commands()) == 1


async def test_a_raw_stop_among_frames_waits_for_nothing(server: RealServer, bus_name: str) -> None:
    """I4: its sender has a request under way that is not answered."""
    async with (
        rig(server, bus_name) as vehicle,
        Bus(server.url, app="petal", bus=bus_name) as petal,
    ):
        peer = await vehicle.scripted(silent)
        slow = ask(petal, "mavlink.command", {**MISSION, "timeout": 4.0})
        await peer.until(lambda: peer.commands(SET_MODE))
        began = time.monotonic()
        frames = order(peer, 512, param1=33.0) + order(peer, ARM_DISARM, param2=FORCE)
        await petal.send("vehicle", "mavlink.send", frames, content_type=CONTENT_TYPE)
        await peer.until(lambda: peer.commands(ARM_DISARM))
        assert time.monotonic() - began < 2.0
        await outcome(slow)


async def test_a_stop_among_frames_leaves_also_beside_what_was_overtaken(server: RealServer, bus_name: str) -> None:
    """The record is older than another stop; its arm does not leave, its stop does."""
    async with (
        rig(server, bus_name) as vehicle,
        Bus(server.url, app="petal", bus=bus_name) as petal,
    ):
        peer = await vehicle.scripted(silent)
        vehicle.handler.vehicle._procedures.downs._known = boot_clock_ns() + 60 * SECOND
        frames = order(peer, ARM_DISARM, param1=1.0) + order(peer, ARM_DISARM, param2=FORCE)
        with pytest.raises(ReplyError) as caught:
            await petal.request("vehicle", "mavlink.send", frames, content_type=CONTENT_TYPE, timeout=10)
        assert caught.value.error_code == "COMMAND_OVERTAKEN"
        await peer.until(lambda: peer.commands(ARM_DISARM))
        assert [command.param2 for command in peer.commands(ARM_DISARM)] == [FORCE]


async def test_a_bus_that_hangs_does_not_cut_off_a_stop(
    server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vehicle reports progress; telling that hangs, and the stop is still repeated until it is answered."""
    told: list[Any] = []

    async def hang(_context: Any, data: Any) -> None:
        told.append(data)
        await asyncio.sleep(60)

    monkeypatch.setattr("petalbus.handlers.mavlink.requests.replying.progress", hang)

    def slow(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG":
            peer.ack(message.command, IN_PROGRESS if len(peer.commands()) < 3 else 0)

    async with (
        rig(server, bus_name) as vehicle,
        Bus(server.url, app="human", bus=bus_name) as human,
    ):
        peer = await vehicle.scripted(slow)
        assert (await outcome(stop(human)))["status"] == "success"
        assert len(peer.commands()) == 3
        assert len(told) == 1


def test_when_an_order_was_given_is_known_of_this_boot_only() -> None:
    """A stamp from the future counts as now: it would end all that is given until then."""

    def record(**fields: Any) -> Record:
        return Record(id="1", type="command", source="gcs", **fields)

    now = boot_clock_ns()
    assert given_at(record(boot_id=BOOT_ID, mono=now - 5)) == Given(now - 5, "gcs")
    ahead = given_at(record(boot_id=BOOT_ID, mono=now + 10**15))
    assert ahead is not None
    assert ahead.at < now + 10**12
    assert given_at(record(boot_id=BOOT_ID)) is None
    assert given_at(record(mono=5)) is None
    assert given_at(record(boot_id="0123456789ab", mono=5)) is None


@pytest.mark.parametrize("kind", ["stop", "raw"])
async def test_a_stop_from_a_station_whose_clock_is_late_ends_what_waits(
    server: RealServer, bus_name: str, kind: str
) -> None:
    """It compared its clock with ours over a slow link; by its stamp the stop is older than the arm that waits."""
    async with (
        rig(server, bus_name, times=PATIENT) as vehicle,
        Bus(server.url, app="gcs", bus=bus_name) as gcs,
        Bus(server.url, app="human", bus=bus_name) as human,
    ):
        human.clock.offset = -5 * SECOND
        peer = await vehicle.scripted(only(ARM_DISARM))
        async with beating(peer):
            slow = ask(gcs, "mavlink.command", {**MISSION, "timeout": 1.5})
            await peer.until(lambda: peer.commands(SET_MODE))
            arm = ask(gcs, "command", {"command": "arm"})
            await asyncio.sleep(0.2)
            if kind == "raw":
                stopped = ask(human, "mavlink.command", {"command": ARM_DISARM, "params": [0.0, FORCE]})
                assert (await outcome(stopped))["result_code"] == 0
            else:
                assert (await outcome(stop(human)))["status"] == "success"
            assert await outcome(arm) == "COMMAND_OVERTAKEN"
            assert all(is_stop(one) for one in peer.commands(ARM_DISARM))
            assert await outcome(slow) == "OUTCOME_UNKNOWN"
