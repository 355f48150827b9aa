"""Sessions recorded with real ArduPilot and PX4: through the ingest, and once more with the simulated vehicle.

What must agree is the form: which messages answer, in which order, with which results, flags and numbers. Values of
parameters, contents of files and positions are the vehicle's own.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from bus.clients import until
from mavlink.recorded import CAPTURES, Exchange, lines, messages, operation, recorded, replayed
from petalbus.daemon.bus.client import Bus

from support.mavlink_rig import rig
from support.servers import RealServer

pytestmark = pytest.mark.skipif(not CAPTURES.is_dir(), reason="the recorded sessions are not here")

KINDS = ("px4", "ardupilot")
BOTH = (
    *("REQUEST_MESSAGE", "SET_MESSAGE_INTERVAL", "COMPONENT_ARM_DISARM", "NAV_TAKEOFF", "PREFLIGHT_REBOOT_SHUTDOWN"),
    *("PARAM_REQUEST_READ", "PARAM_SET", "PARAM_REQUEST_LIST", "FTP_RESET", "FTP_LIST", "TIMESYNC"),
    *("MISSION_COUNT", "MISSION_ITEM_INT", "MISSION_REQUEST_LIST", "MISSION_REQUEST_INT", "MISSION_ACK"),
    *("LOG_REQUEST_LIST", "LOG_REQUEST_DATA", "LOG_REQUEST_END"),
)
OPERATIONS = [
    *((kind, name) for kind in KINDS for name in BOTH),
    ("px4", "NAV_LAND"),
    *(("ardupilot", name) for name in ("DO_SET_MODE", "FTP_OPEN", "FTP_BURST", "FTP_TERMINATE")),
]
"""Every operation that the sessions have."""

ACK, NAK = 128, 129
NO_INDEX = 65535
OWN = {
    "AUTOPILOT_VERSION": (),
    "SYSTEM_TIME": (),
    "PARAM_ERROR": ("target_system", "target_component", "param_id", "error"),
    "TIMESYNC": ("ts1",),
    "LOG_DATA": ("id", "ofs", "count"),
}
"""The fields that must agree, for messages where not all must."""


def form(request: Any, message: Any) -> tuple[str, Any]:
    """What an answer of the simulated vehicle must have in common with the real one's."""
    name, fields = message.get_type(), message.to_dict()
    del fields["mavpackettype"]
    if name == "PARAM_VALUE":
        value = message.param_value if request.get_type() == "PARAM_SET" else None
        return name, (message.param_id, message.param_type, message.param_index == NO_INDEX, value)
    if name == "FILE_TRANSFER_PROTOCOL":
        sequence, session, opcode, size, asked, burst = _ftp(message)
        told = bytes(message.payload[12 : 12 + size]) if opcode == NAK else size > 0
        return name, (sequence, session, opcode, asked, burst, message.payload[8:12], told)
    if name == "LOG_ENTRY":
        return name, (message.id, message.last_log_num - message.num_logs)
    if name == "MISSION_ITEM_INT" and fields["frame"] == 0 and fields["seq"] == 0:
        home = ("x", "y", "z")  # ArduPilot's own idea of it
        return name, {key: str(value) for key, value in fields.items() if key not in home}
    return name, {key: str(value) for key, value in fields.items() if key in OWN.get(name, fields)}


def _ftp(message: Any) -> tuple[int, ...]:
    """Sequence, session, opcode, size, opcode asked, burst complete."""
    payload = message.payload
    return payload[0] | payload[1] << 8, payload[2], payload[3], payload[4], payload[5], payload[6]


def of(kind: str, name: str) -> list[Exchange]:
    found = [one for one in replayed(kind).exchanges if operation(one.request) == name]
    assert found, f"the session has no {name}"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_operations_is_complete(kind: str) -> None:
    """Nothing that the session asks for is left out below."""
    assert {operation(one.request) for one in recorded(kind)} == {name for which, name in OPERATIONS if which == kind}


