"""Orders and the kinds of vehicles: who takes off how, what planes can, speeds, fences, other programs' orders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.drive import Connect, brief, running, silent, steps_of
from mavlink.ground import until
from mavlink.peer import ACCEPTED, ARDUPILOT, ARM_DISARM, LAND, SET_MODE, TAKEOFF, Peer, truthful
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mavlink.errors import OrderInvalid, OrderNotPossible, OrderOvertaken
from petalbus.handlers.mavlink.flight.modes import mode_name, mode_numbers
from petalbus.handlers.mavlink.flight.orders import Order, Verb
from petalbus.handlers.mavlink.params.values import ParamEncoding, ParamType, encode_value
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT as SIM_ARDUPILOT
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.wire.dialect import load_dialect

from support.mavlink_rig import Rig, rig
from support.servers import RealServer

UP = Order(Verb.TAKEOFF, 10.0)
CHANGE_SPEED, TILTROTOR, PLANE, ROVER, SUB = 178, 21, 1, 10, 12
FAILED = 4
PX4_MANUAL, PX4_HOLD, PX4_RETURN = 1 << 16, 4 << 16 | 3 << 24, 4 << 16 | 5 << 24


def tell(peer: Peer, *, kind: int = 2, autopilot: int = ARDUPILOT, armed: bool = False, custom_mode: int = 0) -> None:
    """A heartbeat of any kind of vehicle."""
    base = 1 | (128 if armed else 0)
    peer.send(mavlink.MAVLink_heartbeat_message(kind, autopilot, base, custom_mode, 3, 3))


async def heard(connected: Connect, **heartbeat: Any) -> Any:
    """A station, and a vehicle that does what it is told and was heard with these values."""
    station, peer = await connected(on_message=truthful, heartbeat={"autopilot": heartbeat.get("autopilot", ARDUPILOT)})
    before = station.vehicle.state.heard
    tell(peer, **heartbeat)
    await until(lambda: station.vehicle.state.heard > before)
    return station, peer


class TestKinds:
    """ArduPilot numbers modes for each kind anew, and not every kind takes every order."""

    @pytest.mark.parametrize("kind", [PLANE, ROVER, SUB])
    async def test_no_takeoff_for_what_takes_none(self, connected: Connect, kind: int) -> None:
        """Mode 4 is a plane's ACRO and a rover's HOLD: nothing leaves at all."""
        station, peer = await heard(connected, kind=kind, armed=True, custom_mode=11)
        with pytest.raises(OrderNotPossible, match="fixed-wing plane takes off"):
            await steps_of(station.vehicle, UP)
        assert peer.commands() == []

    async def test_a_plane_that_says_that_it_hovers_takes_off_in_its_own_guided(self, connected: Connect) -> None:
        station, peer = await heard(connected, kind=TILTROTOR)
        told = brief(await steps_of(station.vehicle, UP))
        assert told == [("mode", ACCEPTED, False), ("arm", ACCEPTED, False), ("takeoff", ACCEPTED, True)]
        assert peer.commands(SET_MODE)[0].param2 == 15.0

    @pytest.mark.parametrize(
        ("kind", "mode", "verb", "number"),
        [
            (PLANE, 18, Verb.LAND, 20),  # it hovers
            (TILTROTOR, 15, Verb.LAND, 20),  # it says that it can
            (PLANE, 17, Verb.HOLD, 19),
            (PLANE, 11, Verb.HOLD, 12),
        ],
    )
    async def test_planes_land_and_hold_by_mode(
        self, connected: Connect, kind: int, mode: int, verb: Verb, number: int
    ) -> None:
        station, peer = await heard(connected, kind=kind, armed=True, custom_mode=mode)
        assert brief(await steps_of(station.vehicle, Order(verb))) == [(verb.value, ACCEPTED, True)]
        (sent,) = peer.commands()
        assert (sent.command, sent.param2) == (SET_MODE, float(number))

    async def test_a_flying_plane_is_told_how_it_can_come_down(self, connected: Connect) -> None:
        station, peer = await heard(connected, kind=PLANE, armed=True, custom_mode=10)
        with pytest.raises(OrderNotPossible, match=r"return, or the mode autoland"):
            await steps_of(station.vehicle, Order(Verb.LAND))
        assert peer.commands() == []

    def test_orbit_is_told_and_not_taken(self) -> None:
        """PX4 would change to the pilot's position mode, and accept."""
        dialect = load_dialect()
        with pytest.raises(OrderInvalid):
            mode_numbers("orbit", 12, 2, dialect)
        assert mode_name(12, 2, 3 << 16 | 1 << 24, dialect) == "orbit"
        assert mode_numbers("position_slow", 12, 2, dialect) == (3.0, 2.0)


