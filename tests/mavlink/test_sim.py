"""The simulated vehicle as a process of its own, on real UDP: against pymavlink's parser and our vehicle side."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import ACCEPTED, ARM_DISARM, LAND, REQUEST_MESSAGE, SET_MODE, TAKEOFF, Peer
from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, NotConnected
from petalbus.handlers.mavlink.flight.commands import CommandTimes
from petalbus.handlers.mavlink.flight.orders import Order, Verb
from petalbus.handlers.mavlink.params.values import (
    ParamEncoding,
    ParamType,
    ParamValue,
    decode_value,
    encode_value,
    pack_param_set,
)
from petalbus.handlers.mavlink.wire.framing import build_frame

from support.procs import Child, Children

SIM = "petalbus.handlers.mavlink.sim"
UNSUPPORTED = mavlink.MAV_RESULT_UNSUPPORTED
DENIED = mavlink.MAV_RESULT_DENIED
REJECTED = mavlink.MAV_RESULT_TEMPORARILY_REJECTED
FAILED = mavlink.MAV_RESULT_FAILED
MAV_CMD = mavlink.enums["MAV_CMD"]


class Ground:
    """A ground station made of pymavlink and a socket, and the simulated vehicle that talks to it."""

    def __init__(self, peer: Peer, child: Child) -> None:
        self.peer = peer
        self.child = child

    def command(self, number: int, *params: float, **target: int) -> None:
        full = [*params, *([0.0] * 7)][:7]
        system, component = target.get("system", 1), target.get("component", 1)
        self.peer.send(self.peer.mav.command_long_encode(system, component, number, 0, *full))

    async def order(self, number: int, *params: float, timeout: float = 10.0) -> int:
        """Send a command; the acknowledgement's result."""
        seen = len(self.peer.of("COMMAND_ACK"))
        self.command(number, *params)
        acks = await self.peer.until(lambda: self.peer.of("COMMAND_ACK")[seen:], timeout=timeout)
        assert acks[0].command == number
        assert (acks[0].target_system, acks[0].target_component) == (255, 190)
        return int(acks[0].result)

    def latest(self, name: str) -> Any:
        return self.peer.of(name)[-1]

    async def state(self, condition: Callable[[Any], bool], name: str = "HEARTBEAT", *, timeout: float = 20.0) -> Any:
        """The first message of a kind, from now on, that fulfils the condition."""
        seen = len(self.peer.of(name))
        found = await self.peer.until(lambda: [m for m in self.peer.of(name)[seen:] if condition(m)], timeout=timeout)
        return found[0]


@pytest.fixture
async def ground(children: Children, open_peer: Callable[..., Any]) -> Callable[..., Any]:
    async def start(*options: str) -> Ground:
        peer = await open_peer(system=255, component=190)
        child = await children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{peer.address[1]}", *options)
        await peer.until(lambda: peer.of("HEARTBEAT"))
        return Ground(peer, child)

    return start


def set_param(ground: Ground, name: str, raw: bytes, kind: int) -> None:
    payload = pack_param_set(ParamValue(name, raw, kind), system=1, component=1)
    ground.peer.send_bytes(build_frame(23, payload, crc_extra=168, sysid=255, compid=190, seq=0))


def raw_value(message: Any) -> bytes:
    """The four bytes as they travelled: a Python float would have changed some of them."""
    buffer = bytes(message.get_msgbuf())
    return buffer[10:14].ljust(4, b"\0")