@pytest.mark.parametrize(("kind", "name"), OPERATIONS)
def test_the_simulated_vehicle_answers_in_the_same_form(kind: str, name: str) -> None:
    """Every request of the session, byte for byte: the same answers, in the same order, with the same results."""
    for one in of(kind, name):
        real = [form(one.request, message) for message in one.real]
        simulated = [form(one.request, message) for message in one.simulated]
        if name in ("PARAM_REQUEST_LIST", "FTP_BURST", "LOG_REQUEST_LIST"):  # as long as what they tell of
            simulated, real = simulated[:1], real[:1]
            if name == "PARAM_REQUEST_LIST" and kind == "ardupilot":
                simulated, real = [], []  # each begins with its own first parameter
        assert simulated == real, f"{one.request}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_parameters_counts_up_without_a_gap(kind: str) -> None:
    """PX4 begins with its hash, ArduPilot with the first; every value tells the same total."""
    (one,) = of(kind, "PARAM_REQUEST_LIST")
    for came in (one.real, one.simulated):
        values = came[1:] if kind == "px4" else came
        assert (came[0].param_id == "_HASH_CHECK") is (kind == "px4")
        assert [message.param_index for message in values] == list(range(came[0].param_count))
        assert {message.param_count for message in came} == {len(values)}


def test_a_burst_ends_with_the_end_of_the_file() -> None:
    """ArduPilot: pieces of the size asked for, numbers that count up, and a last refusal that says END_OF_FILE."""
    (one,) = of("ardupilot", "FTP_BURST")
    for came in (one.real, one.simulated):
        heads = [_ftp(message) for message in came]
        assert [head[0] for head in heads] == list(range(heads[0][0], heads[0][0] + len(heads)))
        assert {head[2] for head in heads[:-1]} == {ACK}
        assert {head[3] for head in heads[:-2]} == {80}
    assert form(one.request, one.real[-1])[1][2:5] == form(one.request, one.simulated[-1])[1][2:5]
    assert one.real[-1].payload[12] == one.simulated[-1].payload[12] == 6


@pytest.mark.parametrize("kind", KINDS)
def test_listings_are_written_in_the_same_way(kind: str) -> None:
    """PX4 has one zero behind an entry and skips its dots, ArduPilot has two zeros and names them."""
    for one in of(kind, "FTP_LIST"):
        if one.real[0].payload[3] == NAK:
            continue
        shapes = []
        for message in (one.real[0], one.simulated[0]):
            data = bytes(message.payload[12 : 12 + message.payload[4]])
            end = b"\0\0" if data.endswith(b"\0\0") else b"\0"
            entries = data.split(end)[:-1]
            assert all(entries)
            dots = {entry for entry in entries if entry in (b"S", b"D.", b"D..")}
            others = [entry for entry in entries if entry not in (b"S", b"D.", b"D..")]
            assert all((entry[:1] == b"F") is (b"\t" in entry) and entry[:1] in b"DF" for entry in others)
            sizes = {entry.rpartition(b"\t")[2] for entry in others} if "@SYS" in str(one.request) else None
            shapes.append((end, dots, sizes))
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", KINDS)
def test_capabilities_are_no_more_than_the_real_ones(kind: str) -> None:
    """And those that decide how others talk to it are there: C casts or bytes, integers, fences and rally points."""
    exchange = of(kind, "REQUEST_MESSAGE")[0]
    real, simulated = (
        next(message.capabilities for message in came if message.get_type() == "AUTOPILOT_VERSION")
        for came in (exchange.real, exchange.simulated)
    )
    assert simulated & ~real == 0
    deciding = 2 | 4 | 8 | 16 | 32 | 8192 | 16384 | 32768 | 131072
    assert simulated & deciding == real & deciding


@pytest.mark.parametrize("kind", KINDS)
def test_heartbeats_pass_through_the_same_states(kind: str) -> None:
    """Base mode, custom mode and state through the flight, the landing, and ArduPilot's reboot."""

    def states(all_messages: list[Any]) -> list[tuple[int, ...]]:
        beats = [message for message in all_messages if message.get_type() == "HEARTBEAT"]
        assert {(beat.type, beat.autopilot, beat.mavlink_version) for beat in beats} == {
            (2, 12 if kind == "px4" else 3, 3)
        }
        seen = [key for key, _ in groupby((beat.base_mode, beat.custom_mode, beat.system_status) for beat in beats)]
        return seen[1:] if seen[0][2] in (0, 1) else seen  # the session begins with the boot, ours after it

    real = states([message for way, message in messages(kind) if way == "down"])
    simulated = states(replayed(kind).peer.heard)
    if kind == "px4":  # it tells its state once a second, ours fifty times: armed, and not yet told to take off
        held, taking_off = simulated[0], real[1]
        moment = (taking_off[0], held[1], taking_off[2])
        assert moment not in real
        simulated = [state for state in simulated if state != moment]
    assert simulated == real


