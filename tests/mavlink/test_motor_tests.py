"""An emergency stop while a motor test may be running: what proves that it has ended, and what does not (S-003)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mavlink.drive import ARM, STOP, Connect, brief, running, steps_of
from mavlink.ground import stop as end_task
from mavlink.peer import ACCEPTED, ARDUPILOT, ARM_DISARM, PX4, Peer, obedient
from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown
from petalbus.handlers.mavlink.flight.commands import CommandTimes
from petalbus.handlers.mavlink.flight.orders import Order, Verb
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT as SIM_ARDUPILOT
from petalbus.handlers.mavlink.sim.flight import FORCE

DO_MOTOR_TEST, ACTUATOR_TEST = 209, 310
FAILED = 4
QUICK = CommandTimes(answer=1.0, repeat=0.1, confirm=1.0)
STOPPED = [("emergency_stop", ACCEPTED, True)]
TURN = Order(Verb.MOTOR_TEST, motor=2, throttle=0.1, seconds=9.0)
_BEAT_S = 0.1


class Bench:
    """A vehicle on a bench, which tests motors as the real ones do, and beats ten times a second."""

    def __init__(self, peer: Peer, *, autopilot: int = ARDUPILOT, kind: int = 2) -> None:
        self.peer = peer
        self.turning: set[float] = set()
        self.armed = False
        self.kind = kind
        self.autopilot = autopilot
        self.loses: Callable[[Any], bool] = lambda _: False
        """Whether a command does not come in."""
        self.refuses = False
        """While a test runs any other is refused."""
        self.way = 0.0
        """So many seconds later its acknowledgements of tests arrive."""
        self.slow_wire: float | None = None
        """So much later its heartbeats come once more, over a second wire."""
        self.status = 3
        self.copies_after: float | None = None
        """So much later its acknowledgement of a test comes once more."""
        peer.on_message = self.obey

    def obey(self, peer: Peer, message: Any) -> None:
        if message.get_type() != "COMMAND_LONG" or self.loses(message):
            return
        if message.command == ARM_DISARM:
            self.armed = message.param1 == 1.0
        elif message.command == DO_MOTOR_TEST:
            if self.refuses and self.turning:
                peer.ack(DO_MOTOR_TEST, FAILED)
                return
            self.turning = {message.param1} if message.param4 > 0 else set()
        elif message.param2 > 0:
            self.turning.add(message.param5)
        else:
            self.turning.discard(message.param5)
        if self.way and message.command != ARM_DISARM:
            asyncio.get_running_loop().call_later(self.way, peer.ack, message.command)
        else:
            peer.ack(message.command)
        if self.copies_after is not None and message.command != ARM_DISARM:
            asyncio.get_running_loop().call_later(self.copies_after, peer.ack, message.command)

    def beat(self) -> None:
        """ArduPlane does not say that it tests, nor does PX4."""
        tests = bool(self.turning) and self.autopilot == ARDUPILOT and self.kind == 2
        base_mode = 1 | (128 if self.armed or tests else 0)
        heartbeat = self.peer.mav.heartbeat_encode(self.kind, self.autopilot, base_mode, 0, self.status, 3)
        self.peer.send(heartbeat)
        if self.slow_wire is not None:
            later = self.peer.mav.heartbeat_encode(self.kind, self.autopilot, base_mode, 0, self.status, 3)
            asyncio.get_running_loop().call_later(self.slow_wire, self.peer.send, later)

    async def live(self) -> None:
        while True:
            self.beat()
            await asyncio.sleep(_BEAT_S)

    def ends(self) -> list[Any]:
        """The ends of tests that left."""
        return [
            message
            for message in self.peer.commands()
            if (message.command == DO_MOTOR_TEST and message.param4 == 0.0)
            or (message.command == ACTUATOR_TEST and message.param2 == 0.0)
        ]


@pytest.fixture(name="on_bench")
async def _on_bench(connected: Connect) -> AsyncIterator[Callable[..., Any]]:
    tasks: list[asyncio.Task[None]] = []

    async def make(*, autopilot: int = ARDUPILOT, **more: Any) -> Any:
        times = more.pop("times", QUICK)
        station, peer = await connected(heartbeat={"autopilot": autopilot}, times=times)
        bench = Bench(peer, autopilot=autopilot, **more)
        tasks.append(asyncio.create_task(bench.live(), name="test.bench"))
        await asyncio.sleep(2 * _BEAT_S)
        return station, bench

    yield make
    for task in tasks:
        await end_task(task)


def is_end(message: Any) -> bool:
    return message.command == DO_MOTOR_TEST and message.param4 == 0.0


async def test_a_tests_late_acknowledgement_is_not_its_ends(on_bench: Callable[..., Any]) -> None:
    """The test runs and is not acknowledged yet; the first ends are lost, and then its acknowledgement comes."""
    station, bench = await on_bench()
    bench.loses = lambda message: is_end(message) and len(bench.ends()) <= 2
    answer, bench.peer.ack = bench.peer.ack, lambda *_: None  # type: ignore[method-assign]  # it is late
    test = running(station.vehicle, TURN)
    await bench.peer.until(lambda: bench.turning)
    bench.peer.ack = answer
    stop = running(station.vehicle, STOP)
    await bench.peer.until(bench.ends)
    answer(DO_MOTOR_TEST)
    assert brief(await stop) == STOPPED
    assert len(bench.ends()) >= 3
    assert not bench.turning
    await asyncio.gather(test, return_exceptions=True)


async def test_a_second_copy_of_a_tests_acknowledgement_is_not_its_ends(on_bench: Callable[..., Any]) -> None:
    """It comes half a second later, over the slower wire."""
    station, bench = await on_bench()
    bench.copies_after = 0.5
    await steps_of(station.vehicle, TURN)
    bench.copies_after = None
    bench.loses = lambda message: is_end(message) and len(bench.ends()) <= 2
    await asyncio.sleep(0.3)
    assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
    assert not bench.turning
    assert len(bench.ends()) >= 3


async def test_a_heartbeat_says_that_it_has_ended(on_bench: Callable[..., Any]) -> None:
    """One that is answered in doubt: no longer than until the next heartbeat."""
    station, bench = await on_bench()
    await steps_of(station.vehicle, TURN)
    began = time.monotonic()
    assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
    assert not bench.turning
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("kind", [2, 20], ids=["copter", "quadplane"])
async def test_a_refused_end_is_no_end(on_bench: Callable[..., Any], kind: int) -> None:
    """ArduPlane refuses each one while the test runs; and what is refused by an armed copter proves nothing, either."""
    station, bench = await on_bench(kind=kind)
    bench.refuses = True
    await steps_of(station.vehicle, TURN)
    assert bench.turning
    with pytest.raises(CommandOutcomeUnknown, match="motor may turn"):
        await steps_of(station.vehicle, STOP)
    assert len(bench.ends()) >= 3
    bench.turning.clear()  # its time is over
    bench.refuses = False
    assert brief(await steps_of(station.vehicle, STOP)) == STOPPED


async def test_a_refused_end_and_a_disarmed_copter_are_an_answer(on_bench: Callable[..., Any]) -> None:
    station, bench = await on_bench()
    await steps_of(station.vehicle, TURN)
    bench.turning = {0.0}
    bench.refuses = True
    stop = running(station.vehicle, STOP)
    await bench.peer.until(bench.ends)
    bench.turning.clear()
    bench.loses = is_end
    assert brief(await stop) == STOPPED


@pytest.mark.parametrize("others", [1, 3])
async def test_on_px4_one_motors_acknowledgement_is_not_anothers(on_bench: Callable[..., Any], others: int) -> None:
    """All ends are one kind of command; that of motor 2 is always lost."""
    station, bench = await on_bench(autopilot=PX4)
    for motor in range(1, 2 + others):
        await steps_of(station.vehicle, Order(Verb.MOTOR_TEST, motor=motor, throttle=0.1, seconds=3.0))
    bench.loses = lambda message: message.command == ACTUATOR_TEST and message.param5 == 2.0
    with pytest.raises(CommandOutcomeUnknown, match="motor may turn"):
        await steps_of(station.vehicle, STOP)
    assert bench.turning == {2.0}
    bench.loses = lambda _: False
    assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
    assert not bench.turning


async def test_on_px4_a_long_way_is_no_reason_for_doubt(on_bench: Callable[..., Any]) -> None:
    """Each of four motors needs three acknowledgements, which takes longer than one answer may."""
    station, bench = await on_bench(autopilot=PX4)
    for motor in range(1, 5):
        await steps_of(station.vehicle, Order(Verb.MOTOR_TEST, motor=motor, throttle=0.1, seconds=0.5))
    bench.way = 0.08  # 12 times this and a pause: more than the 1.0 s of an answer
    began = time.monotonic()
    assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
    assert time.monotonic() - began > QUICK.answer
    assert not bench.turning


async def test_several_motors_one_after_the_other_are_remembered_to_their_end(on_bench: Callable[..., Any]) -> None:
    """Eight motors of 10 s each, with pauses of 5 s: 115 s, and not 10."""
    station, bench = await on_bench()
    clock = time.monotonic
    station.vehicle.foreign_command(DO_MOTOR_TEST, [1.0, 0.0, 10.0, 10.0, 8.0])()
    station.vehicle._procedures._stopping._tests._clock = lambda: clock() + 114.0
    assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
    assert bench.ends()


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e9, -1.0])
async def test_a_test_for_no_sensible_time_is_remembered(connected: Connect, seconds: float) -> None:
    """ArduCopter may turn the motor for 600 s then."""
    station, peer = await connected(heartbeat={"autopilot": ARDUPILOT})
    station.vehicle.foreign_command(DO_MOTOR_TEST, [1.0, 0.0, 10.0, seconds])()
    assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
    assert len(peer.commands(DO_MOTOR_TEST)) == 1


async def test_a_lost_end_of_another_program_does_not_make_the_test_forgotten(connected: Connect) -> None:
    station, peer = await connected(heartbeat={"autopilot": ARDUPILOT})
    station.vehicle.foreign_command(DO_MOTOR_TEST, [1.0, 0.0, 10.0, 30.0])()
    station.vehicle.foreign_command(DO_MOTOR_TEST, [1.0])()
    assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
    assert len(peer.commands(DO_MOTOR_TEST)) == 1


class TestUnknown:
    """A test of which nobody told us: a ground station's beside us, or our own before a restart."""

    async def test_an_armed_copters_heartbeats_tell_of_it(self, on_bench: Callable[..., Any]) -> None:
        station, bench = await on_bench()
        bench.turning = {3.0}
        await asyncio.sleep(2 * _BEAT_S)
        assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
        assert not bench.turning
        assert len(bench.ends()) >= 1
        assert bench.peer.commands()[0].param2 == FORCE

    async def test_it_is_told_when_it_goes_on(self, on_bench: Callable[..., Any]) -> None:
        station, bench = await on_bench()
        bench.turning = {3.0}
        bench.loses = is_end
        await asyncio.sleep(2 * _BEAT_S)
        with pytest.raises(CommandOutcomeUnknown, match="motor may turn"):
            await steps_of(station.vehicle, STOP)

    async def test_a_stop_in_doubt_ends_it_too(self, on_bench: Callable[..., Any]) -> None:
        """An arm was answered a moment ago: the stop waits for a heartbeat, and the test keeps that from coming."""
        station, bench = await on_bench()
        await steps_of(station.vehicle, ARM)
        bench.turning = {3.0}
        await asyncio.sleep(2 * _BEAT_S)
        assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
        assert not bench.turning

    async def test_who_was_armed_waits_for_one_heartbeat(self, on_bench: Callable[..., Any]) -> None:
        """No end leaves where no test runs."""
        station, bench = await on_bench()
        bench.armed = True
        await asyncio.sleep(2 * _BEAT_S)
        assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
        assert not bench.ends()

    async def test_an_old_heartbeat_of_a_slow_wire_tells_of_no_test(self, on_bench: Callable[..., Any]) -> None:
        """To end a test where none runs makes a copter arm its motors for a moment."""
        station, bench = await on_bench()
        bench.armed = True
        bench.slow_wire = 0.6
        await asyncio.sleep(2 * _BEAT_S)
        bench.beat = lambda: None  # type: ignore[method-assign]  # the next heartbeat takes its second
        asyncio.get_running_loop().call_later(1.0, lambda: Bench.beat(bench))
        assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
        assert not bench.ends()
        assert not station.vehicle.state.told_armed

    @pytest.mark.parametrize("told", [None, 1, 2], ids=["nobody tells", "on the ground", "in the air"])
    async def test_with_a_failsafe_it_flies_unless_it_says_that_it_stands(
        self, on_bench: Callable[..., Any], told: int | None
    ) -> None:
        """CRITICAL is said in the air and on the ground."""
        station, bench = await on_bench()
        bench.status, bench.turning = 5, {3.0}
        if told is not None:
            bench.peer.send(bench.peer.mav.extended_sys_state_encode(0, told))
        await asyncio.sleep(2 * _BEAT_S)
        assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
        assert bool(bench.ends()) is (told == 1)

    @pytest.mark.parametrize(
        "heartbeat",
        [
            {"autopilot": PX4, "armed": True},
            {"autopilot": ARDUPILOT},
            {"autopilot": ARDUPILOT, "armed": True, "status": 4},
        ],
        ids=["px4", "disarmed", "flying"],
    )
    async def test_where_nothing_speaks_for_one_nothing_is_waited_for(
        self, connected: Connect, heartbeat: dict[str, Any]
    ) -> None:
        """No heartbeat comes; the stop is answered with its acknowledgement."""
        status = heartbeat.pop("status", 3)
        station, peer = await connected(on_message=obedient, heartbeat=heartbeat, times=CommandTimes())
        base_mode = 1 | (128 if heartbeat.get("armed") else 0)
        peer.send(peer.mav.heartbeat_encode(2, heartbeat["autopilot"], base_mode, 0, status, 3))
        async with asyncio.timeout(5.0):
            while station.vehicle.state.status != status:
                await asyncio.sleep(0.01)
        began = time.monotonic()
        assert brief(await steps_of(station.vehicle, STOP)) == STOPPED
        assert time.monotonic() - began < 1.0
        assert len(peer.commands()) == 1


async def test_the_simulated_copter_tests_one_motor_after_the_other(open_ground: Callable[..., Any]) -> None:
    """It rests between two for half of the time; and a stop ends all of it."""
    ground, sim = await open_ground(SIM_ARDUPILOT)
    flight = sim.flight
    flight.test_motor(2, 1.0, 3)
    seen = []
    for _ in range(9):
        seen.append([*flight.airframe.turning])
        assert flight.tests_motor or not seen[-1]
        flight.step(0.5)
    assert seen == [[2], [2], [], [3], [3], [], [4], [4], []]
    assert not flight.tests_motor
    flight.refuses_changes = True
    flight.test_motor(2, 9.0)
    assert flight.test_motor(2, 0.0) is flight.autopilot.cannot
    assert flight.airframe.turning
    assert ground.vehicle.connected
