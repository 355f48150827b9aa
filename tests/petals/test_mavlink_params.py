"""Parameters through the proxy: both encodings, loss, wrong echoes, partial success (S-038 to S-047)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mavlink.peer import ARDUPILOT, PX4, Peer
from petalbus.handlers.mavlink.params.values import (
    PARAM_SET_ID,
    PARAM_VALUE_ID,
    ParamType,
    ParamValue,
    pack_param_value,
    unpack_param_set,
)
from petalbus.handlers.mavlink.wire.framing import build_frame
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy, ParameterUnavailable

from support.mavlink_rig import Rig, rig
from support.procs import Children
from support.servers import RealServer

MATRIX = ["px4", "ardupilot"]
INT8, INT16, INT32, REAL32 = 2, 4, 6, 9


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


@pytest.fixture
async def simulated(vehicle: Rig, children: Children) -> Callable[..., Any]:
    """``proxy = await simulated("px4", "--loss", "0.2")``."""

    async def make(autopilot: str, *arguments: str) -> MavLinkExternalProxy:
        await vehicle.sim(children, "--autopilot", autopilot, *arguments)
        proxy: MavLinkExternalProxy = await vehicle.proxy()
        return proxy

    return make


class ParamPeer:
    """A scripted vehicle with parameters: how each PARAM_SET is answered is the test's."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def sets(self, name: str | None = None) -> list[tuple[ParamValue, Any]]:
        found = []
        for message in self.peer.of("PARAM_SET"):
            value, _, _ = unpack_param_set(bytes(message.get_msgbuf())[10:-2])
            if name in (None, value.name):
                found.append((value, message))
        return found

    def reads(self, name: str) -> list[Any]:
        return [message for message in self.peer.of("PARAM_REQUEST_READ") if message.param_id == name]

    def value(self, name: str, raw: bytes, kind: int, position: int = 0, total: int = 3) -> None:
        payload = pack_param_value(ParamValue(name, raw, kind, position, total))
        self.peer.send_bytes(build_frame(PARAM_VALUE_ID, payload, crc_extra=220, sysid=1, compid=1, seq=0))

    def error(self, name: str, code: int, *, to: tuple[int, int] = (2, 140)) -> None:
        from pymavlink.dialects.v20 import all as mavlink

        self.peer.send(mavlink.MAVLink_param_error_message(*to, name.encode(), -1, code))


async def test_one_parameter_is_read_with_all_that_is_known_of_it(simulated: Callable[..., Any]) -> None:
    """S-046."""
    proxy = await simulated("px4")
    assert await proxy.get_param("MAV_TYPE") == {
        "name": "MAV_TYPE",
        "value": 2,
        "raw": pytest.approx(2.8e-45, rel=0.1),
        "type": INT32,
        "count": 32,
        "index": 16,
    }
    speed = await proxy.get_param("MPC_XY_VEL_MAX")
    assert (speed["value"], speed["raw"], speed["type"]) == (12.0, 12.0, REAL32)


async def test_one_parameter_as_ardupilot_sends_it(simulated: Callable[..., Any]) -> None:
    proxy = await simulated("ardupilot")
    told = await proxy.get_param("LAND_SPEED")
    assert (told["value"], told["raw"], told["type"], told["index"]) == (50, 50.0, INT16, 65535)


@pytest.mark.parametrize("autopilot", MATRIX)
async def test_set_is_verified_in_both_encodings(simulated: Callable[..., Any], autopilot: str) -> None:
    proxy = await simulated(autopilot)
    whole, real = ("CAL_ACC0_ID", "MPC_XY_VEL_MAX") if autopilot == "px4" else ("COMPASS_DEV_ID", "WPNAV_SPEED")
    for value in (-5000000, 16777216, 0) if autopilot == "px4" else (-5000000, 16777216, 7):
        assert (await proxy.set_param(whole, value))["value"] == value
        assert (await proxy.get_param(whole))["value"] == value
    assert (await proxy.set_param(real, 7.5))["value"] == 7.5
    assert (await proxy.set_param(real, 8))["value"] == 8.0, "an int for a float parameter"