@pytest.mark.alone
async def test_the_usual_messages_at_the_usual_rates(ground: Callable[..., Any]) -> None:
    station = await ground()
    station.peer.heartbeat()
    await station.peer.until(lambda: station.peer.of("HOME_POSITION"))
    await asyncio.sleep(0.3)  # its greetings, one of each rare message, are over
    first = len(station.peer.heard)
    began = time.monotonic()
    beats = len(station.peer.of("HEARTBEAT"))
    await station.peer.until(lambda: len(station.peer.of("HEARTBEAT")) >= beats + 4)
    took = time.monotonic() - began
    heard = [message.get_type() for message in station.peer.heard[first:]]
    rates = {name: heard.count(name) / took for name in set(heard)}
    expected = {
        "ATTITUDE": 50,
        "ATTITUDE_QUATERNION": 10,
        "LOCAL_POSITION_NED": 10,
        "GLOBAL_POSITION_INT": 10,
        "GPS_RAW_INT": 5,
        "EXTENDED_SYS_STATE": 2,
        "HEARTBEAT": 1,
        "SYS_STATUS": 1,
        "BATTERY_STATUS": 1,
        "SYSTEM_TIME": 1,
        "TIMESYNC": 1,
        "HOME_POSITION": 0.5,
        "MISSION_CURRENT": 1,
    }
    assert rates.keys() == expected.keys()
    for name, rate in expected.items():
        assert rates[name] == pytest.approx(rate, rel=0.25, abs=0.4), name
    assert station.peer.mav.total_receive_errors == 0
    beat = station.latest("HEARTBEAT")
    assert (beat.get_srcSystem(), beat.get_srcComponent(), beat.type, beat.autopilot) == (1, 1, 2, 12)
    assert (beat.base_mode, beat.custom_mode) == (29, 4 << 16 | 3 << 24), "as real PX4 in hold"
    assert station.latest("SYS_STATUS").voltage_battery == pytest.approx(16_700, abs=200)
    assert station.latest("GLOBAL_POSITION_INT").alt == 489_400


async def test_a_whole_flight(ground: Callable[..., Any]) -> None:
    station = await ground()
    set_param(station, "COM_DISARM_LAND", encode_value(0.3, ParamType.REAL32, ParamEncoding.BYTEWISE), ParamType.REAL32)
    assert await station.order(TAKEOFF, 0, 0, 0, 0, 0, 0, 489.4 + 2.0) == REJECTED, "disarmed"
    assert await station.order(ARM_DISARM, 1) == ACCEPTED
    assert await station.order(ARM_DISARM, 1) == ACCEPTED, "it is armed already"
    assert await station.order(TAKEOFF, 0, 0, 0, 0, 0, 0, 489.4 + 2.0) == ACCEPTED
    began = time.monotonic()
    await station.state(lambda m: m.relative_alt > 1500, "GLOBAL_POSITION_INT")
    assert 0.75 < time.monotonic() - began < 3.0, "at most 2 m/s"
    assert await station.order(ARM_DISARM, 0) == REJECTED, "not in the air"
    assert station.latest("HEARTBEAT").base_mode & 128
    high = await station.state(lambda m: m.landed_state == 2, "EXTENDED_SYS_STATE")
    assert high
    assert station.latest("GLOBAL_POSITION_INT").relative_alt == pytest.approx(2000, abs=200)
    used = station.latest("BATTERY_STATUS").current_battery
    assert used > 1000, "a hovering multicopter uses more than 10 A"
    assert await station.order(LAND) == ACCEPTED
    await station.state(lambda m: m.landed_state == 1, "EXTENDED_SYS_STATE")
    await station.state(lambda m: not m.base_mode & 128)
    assert station.latest("GLOBAL_POSITION_INT").relative_alt == 0


async def test_an_emergency_stop_in_the_air_falls(ground: Callable[..., Any]) -> None:
    station = await ground()
    await station.order(ARM_DISARM, 1)
    await station.order(TAKEOFF, 0, 0, 0, 0, 0, 0, 489.4 + 50)
    await station.state(lambda m: m.relative_alt > 1500, "GLOBAL_POSITION_INT")
    assert await station.order(ARM_DISARM, 0, 21196) == ACCEPTED
    began = time.monotonic()
    await station.state(lambda m: m.landed_state == 1, "EXTENDED_SYS_STATE")
    assert time.monotonic() - began < 1.6
    assert not station.latest("HEARTBEAT").base_mode & 128 or await station.state(lambda m: not m.base_mode & 128)


