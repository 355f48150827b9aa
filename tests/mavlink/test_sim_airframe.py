"""The simulated vehicle's physics and rules, without a process: time passes as fast as it is asked to."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petalbus.handlers.mavlink.sim.airframe import Airframe, LandedState
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, AUTOPILOTS, PX4, Autopilot, Mode, Result
from petalbus.handlers.mavlink.sim.commands import Commands
from petalbus.handlers.mavlink.sim.flight import Flight
from petalbus.handlers.mavlink.sim.param_sets import ARDUPILOT_PARAMS, PX4_PARAMS
from petalbus.handlers.mavlink.sim.params import ParamStore
from petalbus.handlers.mavlink.sim.streams import Streams
from petalbus.handlers.mavlink.wire.dialect import MavMessage, Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame

TICK = 0.02


def flight(autopilot: Autopilot = PX4, seed: int = 1) -> Flight:
    entries = PX4_PARAMS if autopilot is PX4 else ARDUPILOT_PARAMS
    return Flight(autopilot, Airframe(random.Random(seed)), ParamStore(entries, autopilot.encoding))


def fly(one: Flight, seconds: float) -> None:
    for _ in range(round(seconds / TICK)):
        one.step(TICK)


def launched(autopilot: Autopilot = PX4, height: float = 10.0, seed: int = 1) -> Flight:
    one = flight(autopilot, seed)
    if autopilot is ARDUPILOT:
        one.set_mode(Mode.GUIDED)
    assert one.arm() is Result.ACCEPTED
    assert one.takeoff(height + (autopilot.altitude if autopilot.altitude_above_sea else 0.0)) is Result.ACCEPTED
    return one


@pytest.mark.parametrize("autopilot", AUTOPILOTS.values(), ids=AUTOPILOTS.keys())
@settings(deadline=None, max_examples=25)
@given(height=st.floats(1.0, 60.0), seed=st.integers(0, 1000))
def test_it_climbs_at_two_metres_a_second_holds_and_lands(autopilot: Autopilot, height: float, seed: int) -> None:
    one = launched(autopilot, height, seed)
    frame = one.airframe
    speeds = []
    for _ in range(round((height / 2 + 4) / TICK)):
        one.step(TICK)
        speeds.append(frame.climb)
    assert max(speeds) <= 2.01
    assert frame.height == pytest.approx(height, abs=0.3)
    assert frame.landed is LandedState.IN_AIR
    assert abs(frame.north) < 3
    assert abs(frame.east) < 3
    one.set_mode(Mode.LAND)
    fly(one, height / 1.5 + 8)
    assert frame.landed is LandedState.ON_GROUND
    assert frame.height == 0.0
    assert not frame.armed, "it disarms by itself"
    assert frame.battery.remaining < 1.0


def test_it_disarms_when_nobody_takes_off() -> None:
    one = flight()
    one.arm()
    fly(one, 9.5)
    assert one.airframe.armed
    fly(one, 1.0)
    assert not one.airframe.armed


def test_an_empty_battery_lands_and_refuses_to_arm() -> None:
    one = launched()
    fly(one, 10)
    one.airframe.battery.consumed = one.airframe.battery.capacity
    fly(one, 20)
    assert not one.airframe.in_air
    assert one.arm() is Result.TEMPORARILY_REJECTED


def test_hovering_empties_the_battery_in_plausible_time() -> None:
    one = launched()
    fly(one, 60)
    used = one.airframe.battery.consumed
    assert 200 < used < 350, "16 A for a minute is 267 mAh"


@pytest.mark.parametrize(
    ("altitude", "result"), [(float("nan"), Result.ACCEPTED), (0.0, Result.DENIED), (1e9, Result.DENIED)]
)
def test_takeoff_altitudes(altitude: float, result: Result) -> None:
    one = flight()
    one.arm()
    assert one.takeoff(altitude) is result
    if result is Result.ACCEPTED:
        assert one.airframe.target == 2.5, "MIS_TAKEOFF_ALT"


def test_the_same_seed_flies_the_same_way() -> None:
    first, second, other = launched(seed=3), launched(seed=3), launched(seed=4)
    for one in (first, second, other):
        fly(one, 5)
    assert (first.airframe.north, first.airframe.roll) == (second.airframe.north, second.airframe.roll)
    assert first.airframe.north != other.airframe.north


NUMBERS = [20, 21, 22, 176, 246, 400, 510, 511, 512, 520, 31000]
ODD = st.floats(width=32) | st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 1.0, 30.0, 148.0, 21196.0])


@pytest.mark.parametrize("autopilot", AUTOPILOTS.values(), ids=AUTOPILOTS.keys())
@settings(deadline=None, max_examples=40)
@given(orders=st.lists(st.tuples(st.sampled_from(NUMBERS), st.lists(ODD, min_size=7, max_size=7)), max_size=8))
def test_no_command_whatever_its_numbers_breaks_it(autopilot: Autopilot, orders: list[tuple[int, list[float]]]) -> None:
    dialect = load_dialect()
    one = flight(autopilot)
    sent: list[MavMessage] = []
    streams = Streams(one, dialect, rng=random.Random(1), send=sent.append)
    commands = Commands(
        one,
        streams,
        dialect,
        system=1,
        silent=frozenset(),
        clock=lambda: 1.0,
        reboot=lambda: None,
        report_interval=lambda msgid, microseconds: None,
    )
    packer = Packer(dialect, system=2, component=140)
    for number, params in orders:
        fields = {f"param{index}": value for index, value in enumerate(params, 1)}
        message = dialect.message("COMMAND_LONG", target_system=1, target_component=1, command=number, **fields)
        answer = commands.receive(Frame.from_raw(packer.pack(message)))
        assert answer is not None
        assert answer.result in Result
        fly(one, 0.1)
        streams.tick(1.0)
    for message in sent:
        packer.pack(message)