async def test_the_forms_of_a_value(simulated: Callable[..., Any]) -> None:
    """S-038 to S-041, S-047: the document's own example, and what becomes of it on PX4."""
    proxy = await simulated("px4")
    began = time.monotonic()
    confirmed = await proxy.set_params_bulk_lossy(
        {
            "NAV_ACC_RAD": 2.0,
            "MPC_XY_VEL_MAX": (12.5, "REAL32"),
            "COM_DISARM_LAND": {"value": 2, "type": "INT32"},  # on PX4 it is REAL32
            "COM_ARM_WO_GPS": {"value": 0},
            "MAV_TYPE": [13, "MAV_PARAM_TYPE_INT32"],
            "SYS_HAS_BARO": (True, 6),
            "NO_SUCH_PARAM": 1,
            "GF_ACTION": (1.5, "REAL32"),  # it is INT32, and 1.5 is no whole number
        },
        timeout_total=8.0,
        max_retries=3,
        max_in_flight=8,
        resend_interval=0.8,
        verify_ack_value=True,
    )
    assert time.monotonic() - began < 0.5, "refusals do not wait for a time-out"
    assert {name: (told["value"], told["type"]) for name, told in confirmed.items()} == {
        "NAV_ACC_RAD": (2.0, REAL32),
        "MPC_XY_VEL_MAX": (12.5, REAL32),
        "COM_DISARM_LAND": (2.0, REAL32),
        "COM_ARM_WO_GPS": (0, INT32),
        "MAV_TYPE": (13, INT32),
        "SYS_HAS_BARO": (1, INT32),
    }
    assert {name: one["code"] for name, one in confirmed.refused.items()} == {
        "NO_SUCH_PARAM": "DOES_NOT_EXIST",
        "GF_ACTION": "TYPE_MISMATCH",
    }
    assert confirmed.refused["GF_ACTION"]["error"] == 7


async def test_a_value_without_a_type_is_an_int32_or_a_real32(vehicle: Rig) -> None:
    """S-039: where the vehicle does not tell its own type, because it answers no reads: the documented guess."""

    def echo(peer: Peer, message: Any) -> None:
        if message.get_type() == "PARAM_SET":
            wanted, _, _ = unpack_param_set(bytes(message.get_msgbuf())[10:-2])
            peer.send_bytes(
                build_frame(PARAM_VALUE_ID, pack_param_value(wanted), crc_extra=220, sysid=1, compid=1, seq=0)
            )

    peer = await vehicle.scripted(echo)
    proxy = await vehicle.proxy()
    confirmed = await proxy.set_params_bulk_lossy(
        {"WHOLE": 3, "REAL": 3.0}, resend_interval=0.05, max_retries=5, timeout_total=3.0
    )
    assert {name: told["type"] for name, told in confirmed.items()} == {"WHOLE": INT32, "REAL": REAL32}
    assert len(ParamPeer(peer).reads("WHOLE")) == 5, "its type was asked for first"


async def test_the_type_is_learned_before_an_old_px4_takes_the_wrong_bytes(vehicle: Rig) -> None:
    """Old PX4 stores what comes without a look at the type: 2 as an int's bytes would become 2.8e-45 m/s."""
    stored: list[tuple[bytes, int]] = []

    def old_px4(peer: Peer, message: Any) -> None:
        params = ParamPeer(peer)
        if message.get_type() == "PARAM_REQUEST_READ":
            params.value("SPEED", b"\0\0\x80\x3f", REAL32)
        elif message.get_type() == "PARAM_SET":
            wanted, _, _ = unpack_param_set(bytes(message.get_msgbuf())[10:-2])
            stored.append((wanted.raw, wanted.param_type))
            params.value("SPEED", wanted.raw, REAL32)

    await vehicle.scripted(old_px4)
    proxy = await vehicle.proxy()
    assert (await proxy.set_param("SPEED", 2))["value"] == 2.0
    assert stored == [(b"\0\0\0\x40", REAL32)]
    # a type that the caller insists on is put right as soon as the echo shows it
    stored.clear()
    assert (await proxy.set_param("SPEED", 3, ptype=INT32))["value"] == 3.0
    assert stored == [(b"\3\0\0\0", INT32), (b"\0\0\x40\x40", REAL32)]


async def test_a_wrong_echo_is_no_confirmation(vehicle: Rig) -> None:
    """S-043, S-042: sent again, and in the end refused with what the vehicle said; without verification it counts."""

    def stubborn(peer: Peer, message: Any) -> None:
        if message.get_type() == "PARAM_SET":
            ParamPeer(peer).value("LIMIT", b"\0\0\x80\x3f", REAL32)

    peer = await vehicle.scripted(stubborn, autopilot=ARDUPILOT)
    proxy = await vehicle.proxy()
    began = time.monotonic()
    refused = await proxy.set_params_bulk_lossy({"LIMIT": 9.0}, resend_interval=0.1, max_retries=3, timeout_total=5.0)
    assert 0.15 < time.monotonic() - began < 2.0
    assert refused == {}
    assert refused.refused["LIMIT"]["code"] == "VALUE_DIFFERS"
    assert len(ParamPeer(peer).sets()) == 3, "the vehicle keeps its own value: told twice more, not to the end"
    accepted = await proxy.set_params_bulk_lossy({"LIMIT": 9.0}, verify_ack_value=False)
    assert accepted["LIMIT"]["value"] == 1.0
    with pytest.raises(ParameterUnavailable, match="LIMIT") as caught:
        await proxy.set_param("LIMIT", 9.0, timeout=0.3)
    assert caught.value.code == "VALUE_DIFFERS"