async def test_ardupilot_takes_off_from_guided_only(ground: Callable[..., Any]) -> None:
    station = await ground("--autopilot", "ardupilot")
    assert station.latest("HEARTBEAT").autopilot == 3
    assert await station.order(ARM_DISARM, 1) == ACCEPTED
    assert await station.order(TAKEOFF, 0, 0, 0, 0, 0, 0, 5) == FAILED
    assert await station.order(SET_MODE, 1, 99) == FAILED
    assert await station.order(SET_MODE, 1, 4) == ACCEPTED
    assert await station.order(TAKEOFF, 0, 0, 0, 0, 0, 0, 5) == ACCEPTED
    await station.state(lambda m: m.custom_mode == 4 and m.base_mode & 128)
    await station.state(lambda m: m.relative_alt > 500, "GLOBAL_POSITION_INT")


@pytest.mark.parametrize(
    ("number", "params", "result"),
    [
        (31000, (), UNSUPPORTED),
        (ARM_DISARM, (7,), DENIED),
        (SET_MODE, (1, 77, 0), DENIED),
        (REQUEST_MESSAGE, (300,), DENIED),
        (REQUEST_MESSAGE, (float("nan"),), DENIED),
        (mavlink.MAV_CMD_SET_MESSAGE_INTERVAL, (300, 100000), DENIED),
        (mavlink.MAV_CMD_PREFLIGHT_REBOOT_SHUTDOWN, (1,), DENIED),
    ],
)
async def test_what_it_cannot_do_is_said(
    ground: Callable[..., Any], number: int, params: tuple[float, ...], result: int
) -> None:
    station = await ground()
    assert await station.order(number, *params) == result


async def test_messages_on_request_leave_before_the_acknowledgement(ground: Callable[..., Any]) -> None:
    station = await ground()
    assert await station.order(REQUEST_MESSAGE, 148) == ACCEPTED
    names = [message.get_type() for message in station.peer.heard]
    assert names.index("AUTOPILOT_VERSION") < names.index("COMMAND_ACK")
    assert station.latest("AUTOPILOT_VERSION").capabilities & mavlink.MAV_PROTOCOL_CAPABILITY_PARAM_ENCODE_BYTEWISE
    assert await station.order(mavlink.MAV_CMD_SET_MESSAGE_INTERVAL, 30, -1) == ACCEPTED
    await station.state(lambda m: True, "LOCAL_POSITION_NED")
    count = len(station.peer.of("ATTITUDE"))
    await station.state(lambda m: True, "HEARTBEAT")
    assert len(station.peer.of("ATTITUDE")) <= count + 1
    assert await station.order(mavlink.MAV_CMD_GET_MESSAGE_INTERVAL, 30) == ACCEPTED
    assert station.latest("MESSAGE_INTERVAL").interval_us == -1


async def test_commands_for_others_are_not_answered(ground: Callable[..., Any]) -> None:
    station = await ground()
    station.command(ARM_DISARM, 1, system=9)
    station.command(ARM_DISARM, 1, component=154)
    assert await station.order(REQUEST_MESSAGE, 148) == ACCEPTED
    assert len(station.peer.of("COMMAND_ACK")) == 1