class TestTakeoffs:
    """From which state and from which mode."""

    @pytest.mark.parametrize("landed", [2, 3, 4])
    @pytest.mark.parametrize("autopilot", [ARDUPILOT, 12])
    async def test_none_in_the_air(self, connected: Connect, landed: int, autopilot: int) -> None:
        """It would take the vehicle out of its return, its landing or its mission."""
        station, peer = await heard(connected, autopilot=autopilot, armed=True, custom_mode=6)
        peer.send(peer.mav.extended_sys_state_encode(0, landed))
        await until(lambda: station.vehicle.state.landed_state == landed)
        with pytest.raises(OrderNotPossible, match="in the air already"):
            await steps_of(station.vehicle, UP)
        assert peer.commands() == []

    async def test_what_was_told_before_it_armed_does_not_end_it_half_way(self, connected: Connect) -> None:
        """A state from the last flight, and an arming in between: the takeoff goes on."""
        station, peer = await heard(connected, autopilot=12, custom_mode=PX4_HOLD)
        peer.send(peer.mav.extended_sys_state_encode(0, 4))
        await until(lambda: station.vehicle.state.landed_state == 4)
        assert brief(await steps_of(station.vehicle, UP))[-1] == ("takeoff", ACCEPTED, True)

    @pytest.mark.parametrize("mode", [PX4_MANUAL, PX4_RETURN])
    async def test_px4_arms_in_hold(self, connected: Connect, mode: int) -> None:
        """Not in a pilot's mode, and in one to come down it would not arm."""
        station, peer = await heard(connected, autopilot=12, custom_mode=mode)
        told = brief(await steps_of(station.vehicle, UP))
        assert told == [("mode", ACCEPTED, False), ("arm", ACCEPTED, False), ("takeoff", ACCEPTED, True)]
        assert [message.command for message in peer.commands()] == [SET_MODE, ARM_DISARM, TAKEOFF]
        assert (peer.commands()[0].param2, peer.commands()[0].param3) == (4.0, 3.0)

    @pytest.mark.parametrize("down", [Order(Verb.RETURN), Order(Verb.LAND), Order(Verb.MODE, mode="land")])
    @pytest.mark.parametrize("autopilot", [PX4, SIM_ARDUPILOT], ids=["px4", "ardupilot"])
    async def test_it_climbs_right_after_an_order_to_come_down_on_the_ground(
        self, open_ground: Callable[..., Any], autopilot: Autopilot, down: Order
    ) -> None:
        """Also before a heartbeat has told the mode that this made."""
        ground, sim = await open_ground(autopilot)
        assert brief(await steps_of(ground.vehicle, down))[-1][1] == ACCEPTED
        assert brief(await steps_of(ground.vehicle, UP))[-1] == ("takeoff", ACCEPTED, True)
        await until(lambda: sim.flight.airframe.height > 0.5)


