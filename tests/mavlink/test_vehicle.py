"""Commands and acknowledgements, against a scripted vehicle that speaks through pymavlink."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from mavlink.peer import (
    ACCEPTED,
    ARDUPILOT,
    ARM_DISARM,
    IN_PROGRESS,
    LAND,
    PX4,
    REQUEST_MESSAGE,
    SET_MODE,
    TAKEOFF,
    Peer,
    obedient,
)
from petalbus.handlers.mavlink.commands import Command, CommandTimes, Target
from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, NotConnected, OrderOvertaken
from petalbus.handlers.mavlink.orders import Order, Verb
from petalbus.handlers.mavlink.vehicle import Step

ARM, DISARM, STOP = Order(Verb.ARM), Order(Verb.DISARM), Order(Verb.EMERGENCY_STOP)
Connect = Callable[..., Any]


async def steps_of(vehicle: Any, order: Order) -> list[Step]:
    async with aclosing(vehicle.run(order)) as steps:
        return [step async for step in steps]


def running(vehicle: Any, order: Order) -> asyncio.Task[list[Step]]:
    return asyncio.create_task(steps_of(vehicle, order), name=f"test.{order.verb}")


def silent(peer: Peer, message: Any) -> None:
    """Answer nothing."""


def brief(steps: list[Step]) -> list[tuple[str, int, bool]]:
    return [(step.stage, step.ack.result, step.last) for step in steps]


class TestProcedures:
    """What leaves for the vehicle, and in which order."""

    async def test_arm_goes_to_the_autopilot_and_its_acknowledgement_is_the_outcome(self, connected: Connect) -> None:
        station, peer = await connected()
        assert brief(await steps_of(station.vehicle, ARM)) == [("arm", ACCEPTED, True)]
        (command,) = peer.commands()
        assert (command.command, command.param1, command.param2) == (ARM_DISARM, 1.0, 0.0)
        assert (command.target_system, command.target_component, command.confirmation) == (1, 1, 0)

    async def test_takeoff_on_px4_arms_first_and_climbs_above_the_sea(self, connected: Connect) -> None:
        station, peer = await connected()
        told = brief(await steps_of(station.vehicle, Order(Verb.TAKEOFF, 10.0)))
        assert told == [("arm", ACCEPTED, False), ("takeoff", ACCEPTED, True)]
        arm, takeoff = peer.commands()
        assert (arm.command, takeoff.command) == (ARM_DISARM, TAKEOFF)
        assert takeoff.param7 == pytest.approx(510.0)
        assert math.isnan(takeoff.param5)
        assert math.isnan(takeoff.param6)

    async def test_takeoff_on_ardupilot_is_guided_and_above_home(self, connected: Connect) -> None:
        station, peer = await connected(heartbeat={"autopilot": ARDUPILOT, "custom_mode": 0})
        told = brief(await steps_of(station.vehicle, Order(Verb.TAKEOFF, 10.0)))
        assert told == [("mode", ACCEPTED, False), ("arm", ACCEPTED, False), ("takeoff", ACCEPTED, True)]
        mode, _, takeoff = peer.commands()
        assert (mode.command, mode.param1, mode.param2) == (SET_MODE, 1.0, 4.0)
        assert (takeoff.param5, takeoff.param6, takeoff.param7) == (0.0, 0.0, 10.0)

    async def test_an_armed_vehicle_is_not_armed_again(self, connected: Connect) -> None:
        station, peer = await connected(heartbeat={"armed": True})
        assert brief(await steps_of(station.vehicle, Order(Verb.TAKEOFF, 3.0))) == [("takeoff", ACCEPTED, True)]
        assert len(peer.commands()) == 1

    async def test_an_acknowledged_arm_counts_before_the_next_heartbeat(self, connected: Connect) -> None:
        station, peer = await connected()
        await steps_of(station.vehicle, ARM)
        await steps_of(station.vehicle, Order(Verb.TAKEOFF, 3.0))
        assert [command.command for command in peer.commands()] == [ARM_DISARM, TAKEOFF]

    async def test_in_the_air_the_altitude_counts_from_home(self, connected: Connect) -> None:
        station, peer = await connected(heartbeat={"armed": True})
        peer.send(peer.mav.extended_sys_state_encode(0, 2))
        peer.position(alt=530.0, relative=30.0)
        await asyncio.sleep(0.05)
        await steps_of(station.vehicle, Order(Verb.TAKEOFF, 40.0))
        assert peer.commands(TAKEOFF)[0].param7 == pytest.approx(540.0)

    async def test_an_untold_position_is_asked_for(self, open_station: Connect, open_peer: Connect) -> None:
        def answer(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG" and message.command == REQUEST_MESSAGE:
                assert message.param1 == 33
                peer.position(alt=100.0)
            obedient(peer, message)

        station = await open_station()
        peer = await open_peer(remote=station.address, on_message=answer)
        peer.heartbeat()
        assert await station.vehicle.wait_connected(5.0)
        await steps_of(station.vehicle, Order(Verb.TAKEOFF, 10.0))
        assert peer.commands(TAKEOFF)[0].param7 == pytest.approx(110.0)

    async def test_land(self, connected: Connect) -> None:
        station, peer = await connected(heartbeat={"armed": True})
        assert brief(await steps_of(station.vehicle, Order(Verb.LAND))) == [("land", ACCEPTED, True)]
        assert [command.command for command in peer.commands()] == [LAND]

    @pytest.mark.parametrize("result", [1, 2, 3, 4])
    async def test_a_refusal_ends_the_order(self, connected: Connect, result: int) -> None:
        def refuse(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG":
                peer.ack(message.command, result)

        station, peer = await connected(on_message=refuse)
        assert brief(await steps_of(station.vehicle, Order(Verb.TAKEOFF, 5.0))) == [("arm", result, True)]
        assert len(peer.commands()) == 1, "nothing follows a refused arming"


class TestOnce:
    """A command leaves once: whether an unanswered one was executed, nobody can know."""

    async def test_no_answer_means_outcome_unknown_and_no_second_sending(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        began = time.monotonic()
        with pytest.raises(CommandOutcomeUnknown, match=r"MAV_CMD_COMPONENT_ARM_DISARM .* may or may not") as caught:
            await steps_of(station.vehicle, ARM)
        assert 0.35 < time.monotonic() - began < 2.0
        assert caught.value.sent == 1
        await asyncio.sleep(0.5)
        assert len(peer.commands()) == 1

    async def test_three_seconds_are_the_default(self) -> None:
        assert CommandTimes().answer == 3.0

    async def test_what_is_declared_idempotent_is_repeated_with_the_confirmation_counter(
        self, connected: Connect
    ) -> None:
        def third_time(peer: Peer, message: Any) -> None:
            if len(peer.commands()) == 3:
                obedient(peer, message)

        station, peer = await connected(on_message=third_time)
        command = Command(REQUEST_MESSAGE, (33.0,), idempotent=True)
        async with aclosing(station.vehicle.client.run(command, Target(1))) as acks:
            results = [ack.result async for ack in acks]
        assert results == [ACCEPTED]
        assert [message.confirmation for message in peer.commands()] == [0, 1, 2]

    async def test_one_of_a_kind_at_a_time(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        first, second = running(station.vehicle, ARM), running(station.vehicle, ARM)
        await peer.until(peer.commands)
        await asyncio.sleep(0.1)
        assert len(peer.commands()) == 1, "the second waits for the first one's answer"
        peer.ack(ARM_DISARM)
        await first
        await peer.until(lambda: len(peer.commands()) == 2)
        peer.ack(ARM_DISARM)
        await second

    async def test_different_kinds_do_not_wait_for_each_other(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        arm, land = running(station.vehicle, ARM), running(station.vehicle, Order(Verb.LAND))
        await peer.until(lambda: len(peer.commands()) == 2)
        peer.ack(LAND)
        assert brief(await land) == [("land", ACCEPTED, True)]
        peer.ack(ARM_DISARM)
        assert brief(await arm) == [("arm", ACCEPTED, True)]

    async def test_a_cancelled_order_leaves_no_waiter_behind(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        task = running(station.vehicle, ARM)
        await peer.until(peer.commands)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        peer.on_message = obedient
        land = await steps_of(station.vehicle, Order(Verb.LAND))
        assert brief(land) == [("land", ACCEPTED, True)]
        assert not station.vehicle.client._waiters


class TestMatching:
    """Only the target's answer to us counts."""

    @pytest.mark.parametrize(
        "wrong",
        [
            {"system": 9},
            {"component": 154},
            {"to": (250, 190)},
            {"to": (2, 141)},
        ],
    )
    async def test_an_answer_from_or_to_somebody_else_is_none(self, connected: Connect, wrong: dict[str, Any]) -> None:
        def answer(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG":
                peer.ack(message.command, 4, **wrong)
                peer.ack(LAND, 4)
                peer.ack(message.command, ACCEPTED)

        station, _ = await connected(on_message=answer)
        assert brief(await steps_of(station.vehicle, ARM)) == [("arm", ACCEPTED, True)]

    async def test_an_answer_without_target_fields_counts(self, connected: Connect) -> None:
        """MAVLink 1 has no such fields: they read as zero."""

        def answer(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG":
                peer.ack(message.command, to=(0, 0))

        station, _ = await connected(on_message=answer)
        assert brief(await steps_of(station.vehicle, ARM)) == [("arm", ACCEPTED, True)]

    async def test_an_answer_that_is_there_at_once_is_not_missed(self, connected: Connect) -> None:
        """The waiter stands before the command leaves, and duplicates of the answer do no harm."""

        def twice(peer: Peer, message: Any) -> None:
            obedient(peer, message)
            obedient(peer, message)

        station, _ = await connected(on_message=twice)
        for _ in range(20):
            assert (await steps_of(station.vehicle, Order(Verb.LAND)))[-1].ack.result == ACCEPTED


class TestProgress:
    """IN_PROGRESS is told, and prolongs the wait."""

    async def test_progress_then_result(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        task = running(station.vehicle, Order(Verb.LAND))
        await peer.until(peer.commands)
        for percent in (10, 60, 255):
            await asyncio.sleep(0.25)
            peer.ack(LAND, IN_PROGRESS, progress=percent)
        await asyncio.sleep(0.45)
        peer.ack(LAND)
        steps = await task
        assert brief(steps)[-1] == ("land", ACCEPTED, True)
        assert [step.ack.progress for step in steps] == [10, 60, None, None]
        assert [step.last for step in steps] == [False, False, False, True]
        assert len(peer.commands()) == 1

    async def test_progress_that_stops_is_an_unknown_outcome(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent)
        task = running(station.vehicle, Order(Verb.LAND))
        await peer.until(peer.commands)
        peer.ack(LAND, IN_PROGRESS, progress=10)
        with pytest.raises(CommandOutcomeUnknown):
            await task

    async def test_progress_without_end_is_bounded(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent, times=CommandTimes(answer=0.2, progress=0.3, whole=0.6))
        task = running(station.vehicle, Order(Verb.LAND))
        await peer.until(peer.commands)
        while not task.done():
            peer.ack(LAND, IN_PROGRESS, progress=10)
            await asyncio.sleep(0.05)
        with pytest.raises(CommandOutcomeUnknown):
            await task


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
        station, peer = await connected()
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