class TestParameters:
    """Both encodings, served as the two autopilots serve them."""

    async def test_px4_list_begins_with_the_hash_and_is_complete(self, ground: Callable[..., Any]) -> None:
        station = await ground()
        station.peer.send(station.peer.mav.param_request_list_encode(1, 1))
        values = await station.peer.until(lambda: station.peer.of("PARAM_VALUE"))
        count = values[0].param_count
        await station.peer.until(lambda: len(station.peer.of("PARAM_VALUE")) > count)
        values = station.peer.of("PARAM_VALUE")
        assert values[0].param_id == "_HASH_CHECK"
        assert [m.param_index for m in values[1:]] == list(range(count))
        autostart = next(m for m in values if m.param_id == "SYS_AUTOSTART")
        assert decode_value(raw_value(autostart), autostart.param_type, ParamEncoding.BYTEWISE) == 4001

    async def test_px4_set_bytewise_even_what_looks_like_a_nan(self, ground: Callable[..., Any]) -> None:
        station = await ground()
        raw = encode_value(-5_000_000, ParamType.INT32, ParamEncoding.BYTEWISE)
        set_param(station, "SDLOG_UTC_OFFSET", raw, ParamType.INT32)
        (echo,) = await station.peer.until(lambda: station.peer.of("PARAM_VALUE"))
        assert raw_value(echo) == raw
        station.peer.send(station.peer.mav.param_request_read_encode(1, 1, b"SDLOG_UTC_OFFSET", -1))
        read = (await station.peer.until(lambda: station.peer.of("PARAM_VALUE")[1:]))[0]
        assert decode_value(raw_value(read), read.param_type, ParamEncoding.BYTEWISE) == -5_000_000

    async def test_px4_refuses_a_wrong_type_and_an_unknown_name(self, ground: Callable[..., Any]) -> None:
        station = await ground()
        set_param(station, "COM_DISARM_LAND", encode_value(3, ParamType.INT32, ParamEncoding.BYTEWISE), ParamType.INT32)
        (error,) = await station.peer.until(lambda: station.peer.of("PARAM_ERROR"))
        assert (error.param_id, error.error) == ("COM_DISARM_LAND", 7)
        station.peer.send(station.peer.mav.param_request_read_encode(1, 1, b"NO_SUCH", -1))
        second = (await station.peer.until(lambda: station.peer.of("PARAM_ERROR")[1:]))[0]
        assert (second.param_id, second.error) == ("NO_SUCH", 1)
        assert not station.peer.of("PARAM_VALUE")

    async def test_ardupilot_casts_and_answers_reads_by_name_slowly(self, ground: Callable[..., Any]) -> None:
        station = await ground("--autopilot", "ardupilot")
        raw = encode_value(1800, ParamType.REAL32, ParamEncoding.C_CAST)
        set_param(station, "RTL_ALT", raw, ParamType.REAL32)
        (echo,) = await station.peer.until(lambda: station.peer.of("PARAM_VALUE"))
        assert (echo.param_value, echo.param_type) == (1800.0, ParamType.INT16)
        names = ["LOG_BITMASK"] * 30
        began = time.monotonic()
        for name in names:
            station.peer.send(station.peer.mav.param_request_read_encode(1, 1, name.encode(), -1))
        await station.peer.until(lambda: len(station.peer.of("PARAM_VALUE")) >= 21)
        assert time.monotonic() - began > 0.25, "five every 100 ms"
        answers = station.peer.of("PARAM_VALUE")[1:]
        assert {(m.param_value, m.param_index) for m in answers} == {(176126.0, 65535)}
        await station.state(lambda m: True, "HEARTBEAT")
        assert len(station.peer.of("PARAM_VALUE")) == 21, "its queue holds 20, the rest is dropped in silence"


class TestFailures:
    """The switches, each seeded."""

    async def test_a_silenced_command_is_obeyed_and_not_acknowledged(self, ground: Callable[..., Any]) -> None:
        station = await ground("--silence", "COMPONENT_ARM_DISARM", "--journal", "-")
        station.command(ARM_DISARM, 1)
        entry = json.loads(await station.child.line("COMPONENT_ARM_DISARM"))
        assert (entry["result"], entry["acknowledged"], entry["armed"]) == ("MAV_RESULT_ACCEPTED", False, True)
        await station.state(lambda m: m.base_mode & 128)
        assert not station.peer.of("COMMAND_ACK")

    async def test_loss_and_duplication(self, ground: Callable[..., Any]) -> None:
        station = await ground("--loss", "0.3", "--duplicate", "0.5", "--seed", "4")
        await station.peer.until(lambda: len(station.peer.of("ATTITUDE")) >= 100)
        times = [message.time_boot_ms for message in station.peer.of("ATTITUDE")]
        ticks = (times[-1] - times[0]) / 20
        assert len(set(times)) / ticks == pytest.approx(0.7, abs=0.15)
        assert 1 - len(set(times)) / len(times) == pytest.approx(1 / 3, abs=0.15)

    async def test_delay(self, ground: Callable[..., Any]) -> None:
        station = await ground("--delay-ms", "150")
        began = time.monotonic()
        assert await station.order(REQUEST_MESSAGE, 148) == ACCEPTED
        assert 0.29 < time.monotonic() - began < 1.5


