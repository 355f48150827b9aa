"""Commands and acknowledgements, against a scripted vehicle that speaks through pymavlink."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from typing import Any

import pytest

from mavlink.drive import ARM, Connect, brief, running, silent, steps_of
from mavlink.peer import (
    ACCEPTED,
    ARDUPILOT,
    ARM_DISARM,
    IN_PROGRESS,
    LAND,
    REQUEST_MESSAGE,
    SET_MODE,
    TAKEOFF,
    Peer,
    obedient,
    truthful,
)
from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown
from petalbus.handlers.mavlink.flight.commands import Command, CommandTimes, Target
from petalbus.handlers.mavlink.flight.orders import Order, Verb


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
        station, peer = await connected(on_message=truthful, heartbeat={"armed": True})
        peer.send(peer.mav.extended_sys_state_encode(0, 2))
        peer.position(alt=530.0, relative=30.0)
        await asyncio.sleep(0.05)
        await steps_of(station.vehicle, Order(Verb.GOTO, 40.0, latitude=1.0, longitude=2.0))
        assert peer.of("COMMAND_INT")[0].z == pytest.approx(540.0)

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
        await asyncio.sleep(0.05)
        peer.heartbeat(armed=True)
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