async def test_a_window_of_requests_and_no_more(vehicle: Rig) -> None:
    """S-044: never more than `max_in_flight` unanswered. S-042: asked again after `resend_interval`."""
    peer = await vehicle.scripted(lambda _peer, _message: None)
    proxy = await vehicle.proxy()
    names = [f"P{number}" for number in range(12)]
    reading = asyncio.create_task(
        proxy.get_params_bulk_lossy(
            names, max_in_flight=5, resend_interval=0.3, max_retries=1, timeout_total=10.0, inter_send_delay=0.0
        )
    )
    await peer.until(lambda: len(peer.of("PARAM_REQUEST_READ")) >= 10)
    asked = [message.param_id for message in peer.of("PARAM_REQUEST_READ")]
    assert asked == names[:5] * 2
    for name in names[:5]:
        ParamPeer(peer).value(name, b"\0\0\x80\x3f", REAL32, position=65535)
    await peer.until(lambda: len(peer.of("PARAM_REQUEST_READ")) >= 15)
    assert {message.param_id for message in peer.of("PARAM_REQUEST_READ")[10:15]} == set(names[5:10])
    results = await reading
    assert set(results) == set(names[:5])
    assert {one["code"] for one in results.refused.values()} == {"NOT_ANSWERED"}
    assert set(results.refused) == set(names[5:])


async def test_the_time_given_is_kept(vehicle: Rig) -> None:
    """S-045, S-047: what is not answered by then is missing, and no exception."""
    await vehicle.scripted(lambda _peer, _message: None)
    proxy = await vehicle.proxy()
    began = time.monotonic()
    results = await proxy.get_params_bulk_lossy(["A", "B"], timeout_total=0.4, max_retries=100)
    assert 0.35 < time.monotonic() - began < 1.5
    assert results == {}
    with pytest.raises(TimeoutError, match="parameter A"):
        await proxy.get_param("A", timeout=0.2)
    with pytest.raises(TimeoutError, match="of \\? parameters"):
        await proxy.get_all_params(timeout=0.3)


@pytest.mark.parametrize("autopilot", MATRIX)
async def test_everything_is_confirmed_over_a_lossy_link(simulated: Callable[..., Any], autopilot: str) -> None:
    """S-038, S-045: 25 % lost each way, a tenth doubled."""
    proxy = await simulated(autopilot, "--loss", "0.25", "--duplicate", "0.1", "--delay-ms", "10", "--seed", "3")
    everything = await proxy.get_all_params(timeout=20.0)
    assert len(everything) == (32 if autopilot == "px4" else 22)
    wanted = {name: told["value"] for name, told in everything.items() if not name.startswith("CAL_")}
    confirmed = await proxy.set_params_bulk_lossy(wanted, timeout_total=20.0, max_retries=10)
    assert confirmed.refused == {}
    assert {name: told["value"] for name, told in confirmed.items()} == wanted
    read = await proxy.get_params_bulk_lossy(list(wanted), timeout_total=20.0, max_retries=10)
    assert {name: told["value"] for name, told in read.items()} == wanted


async def test_lost_requests_are_repeated_as_soon_as_the_round_trip_is_known(simulated: Callable[..., Any]) -> None:
    """Long before `resend_interval`: 30 reads at 20 % loss would take over a second with it."""
    proxy = await simulated("px4", "--loss", "0.2", "--seed", "5")
    names = list(await proxy.get_all_params())
    began = time.monotonic()
    read = await proxy.get_params_bulk_lossy(names, resend_interval=2.0, timeout_total=20.0, inter_send_delay=0.0)
    assert read.refused == {}
    assert time.monotonic() - began < 1.5


async def test_a_list_with_gaps_is_filled(simulated: Callable[..., Any]) -> None:
    proxy = await simulated("ardupilot", "--loss", "0.4", "--seed", "8")
    told = await proxy.get_all_params(timeout=20.0)
    assert len(told) == 22
    assert {one["index"] for one in told.values()} <= {*range(22), 65535}
    assert told["WPNAV_SPEED"]["value"] == 500.0


async def test_answers_meant_for_others_do_not_count(vehicle: Rig) -> None:
    """An error for another ground station, a value from another vehicle or component."""

    def answer(peer: Peer, message: Any) -> None:
        params = ParamPeer(peer)
        if message.get_type() == "PARAM_REQUEST_READ":
            params.error("SPEED", 1, to=(255, 190))
            payload = pack_param_value(ParamValue("SPEED", b"\0\0\0\0", REAL32))
            for sysid, compid in ((9, 1), (1, 154)):
                peer.send_bytes(build_frame(PARAM_VALUE_ID, payload, crc_extra=220, sysid=sysid, compid=compid, seq=0))
            params.value("SPEED", b"\0\0\x80\x3f", REAL32)

    await vehicle.scripted(answer)
    proxy = await vehicle.proxy()
    assert (await proxy.get_param("SPEED"))["value"] == 1.0


