"""What must not go wrong: emergency stops, orders that overtake others, doubtful answers, a vehicle that is gone."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest

from mavlink.drive import ARM, DISARM, STOP, Connect, brief, running, silent, steps_of
from mavlink.peer import (
    ACCEPTED,
    ARM_DISARM,
    LAND,
    PX4,
    REQUEST_MESSAGE,
    TAKEOFF,
    Peer,
    obedient,
    truthful,
)
from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, NotConnected, OrderOvertaken
from petalbus.handlers.mavlink.flight.orders import Order, Verb


class TestEmergency:
    """An emergency stop waits for nobody."""

    async def test_it_is_a_forced_disarm(self, connected: Connect) -> None:
        station, peer = await connected(heartbeat={"armed": True})
        assert brief(await steps_of(station.vehicle, STOP)) == [("emergency_stop", ACCEPTED, True)]
        (command,) = peer.commands()
        assert (command.command, command.param1, command.param2) == (ARM_DISARM, 0.0, 21196.0)
        assert command.target_component == 1

    async def test_it_leaves_while_an_arm_waits_and_is_not_fooled_by_that_ones_answer(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        arm = running(station.vehicle, ARM)
        await peer.until(peer.commands)
        stop = running(station.vehicle, STOP)
        await peer.until(lambda: len(peer.commands()) >= 2)
        assert peer.commands()[1].param2 == 21196.0
        with pytest.raises(CommandOutcomeUnknown, match="overtaken"):
            await arm
        peer.ack(ARM_DISARM)  # the answer to the arm, most likely
        peer.heartbeat(armed=True)
        await asyncio.sleep(0.15)
        assert not stop.done(), "the vehicle says that it is armed"
        peer.on_message = obedient
        await asyncio.sleep(0.05)
        peer.heartbeat(armed=False)
        assert brief(await stop) == [("emergency_stop", ACCEPTED, True)]

    async def test_it_is_repeated_until_it_is_answered(self, connected: Connect) -> None:
        def second_time(peer: Peer, message: Any) -> None:
            if len(peer.commands()) == 2:
                obedient(peer, message)

        station, peer = await connected(on_message=second_time)
        assert brief(await steps_of(station.vehicle, STOP)) == [("emergency_stop", ACCEPTED, True)]
        assert [message.confirmation for message in peer.commands()] == [0, 1]

    async def test_it_is_sent_to_a_vehicle_that_fell_silent(self, connected: Connect) -> None:
        station, peer = await connected(lost_after=0.05)
        await asyncio.sleep(0.1)
        assert not station.vehicle.connected
        assert brief(await steps_of(station.vehicle, STOP)) == [("emergency_stop", ACCEPTED, True)]
        with pytest.raises(NotConnected, match="last heard"):
            await steps_of(station.vehicle, ARM)
        assert len(peer.commands()) == 1

    async def test_a_refused_stop_is_told(self, connected: Connect) -> None:
        def refuse(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG":
                peer.ack(message.command, 3)

        station, _ = await connected(on_message=refuse)
        assert brief(await steps_of(station.vehicle, STOP)) == [("emergency_stop", 3, True)]


class TestOvertaking:
    """A takeoff consists of several commands; an order to come down ends it between two of them."""

    @pytest.mark.parametrize("down", [Verb.LAND, Verb.EMERGENCY_STOP, Verb.DISARM])
    async def test_takeoff_does_not_go_on_after_an_order_to_come_down(self, connected: Connect, down: Verb) -> None:
        station, peer = await connected(on_message=truthful)
        async with aclosing(station.vehicle.run(Order(Verb.TAKEOFF, 5.0))) as steps:
            first = await anext(steps)
            assert (first.stage, first.last) == ("arm", False)
            await steps_of(station.vehicle, Order(down))
            with pytest.raises(OrderOvertaken):
                await anext(steps)
        assert not peer.commands(TAKEOFF)


class TestDoubt:
    """After an unanswered command its late answer may still come, and must not count for the next one."""

    async def test_a_late_arm_answer_is_not_taken_for_the_disarm_ones(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        with pytest.raises(CommandOutcomeUnknown):
            await steps_of(station.vehicle, ARM)
        disarm = running(station.vehicle, DISARM)
        await peer.until(lambda: len(peer.commands()) == 2)
        peer.ack(ARM_DISARM)
        peer.heartbeat(armed=True)
        with pytest.raises(CommandOutcomeUnknown, match="may belong to an earlier command"):
            await disarm

    async def test_a_heartbeat_removes_the_doubt(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        with pytest.raises(CommandOutcomeUnknown):
            await steps_of(station.vehicle, ARM)
        again = running(station.vehicle, ARM)
        await peer.until(lambda: len(peer.commands()) == 2)
        peer.ack(ARM_DISARM)
        await asyncio.sleep(0.05)
        peer.heartbeat(armed=True)
        assert brief(await again) == [("arm", ACCEPTED, True)]


class TestConnection:
    """Whether there is a vehicle, by monotonic time."""

    @pytest.mark.alone
    async def test_nobody_heard_is_a_clear_error_at_once(self, open_station: Connect) -> None:
        station = await open_station()
        for order in (ARM, STOP):
            began = time.monotonic()
            with pytest.raises(NotConnected, match="no vehicle was heard"):
                await steps_of(station.vehicle, order)
            assert time.monotonic() - began < 0.1

    async def test_a_silent_vehicle_is_gone_and_comes_back(self, connected: Connect) -> None:
        now = [100.0]
        station, peer = await connected(clock=lambda: now[0])
        now[0] += 3.9
        assert station.vehicle.connected
        now[0] += 0.2
        assert not station.vehicle.connected
        with pytest.raises(NotConnected, match=r"last heard 4\.1 s ago"):
            await steps_of(station.vehicle, ARM)
        peer.heartbeat()
        assert await station.vehicle.wait_connected(5.0)

    async def test_ground_stations_cameras_and_other_vehicles_are_not_the_vehicle(
        self, open_station: Connect, open_peer: Connect
    ) -> None:
        station = await open_station()
        peer = await open_peer(remote=station.address)
        peer.heartbeat(autopilot=8, system=255, component=190)
        peer.heartbeat(system=3, component=100)
        peer.heartbeat(system=5, autopilot=PX4)
        assert await station.vehicle.wait_connected(5.0)
        assert station.vehicle.state.system == 5
        peer.heartbeat(system=6)
        peer.heartbeat(system=5, armed=True)
        await asyncio.sleep(0.05)
        assert station.vehicle.state.system == 5, "the target does not change while the vehicle is there"
        assert station.vehicle.state.armed

    async def test_the_vehicle_can_be_named(self, open_station: Connect, open_peer: Connect) -> None:
        station = await open_station(target_system=6)
        peer = await open_peer(remote=station.address)
        peer.heartbeat(system=5)
        peer.heartbeat(system=6)
        assert await station.vehicle.wait_connected(5.0)
        assert station.vehicle.state.system == 6
        assert station.vehicle.describe()["system"] == 6


async def test_an_ordinary_command_never_cuts_off_an_emergency_stop(connected: Connect) -> None:
    """I4: an arm that comes while the stop is unanswered waits for its end; the stop goes on being repeated."""
    station, peer = await connected(on_message=silent)
    stopping = running(station.vehicle, STOP)
    await peer.until(lambda: len(peer.commands(ARM_DISARM)) >= 1)
    arming = running(station.vehicle, ARM)
    await asyncio.wait([stopping], timeout=5)
    with pytest.raises(CommandOutcomeUnknown) as unknown:
        await stopping
    assert unknown.value.sent >= 3
    stops = [message for message in peer.commands(ARM_DISARM) if message.param2 == 21196]
    assert len(stops) == unknown.value.sent
    await asyncio.gather(arming, return_exceptions=True)


async def test_an_arm_that_waits_does_not_leave_after_an_emergency_stop(connected: Connect) -> None:
    """Ordered before the stop, its turn comes after it: then it is given up."""
    station, peer = await connected(on_message=silent)
    disarming = running(station.vehicle, DISARM)
    await peer.until(lambda: len(peer.commands(ARM_DISARM)) == 1)
    arming = running(station.vehicle, ARM)
    await asyncio.sleep(0.05)
    stopping = running(station.vehicle, STOP)
    results = await asyncio.gather(disarming, arming, stopping, return_exceptions=True)
    assert isinstance(results[1], OrderOvertaken)
    assert not [message for message in peer.commands(ARM_DISARM) if message.param1 == 1]


async def test_an_emergency_stop_goes_on_trying_while_the_wire_is_away(connected: Connect) -> None:
    station, peer = await connected()
    send, station.link.transport.send = station.link.transport.send, lambda *_: False
    stopping = running(station.vehicle, STOP)
    await asyncio.sleep(0.15)
    assert not stopping.done()
    station.link.transport.send = send
    steps = await asyncio.wait_for(stopping, 5)
    assert steps[-1].ack.result == ACCEPTED
    assert len(peer.commands(ARM_DISARM)) == 1


@pytest.mark.parametrize("down", [Order(Verb.MODE, mode="land"), Order(Verb.HOLD), Order(Verb.RETURN)])
async def test_any_order_to_come_down_or_to_stay_ends_a_takeoff(connected: Connect, down: Order) -> None:
    def slow_arm(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG" and message.command != ARM_DISARM:
            peer.ack(message.command)

    station, peer = await connected(on_message=slow_arm)
    flying = running(station.vehicle, Order(Verb.TAKEOFF, 5.0))
    await peer.until(lambda: peer.commands(ARM_DISARM))
    await steps_of(station.vehicle, down)
    peer.ack(ARM_DISARM)
    with pytest.raises(OrderOvertaken):
        await flying
    assert peer.commands(TAKEOFF) == []


async def test_a_goto_that_waited_does_not_leave_after_a_landing(connected: Connect) -> None:
    """It asks for the position first; meanwhile the vehicle was told to land."""

    def deaf(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG" and message.command == LAND:
            peer.ack(LAND)

    station, peer = await connected(on_message=deaf, heartbeat={"armed": True})
    station.vehicle.state.position = None
    going = running(station.vehicle, Order(Verb.GOTO, 5.0, latitude=1.0, longitude=2.0))
    await peer.until(lambda: peer.commands(REQUEST_MESSAGE))
    await steps_of(station.vehicle, Order(Verb.LAND))
    peer.ack(REQUEST_MESSAGE)
    peer.position()
    with pytest.raises(OrderOvertaken):
        await going
    assert peer.of("COMMAND_INT") == []


async def test_a_goto_from_the_air_is_as_high_as_was_said_also_where_nobody_says_that_it_flies(
    connected: Connect,
) -> None:
    """Without EXTENDED_SYS_STATE the vehicle's own height must not count as that of the ground."""

    def obey(peer: Peer, message: Any) -> None:
        if message.get_type() in ("COMMAND_INT", "COMMAND_LONG"):
            peer.ack(message.command)

    station, peer = await connected(on_message=obey, heartbeat={"armed": True})
    peer.position(alt=150.0, relative=50.0)
    await asyncio.sleep(0.05)
    await steps_of(station.vehicle, Order(Verb.GOTO, 10.0, latitude=1.0, longitude=2.0))
    (sent,) = peer.of("COMMAND_INT")
    assert sent.z == pytest.approx(110.0)
