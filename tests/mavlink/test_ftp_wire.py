"""The bytes of MAVLink FTP, against pymavlink's and recorded ones, and the puzzle of a file's pieces. Pure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymavlink.dialects.v20 import all as mavlink

from petalbus.handlers.mavlink.files.ftp_read import Pieces
from petalbus.handlers.mavlink.files.ftp_wire import (
    Entry,
    FtpNak,
    FtpPacket,
    FtpPathInvalid,
    FtpRefused,
    Opcode,
    file_crc,
    pack_entry,
    pack_packet,
    path_bytes,
    rename_bytes,
    unpack_entries,
    unpack_packet,
    unpack_u32,
)

BYTE, WORD, LONG = st.integers(0, 255), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


@given(seq=WORD, opcode=BYTE, session=BYTE, offset=LONG, data=st.binary(max_size=239), req=BYTE, complete=st.booleans())
def test_packets_round_trip(
    seq: int, opcode: int, session: int, offset: int, data: bytes, req: int, complete: bool
) -> None:
    packet = FtpPacket(seq, opcode, session, offset, data, None, req, complete)
    payload = pack_packet(packet, system=7, component=9)
    assert len(payload) == 254
    for cut in (payload, payload.rstrip(b"\0"), payload + b"newer"):
        assert unpack_packet(cut) == (packet._replace(size=len(data)), 7, 9)
    message = mavlink.MAVLink_file_transfer_protocol_message(0, 7, 9, list(payload[3:]))
    packed = message.pack(mavlink.MAVLink(None))
    assert packed[10:-2] == (payload.rstrip(b"\0") or b"\0")


def test_the_layout_is_the_documented_one() -> None:
    packet = FtpPacket(0x0102, Opcode.READ_FILE, 3, 0x04050607, size=200)
    assert pack_packet(packet, system=1)[:15] == bytes.fromhex("000101 0201 03 05 c8 00 00 00 07060504")
    answer = FtpPacket(1, Opcode.NAK, data=b"\x02\x1c", req_opcode=4, burst_complete=True)
    assert pack_packet(answer, system=1)[3:17] == bytes.fromhex("0100 00 81 02 04 01 00 00000000 021c")
    assert answer.nak == (FtpNak.FAIL_ERRNO, 28)
    with pytest.raises(ValueError, match="240 bytes of data"):
        pack_packet(FtpPacket(0, 0, data=bytes(240)), system=1)


@given(st.binary(max_size=260))
def test_any_payload_is_a_packet_or_none(payload: bytes) -> None:
    unpacked = unpack_packet(payload)
    assert (unpacked is None) == (len(payload) > 7 and payload[7] > 239)
    if unpacked is not None:
        assert len(unpacked[0].data) == unpacked[0].size
        unpack_entries(unpacked[0].data)


def test_the_checksum_is_what_the_autopilots_compute() -> None:
    """Polynomial 0xEDB88320 (reflected), start 0, nothing inverted; in pieces or at once."""

    def by_bits(data: bytes) -> int:
        crc = 0
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
        return crc

    generator = random.Random(1)
    for size in (0, 1, 9, 1000):
        data = generator.randbytes(size)
        assert file_crc(data) == by_bits(data)
        assert file_crc(data[size // 3 :], file_crc(data[: size // 3])) == by_bits(data)
    assert file_crc(b"123456789") == 0x2DFD2D88


def test_entries() -> None:
    data = b"Dlog\0S\0Fdata man\t1208528\0Fno size\0D.\0\0D..\0\0Fodd\xff\t7\0D\0Xwhat\0"
    assert unpack_entries(data) == (
        9,
        [Entry("log", None), Entry("data man", 1208528), Entry("no size", 0), Entry("odd\\xff", 7)],
    )
    assert unpack_entries(b"") == (0, [])
    assert unpack_entries(b"".join(map(pack_entry, [Entry("ü", 3), Entry("b", None)])))[1] == [("ü", 3), ("b", None)]


def test_paths() -> None:
    assert path_bytes("@PARAM/ü") == b"@PARAM/\xc3\xbc"
    assert rename_bytes("/a", "/b") == b"/a\0/b"
    for path in ("", "\0", "x" * 239):
        with pytest.raises(FtpPathInvalid):
            path_bytes(path)
    with pytest.raises(ValueError, match="4 bytes are needed"):
        unpack_u32(b"abc")


def test_every_refusal_says_what_it_is() -> None:
    for nak in FtpNak:
        error = FtpRefused("open /a", nak, 28 if nak is FtpNak.FAIL_ERRNO else None)
        assert nak.name in str(error)
        assert error.detail["number"] == nak
    assert "ERROR_200" in str(FtpRefused("open /a", 200))


@given(
    size=st.integers(0, 400),
    start=st.integers(0, 100),
    pieces=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=40),
    end=st.none() | st.integers(0, 400),
)
def test_pieces_in_any_order_make_the_file(
    size: int, start: int, pieces: list[tuple[int, int]], end: int | None
) -> None:
    """Overlapping, repeated, beyond the end; what is a hole is told as one."""
    file = random.Random(size).randbytes(600)
    puzzle = Pieces(start, size)
    here: set[int] = set(range(start))
    out = b""
    for offset, length in pieces:
        puzzle.put(offset, file[offset : offset + length])
        here |= {at for at in range(offset, offset + length) if at < size}
        out += puzzle.take()
        reached = next(at for at in range(601) if at not in here)
        assert puzzle.next == max(start, reached)
        holes = {at for low, high in puzzle.holes() for at in range(low, high)}
        assert holes == {at for at in range(puzzle.next, puzzle.front) if at not in here}
    if end is not None:
        puzzle.finish(end)
    while not puzzle.complete:
        puzzle.put(puzzle.next, file[puzzle.next : puzzle.next + 50])
    out += puzzle.take()
    assert out == file[start : puzzle.next]
    assert puzzle.next == max(start, puzzle.end)
    assert puzzle.held == 0 or end is not None
