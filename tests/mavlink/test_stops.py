"""An emergency stop while other things go on: second copies of acknowledgements, motor tests, others' stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mavlink.drive import ARM, DISARM, STOP, Connect, brief, running, silent, steps_of
from mavlink.ground import BOTH, Ground
from mavlink.peer import ACCEPTED, ARDUPILOT, ARM_DISARM, IN_PROGRESS, LAND, SET_MODE, Peer, obedient, truthful
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown
from petalbus.handlers.mavlink.flight.commands import Command, CommandTimes, Target
from petalbus.handlers.mavlink.flight.orders import Order, Verb
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot

from support.mavlink_rig import Rig, rig
from support.servers import RealServer

DO_MOTOR_TEST, ACTUATOR_TEST, FLIGHTTERMINATION = 209, 310, 185
FORCE = 21196.0
REJECTED, UNSUPPORTED = 1, 3


def stops(peer: Peer) -> list[Any]:
    return [message for message in peer.commands(ARM_DISARM) if message.param2 == FORCE]


class TestSecondCopies:
    """PX4 acknowledges on each wire that has heard us, and what was repeated is acknowledged several times."""

    async def test_an_arms_second_acknowledgement_does_not_end_a_stop(self, connected: Connect) -> None:
        """The stop goes on, until a heartbeat says that the motors stand."""
        station, peer = await connected(on_message=truthful)
        assert brief(await steps_of(station.vehicle, ARM)) == [("arm", ACCEPTED, True)]
        peer.on_message = silent
        stop = running(station.vehicle, STOP)
        await peer.until(lambda: stops(peer))
        peer.ack(ARM_DISARM)  # the arm's once more, from the slower wire
        peer.heartbeat(armed=True)
        seen = len(stops(peer))
        await peer.until(lambda: len(stops(peer)) >= seen + 2)
        assert not stop.done()
        assert station.vehicle.state.armed
        peer.on_message = truthful
        assert brief(await stop) == [("emergency_stop", ACCEPTED, True)]
        assert not station.vehicle.state.armed

    async def test_a_refused_disarms_second_acknowledgement_does_not_end_a_stop(self, connected: Connect) -> None:
        """In the air a disarm is refused; the stop that follows is not told as failed."""
        station, peer = await connected(on_message=silent, heartbeat={"armed": True})
        disarm = running(station.vehicle, DISARM)
        await peer.until(peer.commands)
        peer.ack(ARM_DISARM, REJECTED)
        assert brief(await disarm) == [("disarm", REJECTED, True)]
        stop = running(station.vehicle, STOP)
        await peer.until(lambda: stops(peer))
        peer.ack(ARM_DISARM, REJECTED)
        await asyncio.sleep(0.05)
        assert not stop.done()
        peer.on_message = truthful
        assert brief(await stop) == [("emergency_stop", ACCEPTED, True)]

    async def test_a_stops_second_acknowledgement_does_not_arm(self, connected: Connect) -> None:
        """One wire with a long way: the stop left several times, and is acknowledged as often."""
        station, peer = await connected(on_message=silent, heartbeat={"armed": True})
        stop = running(station.vehicle, STOP)
        await peer.until(lambda: len(stops(peer)) == 3)
        peer.ack(ARM_DISARM)
        assert brief(await stop) == [("emergency_stop", ACCEPTED, True)]
        arm = running(station.vehicle, ARM)
        await peer.until(lambda: peer.commands()[-1].param1 == 1.0)
        peer.ack(ARM_DISARM)
        peer.heartbeat(armed=False)
        with pytest.raises(CommandOutcomeUnknown, match="may belong to an earlier command"):
            await arm

    async def test_a_stop_that_stands_alone_believes_its_acknowledgement(self, connected: Connect) -> None:
        """Nothing was armed or disarmed lately: no heartbeat is waited for."""
        station, peer = await connected(heartbeat={"armed": True})
        began = time.monotonic()
        assert brief(await steps_of(station.vehicle, STOP)) == [("emergency_stop", ACCEPTED, True)]
        assert time.monotonic() - began < 0.3
        assert len(stops(peer)) == 1

    async def test_a_stop_that_is_refused_again_and_again_is_told_so(self, connected: Connect) -> None:
        """Also where the first refusal may be an older command's."""

        def refuse(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG":
                peer.ack(message.command, UNSUPPORTED)

        station, peer = await connected(on_message=refuse)
        await steps_of(station.vehicle, ARM)
        assert brief(await steps_of(station.vehicle, STOP)) == [("emergency_stop", UNSUPPORTED, True)]
        assert len(stops(peer)) >= 3


class TestMotorTests:
    """A forced disarm does not end a motor test; the stop does."""

    @BOTH
    async def test_a_stop_ends_a_motor_test(self, open_ground: Callable[..., Any], autopilot: Autopilot) -> None:
        ground: Ground
        ground, sim = await open_ground(autopilot)
        seconds = 3.0 if autopilot.name == "px4" else 9.0
        turn = Order(Verb.MOTOR_TEST, motor=2, throttle=0.1, seconds=seconds)
        assert brief(await steps_of(ground.vehicle, turn)) == [("motor_test", ACCEPTED, True)]
        assert list(sim.flight.airframe.turning) == [2]
        began = time.monotonic()
        assert brief(await steps_of(ground.vehicle, STOP)) == [("emergency_stop", ACCEPTED, True)]
        assert not sim.flight.airframe.turning
        assert time.monotonic() - began < 2.5, "on ArduPilot the next heartbeat tells it"

    async def test_px4_turns_several_motors_and_all_are_ended(self, open_ground: Callable[..., Any]) -> None:
        ground, sim = await open_ground(PX4)
        for motor in (1, 2, 3):
            await steps_of(ground.vehicle, Order(Verb.MOTOR_TEST, motor=motor, throttle=0.1, seconds=3.0))
        assert sorted(sim.flight.airframe.turning) == [1, 2, 3]
        assert brief(await steps_of(ground.vehicle, STOP)) == [("emergency_stop", ACCEPTED, True)]
        assert not sim.flight.airframe.turning

    async def test_the_forced_disarm_leaves_first(self, connected: Connect) -> None:
        station, peer = await connected(heartbeat={"autopilot": ARDUPILOT}, times=CommandTimes(again=0.0))
        await steps_of(station.vehicle, Order(Verb.MOTOR_TEST, motor=2, throttle=0.1, seconds=5.0))
        await steps_of(station.vehicle, STOP)
        test, stop, end = peer.commands()
        assert (test.command, test.param3, test.param4) == (DO_MOTOR_TEST, pytest.approx(10.0), 5.0)
        assert (stop.command, stop.param2) == (ARM_DISARM, FORCE)
        assert (end.command, end.param1, end.param3, end.param4) == (DO_MOTOR_TEST, 2.0, 0.0, 0.0)

    async def test_its_end_is_repeated_and_a_stop_is_no_success_without_it(self, connected: Connect) -> None:
        """The disarm is accepted, the end is not acknowledged: a motor may turn, and that is told."""

        def deaf(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG" and message.command == ARM_DISARM:
                peer.ack(ARM_DISARM)

        times = CommandTimes(answer=0.9, repeat=0.2, confirm=0.4)
        station, peer = await connected(times=times, heartbeat={"autopilot": ARDUPILOT})
        await steps_of(station.vehicle, Order(Verb.MOTOR_TEST, motor=2, throttle=0.1, seconds=5.0))
        peer.on_message = deaf
        with pytest.raises(CommandOutcomeUnknown, match="motor may turn"):
            await steps_of(station.vehicle, STOP)
        assert len(peer.commands(DO_MOTOR_TEST)) >= 4
        assert len(stops(peer)) == 1

    async def test_two_stops_at_once_do_not_flood_the_wire(self, connected: Connect) -> None:
        """Two persons press it: the ends of the motor test overtake each other, and leave at their pace."""

        def deaf(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG" and message.command == ARM_DISARM:
                truthful(peer, message)

        station, peer = await connected(heartbeat={"autopilot": ARDUPILOT}, times=CommandTimes(answer=0.9, repeat=0.2))
        await steps_of(station.vehicle, Order(Verb.MOTOR_TEST, motor=2, throttle=0.1, seconds=5.0))
        peer.on_message = deaf
        both = running(station.vehicle, STOP), running(station.vehicle, STOP)
        results = await asyncio.gather(*both, return_exceptions=True)
        assert all(isinstance(result, CommandOutcomeUnknown) for result in results)
        assert len(peer.commands(DO_MOTOR_TEST)) < 20

    async def test_on_px4_a_refused_end_is_an_answer(self, connected: Connect) -> None:
        """Only a vehicle on which no test runs refuses it: it flies, or does not know the command."""

        def refuse(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_LONG":
                peer.ack(message.command, ACCEPTED if message.command == ARM_DISARM else 4)

        station, _ = await connected(on_message=refuse)
        await steps_of(station.vehicle, Order(Verb.MOTOR_TEST, motor=1, throttle=0.1, seconds=1.0))
        assert brief(await steps_of(station.vehicle, STOP)) == [("emergency_stop", ACCEPTED, True)]

    async def test_another_programs_motor_test_is_ended_too(self, connected: Connect) -> None:
        station, peer = await connected()
        station.vehicle.foreign_command(ACTUATOR_TEST, [0.2, 3.0, 0.0, 0.0, 4.0, 0.0, 0.0])()
        await steps_of(station.vehicle, STOP)
        (end,) = peer.commands(ACTUATOR_TEST)
        assert (end.param2, end.param5) == (0.0, 4.0)

    async def test_without_a_motor_test_nothing_else_leaves(self, connected: Connect) -> None:
        station, peer = await connected()
        await steps_of(station.vehicle, STOP)
        assert [message.command for message in peer.commands()] == [ARM_DISARM]


class TestDoubt:
    """How long an acknowledgement may be an earlier command's."""

    async def test_it_counts_from_when_a_command_was_given_up(self, connected: Connect) -> None:
        """A raw arm with a long time-out: its late acknowledgement is not the stop's."""
        times = CommandTimes(answer=2.0, repeat=0.1, confirm=1.0, doubt=0.6)
        station, peer = await connected(on_message=silent, times=times, heartbeat={"armed": True})
        with pytest.raises(CommandOutcomeUnknown):
            async for _ in station.vehicle.client.run(Command(ARM_DISARM, (1.0,), answer=0.8), Target(1)):
                pass
        stop = running(station.vehicle, STOP)
        await peer.until(lambda: stops(peer))
        peer.ack(ARM_DISARM)
        await asyncio.sleep(0.1)
        assert not stop.done()
        peer.on_message = truthful
        assert brief(await stop) == [("emergency_stop", ACCEPTED, True)]

    async def test_nothing_is_kept_for_ever(self, connected: Connect) -> None:
        """Other programs may invent any number of kinds of commands."""
        station, peer = await connected(times=CommandTimes(doubt=0.05, again=0.05))
        client = station.vehicle.client
        for number in range(3000):
            client.note_foreign((1, 1, number))
            if number == 1500:
                await asyncio.sleep(0.1)
        assert len(client._doubt) <= 1600
        for number in (600, 601, 602):
            async for _ in client.run(Command(number), Target(1)):
                pass
        assert len(peer.commands()) == 3
        assert not client._turns
        assert not client._waiters

    async def test_a_long_wait_for_a_stop_is_no_deep_one(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent, times=CommandTimes(answer=3.0, repeat=0.2, confirm=1.0))
        stop = running(station.vehicle, STOP)
        await peer.until(lambda: stops(peer))

        async def disarm() -> None:
            async for _ in station.vehicle.client.run(Command(ARM_DISARM, (0.0,), patience=0.0005), Target(1)):
                pass

        waiting = asyncio.create_task(disarm())
        await asyncio.wait([waiting], timeout=2.0)
        assert not waiting.done()
        for task in (waiting, stop):
            task.cancel()
        await asyncio.gather(waiting, stop, return_exceptions=True)
        assert not station.vehicle.client._turns


class TestBeside:
    """Commands of one kind: who waits, who does not, and that nothing but another stop ends a stop."""

    async def test_another_programs_forced_disarm_does_not_end_a_stop(self, connected: Connect) -> None:
        """It leaves once; the stop beside it is still repeated until it is answered."""
        station, peer = await connected(on_message=silent, heartbeat={"armed": True})
        stop = running(station.vehicle, STOP)
        await peer.until(lambda: stops(peer))
        foreign = Command(ARM_DISARM, (0.0, FORCE), urgent=True, answer=0.1)
        with pytest.raises(CommandOutcomeUnknown):
            async for _ in station.vehicle.client.run(foreign, Target(1)):
                pass
        seen = len(stops(peer))
        await peer.until(lambda: len(stops(peer)) > seen)
        peer.on_message = truthful
        assert brief(await stop) == [("emergency_stop", ACCEPTED, True)]

    @pytest.mark.parametrize(
        ("order", "number"), [(DISARM, ARM_DISARM), (Order(Verb.LAND), LAND), (Order(Verb.RETURN), 20)]
    )
    async def test_an_order_to_come_down_waits_a_second_for_what_is_never_answered(
        self, connected: Connect, order: Order, number: int
    ) -> None:
        station, peer = await connected(on_message=silent, heartbeat={"armed": True})

        async def ask() -> None:
            async for _ in station.vehicle.client.run(Command(number, (1.0,), answer=60.0), Target(1)):
                pass

        asking = asyncio.create_task(ask())
        await peer.until(peer.commands)
        began = time.monotonic()
        down = running(station.vehicle, order)
        await peer.until(lambda: len(peer.commands(number)) == 2)
        assert 0.9 < time.monotonic() - began < 3.0
        with pytest.raises(CommandOutcomeUnknown, match="overtaken"):
            await asking
        peer.ack(number)
        await asyncio.sleep(0.05)
        peer.heartbeat(armed=False)
        assert brief(await down) == [(order.verb.value, ACCEPTED, True)]

    async def test_what_overtakes_a_change_of_mode_is_confirmed_by_a_heartbeat(self, connected: Connect) -> None:
        """The acknowledgement may be that of the change before; hold is (4, 3) on PX4."""
        station, peer = await connected(on_message=silent)

        async def ask() -> None:
            async for _ in station.vehicle.client.run(Command(SET_MODE, (1.0, 4.0, 4.0), answer=60.0), Target(1)):
                pass

        asking = asyncio.create_task(ask())
        await peer.until(peer.commands)
        for mode, told in ((4, "mission"), (3, "hold")):
            hold = running(station.vehicle, Order(Verb.HOLD))
            sent = len(peer.commands(SET_MODE))
            await peer.until(lambda sent=sent: len(peer.commands(SET_MODE)) > sent)  # type: ignore[misc]  # a default binds it
            peer.ack(SET_MODE)
            await asyncio.sleep(0.05)
            peer.heartbeat(custom_mode=4 << 16 | mode << 24)
            if told == "hold":
                assert brief(await hold) == [("hold", ACCEPTED, True)]
            else:
                with pytest.raises(CommandOutcomeUnknown, match="in that mode"):
                    await hold
        await asyncio.gather(asking, return_exceptions=True)

    async def test_it_does_not_overtake_a_stop(self, connected: Connect) -> None:
        """That one stops more, and is still being repeated: a disarm waits until it has ended."""
        times = CommandTimes(answer=2.0, repeat=0.2, confirm=0.4)
        station, peer = await connected(on_message=silent, times=times, heartbeat={"armed": True})
        stop = running(station.vehicle, STOP)
        await peer.until(lambda: stops(peer))
        disarm = running(station.vehicle, DISARM)
        await asyncio.wait([stop], timeout=10)
        count = len(stops(peer))
        assert count >= 8
        assert stops(peer) == peer.commands()[:count], "the disarm came after all of them"
        with pytest.raises(CommandOutcomeUnknown, match=r"time\(s\)"):
            await stop
        disarm.cancel()
        await asyncio.gather(disarm, return_exceptions=True)

    async def test_a_vehicle_that_reports_progress_is_told_the_stop_beside_it(self, connected: Connect) -> None:
        station, peer = await connected(on_message=silent, heartbeat={"armed": True})
        landing = running(station.vehicle, Order(Verb.LAND))
        await peer.until(lambda: peer.commands(LAND))
        peer.ack(LAND, IN_PROGRESS)
        peer.on_message = obedient
        assert brief(await steps_of(station.vehicle, STOP)) == [("emergency_stop", ACCEPTED, True)]
        peer.ack(LAND)
        await landing


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


@pytest.mark.parametrize(("number", "params"), [(ARM_DISARM, [0.0, FORCE]), (FLIGHTTERMINATION, [1.0])])
async def test_what_cuts_the_motors_leaves_at_once(vehicle: Rig, number: int, params: list[float]) -> None:
    """I4: another program's own, behind one of its kind that it gave a minute to be answered."""
    peer = await vehicle.scripted(silent)
    async with Bus(vehicle.server.url, app="petal", bus=vehicle.bus_name) as petal:

        def ask(values: list[float]) -> asyncio.Task[Any]:
            data = {"command": number, "params": values, "timeout": 60.0}
            return asyncio.create_task(petal.request("vehicle", "mavlink.command", data, timeout=8))

        first = ask([2.0])
        await peer.until(lambda: len(peer.commands(number)) == 1)
        began = time.monotonic()
        second = ask(params)
        await peer.until(lambda: len(peer.commands(number)) == 2)
        assert time.monotonic() - began < 0.9
        await asyncio.wait([first], timeout=5)
        assert getattr(first.exception(), "error_code", None) == "OUTCOME_UNKNOWN"
        peer.ack(number)
        assert (await second).data["result"] == "MAV_RESULT_ACCEPTED"