async def test_integers_of_a_vehicle_that_does_not_tell_its_encoding(vehicle: Rig) -> None:
    """Neither PX4 nor ArduPilot: its capability bits decide; without them an integer is refused, a float is not."""
    from pymavlink.dialects.v20 import all as mavlink

    bits = 0

    def generic(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG" and message.command == 512 and bits:
            peer.send(
                mavlink.MAVLink_autopilot_version_message(bits, 0, 0, 0, 0, b"\0" * 8, b"\0" * 8, b"\0" * 8, 0, 0, 0)
            )
        if message.get_type() == "COMMAND_LONG":
            peer.ack(message.command)
        if message.get_type() == "PARAM_SET":
            wanted, _, _ = unpack_param_set(bytes(message.get_msgbuf())[10:-2])
            ParamPeer(peer).value(wanted.name, wanted.raw, wanted.param_type)

    peer = await vehicle.scripted(generic, autopilot=0)
    proxy = await vehicle.proxy()
    confirmed = await proxy.set_params_bulk_lossy({"A": (1, "INT32"), "B": 1.5})
    assert confirmed["B"]["value"] == 1.5
    assert confirmed.refused["A"]["code"] == "ENCODING_UNKNOWN"
    assert ParamPeer(peer).sets("A") == []
    bits = 131072
    confirmed = await proxy.set_params_bulk_lossy({"A": (1, "INT32")})
    assert confirmed["A"]["value"] == 1
    assert ParamPeer(peer).sets("A")[0][0].raw == b"\0\0\x80\x3f", "as a float"


async def test_two_petals_set_one_parameter_one_after_the_other(vehicle: Rig) -> None:
    held: list[ParamValue] = []

    def answer_later(peer: Peer, message: Any) -> None:
        if message.get_type() == "PARAM_SET":
            held.append(unpack_param_set(bytes(message.get_msgbuf())[10:-2])[0])

    peer = await vehicle.scripted(answer_later, autopilot=ARDUPILOT)
    first, second = await vehicle.proxy(), await vehicle.proxy(app="other-petal")
    one = asyncio.create_task(first.set_param("SPEED", 1.0))
    await peer.until(lambda: held)
    two = asyncio.create_task(second.set_param("SPEED", 2.0))
    assert await second.get_params_bulk_lossy(["OTHER"], timeout_total=0.2) == {}, "asked after it, and done"
    assert {value.raw for value in held} == {b"\0\0\x80\x3f"}, "the second waits"
    ParamPeer(peer).value("SPEED", held[0].raw, REAL32)
    assert (await one)["value"] == 1.0
    await peer.until(lambda: held[-1].raw == b"\0\0\0\x40")
    ParamPeer(peer).value("SPEED", held[-1].raw, REAL32)
    assert (await two)["value"] == 2.0


async def test_nonsense_is_refused_before_anything_is_sent(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    for spec in ("text", None, (1, 2, 3), {"type": "INT32"}, (1, "INT64"), (1, 10), float("nan"), (1, "WORD")):
        with pytest.raises(ValueError, match="parameter X"):
            await proxy.set_params_bulk_lossy({"X": spec})
    for name in ("", "A" * 17, "NÄME"):
        with pytest.raises(ValueError, match="name"):
            await proxy.get_params_bulk_lossy([name])
    with pytest.raises(ValueError, match="at most"):
        await proxy.get_params_bulk_lossy([f"P{number}" for number in range(5000)])
    out_of_range = await proxy.set_params_bulk_lossy({"X": (300, "UINT8"), "Y": (1.5, "INT16")})
    assert {one["code"] for one in out_of_range.refused.values()} == {"VALUE_INVALID"}
    assert peer.of("PARAM_SET") == []


async def test_a_set_message_carries_the_bytes_untouched(vehicle: Rig) -> None:
    """-5000000 as a Python float would arrive as -805696."""
    peer = await vehicle.scripted(autopilot=PX4)
    proxy = await vehicle.proxy()
    proxy.send("mav", proxy.build_param_set("CAL_ID", -5000000, INT32))
    await peer.until(lambda: peer.of("PARAM_SET"))
    [(value, message)] = ParamPeer(peer).sets()
    assert (value.name, value.raw, value.param_type) == ("CAL_ID", (-5000000).to_bytes(4, "little", signed=True), INT32)
    assert (message.target_system, message.target_component) == (1, 1)
    assert message.get_msgId() == PARAM_SET_ID
    assert ParamType(value.param_type) is ParamType.INT32
