"""Orders beyond taking off and landing, against both kinds of simulated vehicle."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from mavlink.drive import brief, steps_of
from mavlink.peer import ARMED
from petalbus.handlers.mavlink.errors import OrderInvalid, OrderNotPossible
from petalbus.handlers.mavlink.flight.commands import ACCEPTED, CommandTimes
from petalbus.handlers.mavlink.flight.modes import mode_name, mode_numbers
from petalbus.handlers.mavlink.flight.orders import Order, Verb, order_from_command
from petalbus.handlers.mavlink.wire.dialect import load_dialect

from support.procs import Children

SIM = "petalbus.handlers.mavlink.sim"
KINDS = ["px4", "ardupilot"]
METRES_PER_DEGREE = 111_319.5


async def in_the_air(children: Children, open_station: Callable[..., Any], kind: str) -> Any:
    station = await open_station(times=CommandTimes())
    await children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{station.address[1]}", "--autopilot", kind)
    assert await station.vehicle.wait_connected(10.0)
    await steps_of(station.vehicle, Order(Verb.TAKEOFF, 3.0))
    await until(station, lambda fields: fields["relative_alt"] > 2500)
    return station


async def until(station: Any, condition: Callable[[dict[str, Any]], bool], *, seconds: float = 40.0) -> None:
    """Wait for a position."""
    async with asyncio.timeout(seconds):
        while True:
            position = station.vehicle.state.position
            if position is not None and condition(station.link.dialect.fields(position)):
                return
            await asyncio.sleep(0.05)


def mode_of(station: Any) -> str:
    state = station.vehicle.state
    return mode_name(state.autopilot, state.kind, state.custom_mode, station.link.dialect)


async def until_mode(station: Any, name: str) -> None:
    async with asyncio.timeout(10):
        while mode_of(station) != name:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", KINDS)
async def test_go_to_a_place_hold_and_come_back(
    children: Children, open_station: Callable[..., Any], kind: str
) -> None:
    """The same words for both: degrees, and metres above the take-off place."""
    station = await in_the_air(children, open_station, kind)
    home = station.link.dialect.fields(station.vehicle.state.position)
    north = home["lat"] / 1e7 + 12.0 / METRES_PER_DEGREE
    payload = {"command": "goto", "parameters": {"latitude": north, "longitude": home["lon"] / 1e7, "altitude": 4}}
    steps = await steps_of(station.vehicle, order_from_command(payload))
    assert brief(steps) == [("goto", ACCEPTED, True)]
    await until(station, lambda now: abs(now["lat"] / 1e7 - north) * METRES_PER_DEGREE < 2.5)
    await until(station, lambda now: 3500 < now["relative_alt"] < 4500)
    assert brief(await steps_of(station.vehicle, Order(Verb.HOLD))) == [("hold", ACCEPTED, True)]
    await until_mode(station, "hold" if kind == "px4" else "brake")
    assert brief(await steps_of(station.vehicle, Order(Verb.RETURN))) == [("return", ACCEPTED, True)]
    await until_mode(station, "return" if kind == "px4" else "rtl")
    await until(station, lambda now: now["relative_alt"] < 300)


@pytest.mark.parametrize("kind", KINDS)
async def test_modes_have_names(children: Children, open_station: Callable[..., Any], kind: str) -> None:
    station = await open_station(times=CommandTimes())
    await children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{station.address[1]}", "--autopilot", kind)
    assert await station.vehicle.wait_connected(10.0)
    for word, name in (("mission", "mission" if kind == "px4" else "auto"), ("offboard", "offboard")):
        told = name if kind == "px4" or word != "offboard" else "guided"
        steps = await steps_of(station.vehicle, Order(Verb.MODE, mode=word))
        assert brief(steps) == [("mode", ACCEPTED, True)]
        await until_mode(station, told)
    with pytest.raises(OrderInvalid, match="mission"):
        await steps_of(station.vehicle, Order(Verb.MODE, mode="backwards"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_motor_turns_on_the_ground_and_never_while_armed(
    children: Children, open_station: Callable[..., Any], kind: str
) -> None:
    station = await open_station(times=CommandTimes())
    await children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{station.address[1]}", "--autopilot", kind)
    assert await station.vehicle.wait_connected(10.0)
    turn = Order(Verb.MOTOR_TEST, motor=2, throttle=0.1, seconds=0.5)
    assert brief(await steps_of(station.vehicle, turn)) == [("motor_test", ACCEPTED, True)]
    await steps_of(station.vehicle, Order(Verb.ARM))
    with pytest.raises(OrderNotPossible, match="armed"):
        await steps_of(station.vehicle, turn)


async def test_a_goto_on_the_ground_is_not_sent(connected: Callable[..., Any]) -> None:
    station, peer = await connected()
    with pytest.raises(OrderNotPossible, match="takeoff first"):
        await steps_of(station.vehicle, Order(Verb.GOTO, 5.0, latitude=1.0, longitude=2.0))
    assert peer.of("COMMAND_INT") == []


async def test_a_goto_carries_whole_degrees(connected: Callable[..., Any]) -> None:
    """As floats the degrees would be up to a metre off: COMMAND_INT, above the sea for all but ArduPilot."""

    def obey(peer: Any, message: Any) -> None:
        if message.get_type() in ("COMMAND_INT", "COMMAND_LONG"):
            peer.ack(message.command)

    station, peer = await connected(on_message=obey, heartbeat={"armed": True})
    peer.position(alt=500.0, relative=0.0)
    order = Order(Verb.GOTO, 7.0, latitude=47.3977418, longitude=-8.5455941, speed=3.0)
    assert station.vehicle.state.base_mode & ARMED
    await steps_of(station.vehicle, order)
    (sent,) = peer.of("COMMAND_INT")
    assert (sent.x, sent.y, sent.z, sent.frame) == (473977418, -85455941, 507.0, 5)
    assert (sent.param1, sent.param2) == (3.0, 1.0)
    assert math.isnan(sent.param4)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"latitude": 91, "longitude": 0, "altitude": 5}, "parameters.latitude"),
        ({"latitude": 1, "altitude": 5}, "parameters.longitude"),
        ({"latitude": 1, "longitude": 2}, "parameters.altitude"),
        ({"latitude": 1, "longitude": 2, "altitude": 5000}, "parameters.altitude"),
        ({"latitude": 1, "longitude": 2, "altitude": 5, "speed": 0}, "parameters.speed"),
        ({"latitude": 1, "longitude": 2, "altitude": 5, "heading": 3}, "parameters.heading"),
    ],
)
def test_a_goto_that_makes_no_sense_is_refused(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(OrderInvalid) as refused:
        order_from_command({"command": "goto", "parameters": parameters})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"command": "mode"}, "parameters.mode"),
        ({"command": "mode", "mode": 4}, "parameters.mode"),
        ({"command": "motor_test", "throttle": 0.1, "seconds": 1, "motor": 1.5}, "motor"),
        ({"command": "motor_test", "throttle": 1.1, "seconds": 1, "motor": 1}, "throttle"),
        ({"command": "motor_test", "throttle": 0.1, "seconds": 60, "motor": 1}, "seconds"),
    ],
)
def test_what_else_is_wrong_is_named(payload: dict[str, Any], field: str) -> None:
    with pytest.raises(OrderInvalid) as refused:
        order_from_command(payload)
    assert refused.value.field == field


def test_ardupilots_modes_differ_with_the_kind_of_vehicle() -> None:
    dialect = load_dialect()
    copter, plane, rover = 2, 1, 10
    assert mode_numbers("return", 3, copter, dialect) == (6.0, 0.0)
    assert mode_numbers("RTL", 3, plane, dialect) == (11.0, 0.0)
    assert mode_numbers("hold", 3, rover, dialect) == (4.0, 0.0)
    assert mode_numbers("POSHOLD", 3, copter, dialect) == (16.0, 0.0)
    assert mode_numbers("hold", 12, copter, dialect) == (4.0, 3.0)
    assert mode_name(3, plane, 15, dialect) == "guided"
    assert mode_name(12, copter, 6 << 16, dialect) == "offboard"
    assert mode_name(0, copter, 77, dialect) == "mode_77"