class TestGoto:
    """Speeds, and PX4's fence."""

    @pytest.mark.parametrize(
        ("kind", "autopilot", "type_of_speed"), [(2, ARDUPILOT, 1.0), (PLANE, ARDUPILOT, 0.0), (ROVER, ARDUPILOT, None)]
    )
    async def test_ardupilot_is_told_the_speed_afterwards(
        self, connected: Connect, kind: int, autopilot: int, type_of_speed: float | None
    ) -> None:
        """It does not look at the first command's; rovers do. The last step is the speed's."""
        station, peer = await heard(connected, kind=kind, autopilot=autopilot, armed=True, custom_mode=15)
        told = brief(await steps_of(station.vehicle, Order(Verb.GOTO, 7.0, latitude=1.0, longitude=2.0, speed=3.0)))
        if type_of_speed is None:
            assert told == [("goto", ACCEPTED, True)]
            return
        assert told == [("goto", ACCEPTED, False), ("speed", ACCEPTED, True)]
        (sent,) = peer.commands()
        assert (sent.command, sent.param1, sent.param2) == (CHANGE_SPEED, type_of_speed, 3.0)

    async def test_a_refused_goto_sends_no_speed(self, connected: Connect) -> None:
        def refuse(peer: Peer, message: Any) -> None:
            if message.get_type() == "COMMAND_INT":
                peer.ack(message.command, FAILED)

        station, peer = await heard(connected, armed=True, custom_mode=4)
        peer.on_message = refuse
        told = await steps_of(station.vehicle, Order(Verb.GOTO, 7.0, latitude=1.0, longitude=2.0, speed=3.0))
        assert brief(told) == [("goto", FAILED, True)]
        assert peer.commands() == []

    @pytest.mark.parametrize("autopilot", [PX4, SIM_ARDUPILOT], ids=["px4", "ardupilot"])
    async def test_it_flies_at_the_speed(self, open_ground: Callable[..., Any], autopilot: Autopilot) -> None:
        ground, sim = await open_ground(autopilot)
        await steps_of(ground.vehicle, Order(Verb.TAKEOFF, 3.0))
        await until(lambda: sim.flight.airframe.height > 2.0)
        far = round(autopilot.latitude * 1e7 + 9000) / 1e7
        order = Order(Verb.GOTO, 3.0, latitude=far, longitude=autopilot.longitude, speed=1.0)
        assert (await steps_of(ground.vehicle, order))[-1].ack.result == ACCEPTED
        await until(lambda: sim.flight.airframe.v_north > 0.7)
        await asyncio.sleep(1.0)
        assert sim.flight.airframe.v_north < 1.4

    async def test_px4_does_not_go_beyond_its_fence_and_that_is_told(self, open_ground: Callable[..., Any]) -> None:
        """It accepts, and says a moment later that it stays where it is."""
        ground, sim = await open_ground(PX4)
        limit = encode_value(20.0, ParamType.REAL32, ParamEncoding.BYTEWISE)
        sim.params.store.set_raw("GF_MAX_HOR_DIST", limit)
        await steps_of(ground.vehicle, Order(Verb.TAKEOFF, 3.0))
        await until(lambda: sim.flight.airframe.height > 1.0)
        inside = Order(Verb.GOTO, 3.0, latitude=PX4.latitude + 1e-4, longitude=PX4.longitude)
        outside = Order(Verb.GOTO, 3.0, latitude=PX4.latitude + 1e-3, longitude=PX4.longitude)
        assert brief(await steps_of(ground.vehicle, inside)) == [("goto", ACCEPTED, True)]
        assert brief(await steps_of(ground.vehicle, outside)) == [("fence", FAILED, True)]
        assert brief(await steps_of(ground.vehicle, inside)) == [("goto", ACCEPTED, True)]

    async def test_px4_tests_a_motor_for_three_seconds_at_most(self, connected: Connect) -> None:
        station, peer = await heard(connected, autopilot=12)
        with pytest.raises(OrderInvalid, match=r"0\.1 to 3"):
            await steps_of(station.vehicle, Order(Verb.MOTOR_TEST, motor=1, throttle=0.1, seconds=3.5))
        assert peer.commands() == []


