"""Parameter values travel as four bytes that never become a Python float on the way."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymavlink.dialects.v20 import all as mavlink

from petalbus.handlers.mavlink.params.values import (
    PARAM_SET_ID,
    PARAM_VALUE_ID,
    ParamEncoding,
    ParamType,
    ParamValue,
    decode_value,
    encode_value,
    pack_param_set,
    pack_param_value,
    unpack_param_set,
    unpack_param_value,
)
from petalbus.handlers.mavlink.wire.framing import build_frame

RANGES = {
    ParamType.UINT8: (0, 255),
    ParamType.INT8: (-128, 127),
    ParamType.UINT16: (0, 65535),
    ParamType.INT16: (-32768, 32767),
    ParamType.UINT32: (0, 2**32 - 1),
    ParamType.INT32: (-(2**31), 2**31 - 1),
}
BYTEWISE, C_CAST = ParamEncoding.BYTEWISE, ParamEncoding.C_CAST


@settings(deadline=None)
@given(st.data())
def test_every_integer_survives_bytewise(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(RANGES)))
    value = data.draw(st.integers(*RANGES[kind]))
    assert decode_value(encode_value(value, kind, BYTEWISE), kind, BYTEWISE) == value


def test_the_integer_that_looks_like_a_signalling_nan() -> None:
    """Facts: through a Python float -5000000 became -805696."""
    raw = encode_value(-5_000_000, ParamType.INT32, BYTEWISE)
    assert raw == struct.pack("<i", -5_000_000)
    through_a_float = struct.pack("<f", struct.unpack("<f", raw)[0])
    assert through_a_float != raw, "this machine's Python keeps signalling NaNs: the test proves nothing here"
    payload = pack_param_set(ParamValue("SDLOG_UTC_OFFSET", raw, ParamType.INT32), system=1, component=1)
    value, system, component = unpack_param_set(payload)
    assert (value.raw, system, component) == (raw, 1, 1)
    assert decode_value(value.raw, value.param_type, BYTEWISE) == -5_000_000


@settings(deadline=None)
@given(st.data())
def test_c_cast_keeps_the_number_or_refuses_it(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(RANGES)))
    value = data.draw(st.integers(*RANGES[kind]))
    try:
        raw = encode_value(value, kind, C_CAST)
    except ValueError:
        assert abs(value) > 2**24
        return
    assert struct.unpack("<f", raw)[0] == value
    assert decode_value(raw, kind, C_CAST) == value


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False))
def test_floats_are_floats_in_both(value: float) -> None:
    for encoding in ParamEncoding:
        assert decode_value(encode_value(value, ParamType.REAL32, encoding), ParamType.REAL32, encoding) == value


@pytest.mark.parametrize(
    ("value", "kind", "encoding", "says"),
    [
        (300, ParamType.UINT8, BYTEWISE, "0 to 255"),
        (-1, ParamType.UINT32, C_CAST, "0 to 4294967295"),
        (1.5, ParamType.INT32, BYTEWISE, "whole number"),
        (16_777_217, ParamType.INT32, C_CAST, "cannot travel"),
        (1e39, ParamType.REAL32, C_CAST, "REAL32"),
        (1, 10, BYTEWISE, "parameter type 10"),
    ],
)
def test_what_does_not_fit_is_refused(value: float, kind: int, encoding: ParamEncoding, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode_value(value, kind, encoding)


def test_a_float_that_is_no_number_is_no_integer() -> None:
    with pytest.raises(ValueError, match="no number"):
        decode_value(struct.pack("<f", float("nan")), ParamType.INT32, C_CAST)


@settings(deadline=None)
@given(
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", min_size=1, max_size=16),
    st.integers(0, 65535),
    st.floats(width=32),
)
def test_payloads_are_pymavlinks(name: str, index: int, number: float) -> None:
    raw = struct.pack("<f", number)
    value = ParamValue(name, raw, ParamType.REAL32, index, 900)
    assert unpack_param_value(pack_param_value(value)) == value
    frame = build_frame(PARAM_VALUE_ID, pack_param_value(value), crc_extra=220, sysid=1, compid=1, seq=0)
    theirs = mavlink.MAVLink(None).decode(bytearray(frame))
    assert (theirs.param_id, theirs.param_index, theirs.param_count, theirs.param_type) == (name, index, 900, 9)
    payload = pack_param_set(value, system=3, component=4)
    frame = build_frame(PARAM_SET_ID, payload, crc_extra=168, sysid=1, compid=1, seq=0)
    theirs = mavlink.MAVLink(None).decode(bytearray(frame))
    assert (theirs.param_id, theirs.target_system, theirs.target_component, theirs.param_type) == (name, 3, 4, 9)