class TestProcess:
    """Start and end of the program."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_it_ends_cleanly_on_a_signal(self, ground: Callable[..., Any], number: signal.Signals) -> None:
        station = await ground()
        station.child.signal(number)
        assert await station.child.wait() == 0
        assert station.child.errors == []

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--endpoint", "nonsense"], "no known kind"),
            (["--loss", "2"], "from 0 to 1"),
            (["--silence", "NO_SUCH_THING"], "NO_SUCH_THING"),
            (["--sysid", "0"], "1 to 255"),
        ],
    )
    async def test_wrong_options_are_explained(self, children: Children, options: list[str], says: str) -> None:
        child = await children.module(SIM, *options)
        assert await child.wait() == 2
        assert says in child.errors[-1]

    async def test_it_ends_when_its_parent_is_killed(self, children: Children, open_peer: Callable[..., Any]) -> None:
        peer = await open_peer(system=255, component=190)
        code = (
            "import subprocess, sys\n"
            f"p = subprocess.Popen([sys.executable, '-m', '{SIM}', '--exit-with-parent',"
            " '--endpoint', sys.argv[1]])\n"
            "print('child', p.pid, flush=True)\n"
            "p.wait()\n"
        )
        parent = await children.code(code, f"udpout:127.0.0.1:{peer.address[1]}")
        await parent.line("child")
        await peer.until(lambda: peer.of("HEARTBEAT"))
        parent.kill()
        async with asyncio.timeout(10):
            while True:
                count = len(peer.heard)
                await asyncio.sleep(0.3)
                if len(peer.heard) == count:
                    return

    async def test_it_listens_too(self, children: Children, open_peer: Callable[..., Any], open_station: Any) -> None:
        finder = await open_station()
        port = finder.address[1]
        await finder.link.transport.close()
        await children.module(SIM, "--endpoint", f"udpin:127.0.0.1:{port}")
        peer = await open_peer(remote=("127.0.0.1", port), system=255, component=190)

        async def call() -> None:
            while not peer.of("HEARTBEAT"):
                peer.heartbeat(autopilot=8)
                await asyncio.sleep(0.1)

        await asyncio.wait_for(call(), 10)


@pytest.mark.parametrize("kind", ["px4", "ardupilot"])
async def test_our_vehicle_side_flies_both_kinds(
    children: Children, open_station: Callable[..., Any], kind: str
) -> None:
    """Link, vehicle and commands against the real program, without the bus."""
    station = await open_station(times=CommandTimes())
    await children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{station.address[1]}", "--autopilot", kind)
    assert await station.vehicle.wait_connected(10.0)
    async with aclosing(station.vehicle.run(Order(Verb.TAKEOFF, 2.0))) as steps:
        results = [(step.stage, step.ack.result) async for step in steps]
    stages = ["arm", "takeoff"] if kind == "px4" else ["mode", "arm", "takeoff"]
    assert results == [(stage, ACCEPTED) for stage in stages]
    async with asyncio.timeout(10):
        while True:
            position = station.vehicle.state.position
            if position is not None and station.link.dialect.fields(position)["relative_alt"] > 1500:
                break
            await asyncio.sleep(0.05)
    async with aclosing(station.vehicle.run(Order(Verb.EMERGENCY_STOP))) as steps:
        assert [step.ack.result async for step in steps] == [ACCEPTED]


async def test_commands_survive_a_lossy_wire_without_being_repeated(
    children: Children, open_station: Callable[..., Any]
) -> None:
    """A third of everything is lost each way: every order ends in an answer or in "unknown", and leaves once."""
    station = await open_station()
    endpoint = f"udpout:127.0.0.1:{station.address[1]}"
    child = await children.module(SIM, "--endpoint", endpoint, "--loss", "0.33", "--seed", "11", "--journal", "-")
    assert await station.vehicle.wait_connected(10.0)
    answered = unknown = 0
    for _ in range(12):
        try:
            async with aclosing(station.vehicle.run(Order(Verb.LAND))) as steps:
                answered += len([step async for step in steps])
        except CommandOutcomeUnknown as error:
            unknown += error.sent
        except NotConnected:
            assert await station.vehicle.wait_connected(10.0)
    obeyed = sum("NAV_LAND" in line for line in child.output)
    assert answered >= 1
    assert unknown >= 1
    assert answered <= obeyed <= answered + unknown