def test_px4_tells_how_far_a_mission_is_in_the_same_words() -> None:
    """MISSION_CURRENT's total, state and mode: none, not started, flying, landed.

    Not what ours says between accepting a mission and looking at it: PX4 says it once a second, and was not asked then.
    """
    told = []
    for heard in ([message for way, message in messages("px4") if way == "down"], replayed("px4").peer.heard):
        current = [message for message in heard if message.get_type() == "MISSION_CURRENT" and message.seq != NO_INDEX]
        told.append([key for key, _ in groupby((one.total, one.mission_state, one.mission_mode) for one in current)])
    assert set(told[1]) <= set(told[0])
    assert told[1][0] == told[0][0]
    assert told[1][-1] == told[0][-1]


def test_what_they_say_unasked() -> None:
    """PX4 stows a gimbal when it comes down; ArduPilot tells arming and disarming, and home when it arms."""
    gimbal = [message for message in replayed("px4").peer.heard if message.get_type() == "COMMAND_LONG"]
    real = [message for way, message in messages("px4") if way == "down" and message.get_type() == "COMMAND_LONG"]
    assert [str(one) for one in gimbal] == [str(one) for one in real[: len(gimbal)]]
    assert len(gimbal) == 3
    heard = replayed("ardupilot").peer.heard
    texts = [message.text for message in heard if message.get_type() == "STATUSTEXT"]
    said = {message.text for _, message in messages("ardupilot") if message.get_type() == "STATUSTEXT"}
    for text in ("Arming motors", "Disarming motors", "Flight plan received"):
        assert text in texts
        assert text in said
    names = {message.get_type() for message in heard}
    assert {"HOME_POSITION", "GPS_GLOBAL_ORIGIN"} <= names
    asked_for = {"ATTITUDE", "GLOBAL_POSITION_INT", "SYSTEM_TIME"}
    first = [message.get_type() for message in heard].index("COMMAND_ACK")
    assert not asked_for & {message.get_type() for message in heard[:first]}, "nothing streams before it is asked for"
    assert asked_for <= names


@pytest.mark.parametrize("kind", KINDS)
async def test_a_session_passes_through_the_ingest_byte_for_byte(server: RealServer, bus_name: str, kind: str) -> None:
    """Both directions, as a router would bring them: what is read from the bus is what was sent, in order."""
    sent = [data for _, _, data in lines(kind)]
    frames = [data for data in sent if data[0] in (0xFD, 0xFE)]
    async with rig(server, bus_name) as vehicle, Bus(server.url, app="reader", bus=bus_name) as bus:
        peer = await vehicle.scripted()
        before = peer.sent
        stream, last = bus.keys.topic("mavlink.rx"), "-"
        stored: list[bytes] = []
        for start in range(0, len(sent), 400):
            for data in sent[start : start + 400]:
                peer.send_bytes(data)
            end = before + sum(data[0] in (0xFD, 0xFE) for data in sent[: start + 400])
            await until(lambda end=end: vehicle.handler.ingest.published >= end, "all are stored")  # type: ignore[misc]  # a default binds it
            rows = await bus.call("XRANGE", stream, last, "+")
            stored += [fields[5] for _, fields in rows]
            last = f"({rows[-1][0].decode()}"
        assert stored[before:] == frames
        assert vehicle.handler.ingest.lost == 0
        assert vehicle.handler.link.statistics()["received"]["crc_errors"] == 0


def test_the_real_ones_are_read_by_pymavlink() -> None:
    """The comparison above is worth something: the sessions have answers, refusals and messages of their own."""
    for kind in KINDS:
        exchanges = recorded(kind)
        assert sum(bool(one.real) for one in exchanges) >= len(exchanges) - 3
    errors = [one for one in recorded("px4") if one.real and one.real[0].get_type() == "PARAM_ERROR"]
    assert {one.real[0].error for one in errors} == {1, 5, 7}
    refused = [one for one in recorded("px4") if operation(one.request) == "PREFLIGHT_REBOOT_SHUTDOWN"]
    assert refused[0].real[0].result == mavlink.MAV_RESULT_DENIED