class TestOthers:
    """Another program orders the vehicle down, or to stay: the rest of our takeoff does not leave."""

    @pytest.mark.parametrize(
        ("number", "params"),
        [
            (17, []),
            (20, []),
            (21, []),
            (85, []),
            (185, [1.0]),
            (193, [0.0]),
            (ARM_DISARM, [0.0]),
            (SET_MODE, [1.0, 4.0, 3.0]),
            (SET_MODE, [1.0, 4.0, 5.0]),
            (SET_MODE, [1.0, 4.0, 6.0]),
        ],
    )
    async def test_its_command_ends_a_takeoff(self, connected: Connect, number: int, params: list[float]) -> None:
        station, peer = await connected(on_message=silent)
        flying = running(station.vehicle, UP)
        await peer.until(lambda: peer.commands(ARM_DISARM))
        station.vehicle.foreign_command(number, params)()
        peer.ack(ARM_DISARM)
        with pytest.raises(OrderOvertaken):
            await flying
        assert peer.commands(TAKEOFF) == []

    @pytest.mark.parametrize(
        ("number", "params"), [(193, [1.0]), (SET_MODE, [1.0, 4.0, 4.0]), (SET_MODE, [1.0, float("nan")]), (183, [0.0])]
    )
    async def test_others_do_not(self, connected: Connect, number: int, params: list[float]) -> None:
        station, peer = await connected(on_message=silent)
        flying = running(station.vehicle, UP)
        await peer.until(lambda: peer.commands(ARM_DISARM))
        station.vehicle.foreign_command(number, params)()
        peer.on_message = truthful
        peer.ack(ARM_DISARM)
        assert brief(await flying)[-1] == ("takeoff", ACCEPTED, True)

    async def test_a_mode_by_another_word_is_one_to_stay_too(self, connected: Connect) -> None:
        """PX4's hold is also called loiter."""
        station, peer = await connected(on_message=silent)
        flying = running(station.vehicle, UP)
        await peer.until(lambda: peer.commands(ARM_DISARM))
        staying = running(station.vehicle, Order(Verb.MODE, mode="Loiter"))
        await peer.until(lambda: peer.commands(SET_MODE))
        peer.ack(SET_MODE)
        await staying
        peer.ack(ARM_DISARM)
        with pytest.raises(OrderOvertaken):
            await flying


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


@pytest.mark.parametrize("message", ["SET_MODE", "COMMAND_INT"])
async def test_frames_of_other_programs_end_a_takeoff(vehicle: Rig, message: str) -> None:
    """The old message for modes, and a pause as COMMAND_INT, as ``mavlink.send`` carries them."""
    peer = await vehicle.scripted(silent)
    peer.position()
    async with asyncio.timeout(5.0):
        while vehicle.handler.vehicle.state.position is None:  # type: ignore[union-attr]  # it was heard
            await asyncio.sleep(0.01)
    packer = mavlink.MAVLink(None, srcSystem=9, srcComponent=9)
    frame = {
        "SET_MODE": mavlink.MAVLink_set_mode_message(1, 1, PX4_RETURN),
        "COMMAND_INT": mavlink.MAVLink_command_int_message(1, 1, 0, 193, 0, 0, *(4 * [0.0]), 0, 0, 0.0),
    }[message]
    async with (
        Bus(vehicle.server.url, app="gcs", bus=vehicle.bus_name) as gcs,
        Bus(vehicle.server.url, app="petal", bus=vehicle.bus_name) as petal,
    ):
        up = {"command": "takeoff", "altitude": 5}
        flying = asyncio.create_task(gcs.request("vehicle", "command", up, timeout=8), name="takeoff")
        await peer.until(lambda: peer.commands(ARM_DISARM))
        sent = await petal.request(
            "vehicle", "mavlink.send", bytes(frame.pack(packer)), content_type="application/x-mavlink", timeout=5
        )
        assert sent.data["sent"] == 1
        peer.ack(ARM_DISARM)
        await asyncio.wait([flying], timeout=8)
        assert getattr(flying.exception(), "error_code", None) == "COMMAND_OVERTAKEN"
    assert not peer.commands(TAKEOFF)
    assert not peer.commands(LAND)
