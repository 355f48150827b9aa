"""ArduPilot's packed parameter file: round trips, damage, the recorded one, and over the simulated vehicle."""

from __future__ import annotations

import gzip
import json
import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mavlink.ground import ftp_rig
from petalbus.handlers.mavlink.files.ftp_read import Pieces
from petalbus.handlers.mavlink.files.ftp_wire import FTP_ID, FtpPacket, Opcode, pack_packet, unpack_packet
from petalbus.handlers.mavlink.params.pack import (
    PARAM_FILE,
    PackedParam,
    ParamPackError,
    decode_param_pack,
    encode_param_pack,
)
from petalbus.handlers.mavlink.params.values import ParamType
from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS
from petalbus.handlers.mavlink.wire.dialect import load_dialect
from petalbus.handlers.mavlink.wire.framing import Framer

CAPTURE = Path(__file__).resolve().parents[3] / "shared" / "data" / "captures" / "ardupilot.jsonl.gz"

RANGES = {ParamType.INT8: 7, ParamType.INT16: 15, ParamType.INT32: 31}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"


@st.composite
def params(draw: st.DrawFn) -> PackedParam:
    name = draw(st.text(LETTERS[:3], max_size=8)) + draw(st.text(LETTERS, min_size=1, max_size=8))
    kind = draw(st.sampled_from([*RANGES, ParamType.REAL32]))
    if kind is ParamType.REAL32:
        number: st.SearchStrategy[float] = st.floats(width=32, allow_nan=False)
    else:
        number = st.integers(-(1 << RANGES[kind]), (1 << RANGES[kind]) - 1)
    return PackedParam(name, draw(number), kind, draw(st.none() | number))


@given(entries=st.lists(params(), max_size=30), with_defaults=st.booleans(), block=st.sampled_from([0, 16, 80, 239]))
def test_round_trip(entries: list[PackedParam], with_defaults: bool, block: int) -> None:
    data = encode_param_pack(entries, total=len(entries) + 3, with_defaults=with_defaults, block=block)
    pack = decode_param_pack(data)
    assert pack.total == len(entries) + 3
    assert pack.params == (entries if with_defaults else [entry._replace(default=None) for entry in entries])
    assert decode_param_pack(data + bytes(7)) == pack, "padding at the end"


@given(entries=st.lists(params(), min_size=1, max_size=10), data=st.data())
def test_a_cut_file_is_an_error(entries: list[PackedParam], data: st.DataObject) -> None:
    whole = encode_param_pack(entries)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ParamPackError):
        decode_param_pack(whole[:cut])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_an_error(noise: bytes) -> None:
    for data in (noise, struct.pack("<HHH", 0x671B, 5, 5) + noise, struct.pack("<HHH", 0x671C, 2, 2) + noise):
        with suppress(ParamPackError):
            decode_param_pack(data)


def test_what_the_file_cannot_hold() -> None:
    for wrong in (
        PackedParam("", 1, ParamType.INT8),
        PackedParam("X" * 17, 1, ParamType.INT8),
        PackedParam("Ü", 1, ParamType.INT8),
        PackedParam("X", 128, ParamType.INT8),
        PackedParam("X", 1, ParamType.UINT8),
        PackedParam("X", 1e300, ParamType.REAL32),
    ):
        with pytest.raises(ParamPackError):
            encode_param_pack([wrong])
    with pytest.raises(ParamPackError, match="0xffff"):
        decode_param_pack(b"\xff" * 20)


def test_the_layout_is_ardupilots() -> None:
    entries = [PackedParam("AB_C", 5, ParamType.INT8), PackedParam("AB_DE", 1.5, ParamType.REAL32, 2.0)]
    assert encode_param_pack(entries) == bytes.fromhex("1b6702000200 0130 41425f43 05  0413 4445 0000c03f")
    assert encode_param_pack(entries, with_defaults=True)[-12:] == bytes.fromhex("1413 4445 0000c03f 00000040")
    padded = encode_param_pack(entries, block=20)
    assert padded == bytes.fromhex("1b6702000200 0130 41425f43 05 000000 0413 4445 0000c03f")
    assert [param.name for param in decode_param_pack(padded).params] == ["AB_C", "AB_DE"]


def recorded() -> Iterator[FtpPacket]:
    framer = Framer(load_dialect().crc_extras)
    with gzip.open(CAPTURE, "rt", encoding="ascii") as lines:
        for line in lines:
            _, way, text = json.loads(line)
            for frame in framer.feed_datagram(bytes.fromhex(text)) if way == "down" else ():
                unpacked = unpack_packet(frame.payload) if frame.msgid == FTP_ID else None
                if unpacked is not None:
                    assert unpack_packet(pack_packet(unpacked[0], system=unpacked[1])) is not None
                    yield unpacked[0]


@pytest.mark.skipif(not CAPTURE.is_file(), reason="the recorded sessions are not here")
def test_the_recorded_file() -> None:
    """A real ArduPilot's 1,362 parameters come out, and go back in byte for byte."""
    pieces = Pieces(0, 1 << 20)
    for packet in recorded():
        if packet.req_opcode == Opcode.BURST_READ_FILE:
            if packet.nak is not None:
                pieces.finish(packet.offset)
            else:
                pieces.put(packet.offset, packet.data)
    assert pieces.complete
    data = pieces.take()
    pack = decode_param_pack(data)
    assert len(pack.params) == pack.total == 1362
    values = {param.name: param for param in pack.params}
    assert len(values) == 1362
    assert values["FORMAT_VERSION"] == ("FORMAT_VERSION", 120, ParamType.INT16, None)
    assert values["ARMING_ACCTHRESH"].value == 0.75
    assert all(math.isfinite(param.value) for param in pack.params)
    assert encode_param_pack(pack.params, total=pack.total, block=80) == data


async def test_over_a_bad_wire() -> None:
    """With gaps filled in the same steps as the burst, for its padding depends on them."""
    async with ftp_rig(AUTOPILOTS["ardupilot"], loss=0.1) as (ftp, vehicle, _):
        store = vehicle.sim.params.store
        entries = [PackedParam(name, at, ParamType.INT16) for at, name in enumerate(store.names)]
        data = encode_param_pack(entries, block=239)
        vehicle.server.extra = lambda path: data if path == PARAM_FILE else None
        vehicle.server.announce = 1 << 20
        assert decode_param_pack(await ftp.read(PARAM_FILE)).params == entries
