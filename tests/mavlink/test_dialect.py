"""The dialect: what we decode and pack is what pymavlink decodes and packs."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymavlink.dialects.v20 import all as mavlink

from petalbus.handlers.mavlink import decode
from petalbus.handlers.mavlink.errors import DialectError
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame, build_frame
from petalbus.schemas import Record

DIALECT = load_dialect()
MESSAGES = sorted(mavlink.mavlink_map)


def frame_with(msgid: int, payload: bytes) -> Frame:
    size = mavlink.mavlink_map[msgid].unpacker.size
    full = payload[:size].ljust(size, b"\0")
    raw = build_frame(msgid, full, crc_extra=DIALECT.crc_extras[msgid], sysid=9, compid=8, seq=7)
    return Frame.from_raw(raw)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float):
        return ours == theirs or (math.isnan(ours) and math.isnan(theirs))
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, str):
        return (
            not ours.isascii() or "\N{REPLACEMENT CHARACTER}" in theirs or ours == theirs
        )  # pymavlink knows only ASCII
    return bool(ours == theirs)


@settings(deadline=None)
@given(st.sampled_from(MESSAGES), st.binary(max_size=255))
def test_every_message_decodes_as_pymavlink_decodes_it(msgid: int, payload: bytes) -> None:
    frame = frame_with(msgid, payload)
    theirs = mavlink.MAVLink(None).decode(bytearray(frame.raw)).to_dict()
    ours = DIALECT.decode(frame, json_safe=False)
    header = ours.pop("header")
    assert (header["msgid"], header["system"], header["component"], header["seq"]) == (msgid, 9, 8, 7)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert same(value, theirs[name]), (theirs["mavpackettype"], name)


@settings(deadline=None)
@given(st.sampled_from(MESSAGES), st.binary(max_size=255))
def test_what_is_decoded_is_always_json(msgid: int, payload: bytes) -> None:
    text = json.dumps(DIALECT.decode(frame_with(msgid, payload)), allow_nan=False)
    assert json.loads(text)["mavpackettype"] == DIALECT.names[msgid]


def test_nan_and_infinity_become_null_unless_asked_for() -> None:
    payload = struct.pack("<Iffffff", 5, math.nan, math.inf, -math.inf, 1.0, 2.0, 3.0)
    frame = frame_with(30, payload)
    safe = DIALECT.decode(frame)
    assert (safe["roll"], safe["pitch"], safe["yaw"], safe["rollspeed"]) == (None, None, None, 1.0)
    exact = DIALECT.decode(frame, json_safe=False)
    assert math.isnan(exact["roll"])
    assert exact["pitch"] == math.inf


def test_an_unknown_message_keeps_its_payload() -> None:
    raw = build_frame(54321, b"\x01\xff", crc_extra=1, sysid=1, compid=1, seq=0)
    decoded = DIALECT.decode(Frame.from_raw(raw))
    assert decoded["mavpackettype"] == "UNKNOWN_54321"
    assert decoded["payload"] == "01ff"
    with pytest.raises(DialectError, match="54321"):
        DIALECT.fields(Frame.from_raw(raw))


def test_messages_are_packed_with_one_running_sequence() -> None:
    packer = Packer(DIALECT, system=2, component=140)
    message = DIALECT.message("STATUSTEXT", severity=4, text="low battery")
    raws = [packer.pack(message) for _ in range(257)]
    raws.append(packer.pack_payload(30, bytes(28)))
    frames = [Frame.from_raw(raw) for raw in raws]
    assert [frame.seq for frame in frames] == [index & 0xFF for index in range(258)]
    assert DIALECT.decode(frames[0])["text"] == "low battery"
    assert {(frame.sysid, frame.compid) for frame in frames} == {(2, 140)}


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_are_packed(version: int) -> None:
    packer = Packer(DIALECT, system=2, component=140, version=version)
    frame = Frame.from_raw(packer.pack(DIALECT.message("HEARTBEAT", type=6)))
    assert frame.version == version
    assert DIALECT.decode(frame)["type"] == 6


def test_fields_not_given_are_zero_and_arrays_are_filled() -> None:
    packer = Packer(DIALECT, system=1, component=1)
    frame = Frame.from_raw(packer.pack(DIALECT.message("BATTERY_STATUS", voltages=[4100, 4101])))
    decoded = DIALECT.decode(frame)
    assert decoded["voltages"] == [4100, 4101, 0, 0, 0, 0, 0, 0, 0, 0]
    assert decoded["temperature"] == 0


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [("ATTITUD", {}, "ATTITUD"), ("ATTITUDE", {"rol": 1.0}, "rol")],
)
def test_a_wrong_message_or_field_is_named(name: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DialectError, match=says):
        DIALECT.message(name, **fields)


def test_a_dialect_is_chosen_by_name_or_module_and_a_wrong_one_refused() -> None:
    minimal = load_dialect("minimal")
    assert set(minimal.names.values()) == {"HEARTBEAT"} or "HEARTBEAT" in minimal.names.values()
    assert load_dialect("pymavlink.dialects.v20.common").ids["ATTITUDE"] == 30
    assert load_dialect("common") is load_dialect("common")
    for wrong in ("no_such_dialect", "json", "os.path"):
        with pytest.raises(DialectError, match="cannot be loaded"):
            load_dialect(wrong)


@pytest.mark.parametrize(("system", "component", "version"), [(0, 1, 2), (256, 1, 2), (1, 0, 2), (1, 1, 3)])
def test_a_sender_out_of_range_is_refused(system: int, component: int, version: int) -> None:
    with pytest.raises(ValueError, match="MAVLink"):
        Packer(DIALECT, system=system, component=component, version=version)


def test_enumeration_values_have_names() -> None:
    assert DIALECT.enum_name("MAV_RESULT", 0) == "MAV_RESULT_ACCEPTED"
    assert DIALECT.enum_name("MAV_RESULT", 200) == "MAV_RESULT_200"
    assert DIALECT.enum_name("MAV_CMD", 22) == "MAV_CMD_NAV_TAKEOFF"


def record(data: bytes, content_type: str | None) -> Record:
    values = {"id": "a", "type": "mavlink.ATTITUDE", "source": "vehicle", "data": data, "content_type": content_type}
    return Record.checked(values)


def test_a_record_is_decoded_when_somebody_looks() -> None:
    raw = frame_with(30, struct.pack("<Iffffff", 5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0)).raw
    assert decode(record(raw, "application/x-mavlink"))["roll"] == 0.5


@pytest.mark.parametrize(("data", "content_type"), [(b'{"a": 1}', None), (b"\xfd\x00", "application/x-mavlink")])
def test_a_record_without_a_frame_is_refused(data: bytes, content_type: str | None) -> None:
    with pytest.raises((TypeError, ValueError), match=r"MAVLink frame"):
        decode(record(data, content_type))
