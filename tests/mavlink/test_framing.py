"""Framing: every intact frame comes out, whatever happens to the bytes around it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymavlink.dialects.v20 import all as mavlink

from petalbus.handlers.mavlink.wire.crc import crc, crc_in_python, crc_with_extra, implied_extra
from petalbus.handlers.mavlink.wire.framing import MAX_FRAME_BYTES, Frame, Framer, build_frame

EXTRAS = {msgid: message.crc_extra for msgid, message in mavlink.mavlink_map.items()}
UNKNOWN = 54321
UNKNOWN_EXTRA = 77


def attitude(seq: int = 0, *, roll: float = 0.25, version: int = 2, system: int = 1) -> bytes:
    """A frame packed by pymavlink."""
    mav = mavlink.MAVLink(None, srcSystem=system, srcComponent=1)
    mav.seq = seq & 0xFF
    message = mavlink.MAVLink_attitude_message(1000 + seq, roll, -0.5, 1.5, 0.0, 0.25, -0.125)
    return bytes(message.pack(mav, force_mavlink1=version == 1))


def unknown(seq: int, payload: bytes = b"\x01\x02\x03", *, system: int = 1, extra: int = UNKNOWN_EXTRA) -> bytes:
    return build_frame(UNKNOWN, payload, crc_extra=extra, sysid=system, compid=1, seq=seq & 0xFF)


def signed(seq: int) -> bytes:
    mav = mavlink.MAVLink(None, srcSystem=1, srcComponent=1)
    mav.seq = seq
    mav.signing.secret_key = bytes(32)
    mav.signing.sign_outgoing = True
    return bytes(mavlink.MAVLink_attitude_message(1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0).pack(mav))


def raws(frames: Sequence[Frame]) -> list[bytes]:
    return [frame.raw for frame in frames]


def collect(data: bytes, cuts: Sequence[int] = ()) -> tuple[list[bytes], Framer]:
    framer = Framer(EXTRAS)
    out: list[bytes] = []
    edges = [0, *sorted(set(cuts)), len(data)]
    for start, end in pairwise(edges):
        out += raws(framer.feed(data[start:end]))
    return out, framer


@pytest.mark.parametrize("version", [1, 2])
def test_a_frame_tells_its_header_and_payload(version: int) -> None:
    raw = attitude(7, version=version, system=42)
    (frame,) = Framer(EXTRAS).feed(raw)
    assert (frame.version, frame.msgid, frame.seq, frame.sysid, frame.compid) == (version, 30, 7, 42, 1)
    assert frame.raw == raw
    assert frame.payload == raw[10 if version == 2 else 6 : -2]
    assert not frame.signed


def test_two_frames_and_another_version_in_one_piece() -> None:
    parts = [attitude(0), attitude(1, version=1), attitude(2)]
    out, framer = collect(b"".join(parts))
    assert out == parts
    assert framer.counters.crc_errors == framer.counters.lost == framer.counters.skipped_bytes == 0


def test_split_at_every_byte() -> None:
    parts = [attitude(0), unknown(1), attitude(2, version=1), signed(3), attitude(4)]
    data = b"".join(parts)
    for cut in range(1, len(data)):
        assert collect(data, [cut])[0] == parts, cut
    assert collect(data, range(1, len(data)))[0] == parts


def test_garbage_between_frames_is_skipped_and_counted() -> None:
    noise = bytes(range(200)) + b"\xfd\xfe\xfd"
    parts = [attitude(0), attitude(1), attitude(2)]
    out, framer = collect(parts[0] + noise + parts[1] + noise + parts[2])
    out += raws(framer.flush())  # the noise ends like a long frame's start: only silence can tell
    assert out == parts
    assert framer.counters.skipped_bytes == 2 * len(noise)


def test_damage_in_every_byte_costs_only_the_frame_it_hits() -> None:
    """A scan that skipped the claimed length would lose frames behind a damaged length."""
    before, hit, *after = (attitude(seq) for seq in range(20))
    for position in range(len(hit)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(hit)
            damaged[position] ^= flip
            framer = Framer(EXTRAS)
            out = raws(framer.feed(before + bytes(damaged) + b"".join(after)))
            assert [raw for raw in out if raw != bytes(damaged)] == [before, *after], (position, flip)


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400), st.lists(st.integers(0, 900), max_size=12))
def test_any_garbage_and_any_cuts_never_change_what_comes_out(noise: bytes, place: int, cuts: list[int]) -> None:
    stream = b"".join(attitude(seq) for seq in range(6))
    data = stream[:place] + noise + stream[place:]
    whole, framer = collect(data)
    pieces, other = collect(data, [cut for cut in cuts if 0 < cut < len(data)])
    assert pieces == whole
    assert other.counters == framer.counters
    assert framer.pending < 2 * MAX_FRAME_BYTES
    assert raws(framer.flush()) == raws(other.flush())


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_intact_frame_is_found_in_noise(noises: list[bytes], rng: random.Random) -> None:
    frames = [attitude(seq, roll=rng.uniform(-1, 1)) for seq in range(len(noises))]
    data = b"".join(part for pair in zip(noises, frames, strict=True) for part in pair)
    framer = Framer(EXTRAS)
    out = raws(framer.feed(data)) + raws(framer.flush())
    assert [raw for raw in out if raw in frames] == frames


def test_five_percent_damage_loses_no_intact_frame() -> None:
    """Facts: pymavlink's parser lost 192 of 4,759 intact frames here."""
    rng = random.Random(5)
    sent, intact = [], []
    for seq in range(3000):
        raw = (
            attitude(seq, roll=rng.uniform(-3, 3))
            if rng.random() < 0.8
            else unknown(seq, rng.randbytes(rng.randrange(1, 60)))
        )
        if rng.random() < 0.05:
            damaged = bytearray(raw)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            sent.append(bytes(damaged))
            if bytes(damaged) == raw:
                intact.append(raw)
        else:
            sent.append(raw)
            intact.append(raw)
    framer = Framer(EXTRAS)
    out = raws(framer.feed(b"".join(sent))) + raws(framer.flush())
    assert set(intact) <= set(out)
    assert len(out) == len(intact), "nothing but intact frames comes out"
    assert 100 < framer.counters.crc_errors < 200


def test_hostile_input_is_survived_in_linear_time() -> None:
    """A stream of frame starts that claim the greatest length, and lie."""
    framer = Framer(EXTRAS)
    for _ in range(20):
        assert framer.feed(b"\xfd\xff\x00" * 3000) == []
    assert framer.pending <= MAX_FRAME_BYTES
    out = raws(framer.feed(attitude(1) * 8))
    assert out.count(attitude(1)) == 8


class TestUnknownMessages:
    """Frames of messages that the dialect does not know pass through, and are checked all the same."""

    def test_they_pass_and_are_counted(self) -> None:
        frames = [unknown(0), attitude(1), unknown(2, b"\x09" * 40)]
        out, framer = collect(b"".join(frames))
        assert out == frames
        assert framer.counters.unknown == 2

    def test_a_damaged_one_does_not_pass_once_its_checksum_byte_is_settled(self) -> None:
        framer = Framer(EXTRAS)
        framer.feed(unknown(0) + unknown(1))
        passed = 0
        for position in range(10, 15):
            for flip in range(1, 256):
                damaged = bytearray(unknown(2))
                damaged[position] ^= flip
                passed += len(framer.feed(bytes(damaged)))
                framer.flush()
        assert passed == 0
        assert raws(framer.feed(unknown(3))) == [unknown(3)]

    def test_one_damaged_first_sighting_does_not_shut_the_message_out(self) -> None:
        framer = Framer(EXTRAS)
        framer.feed(attitude(0) + unknown(1, extra=3))
        good = [unknown(seq) for seq in range(2, 6)]
        assert raws(framer.feed(b"".join(good))) == good

    def test_noise_that_happens_to_check_out_is_not_believed_of_a_stranger(self) -> None:
        framer = Framer(EXTRAS)
        framer.feed(attitude(0))
        assert framer.feed(unknown(0, system=99)) == []
        assert raws(framer.feed(unknown(1, system=99))) == [unknown(1, system=99)], "the second sighting settles it"

    @settings(deadline=None)
    @given(st.binary(min_size=1, max_size=80), st.integers(0, 255))
    def test_the_implied_extra_is_the_one_that_was_used(self, data: bytes, extra: int) -> None:
        state = crc(data)
        assert implied_extra(state, crc_with_extra(state, extra)) == extra


class TestDatagrams:
    """UDP: a datagram that ends with an intact frame proves that an incomplete one before it is damage."""

    def test_a_damaged_length_does_not_hold_back_what_follows(self) -> None:
        damaged = bytearray(attitude(0))
        damaged[1] = 255
        framer = Framer(EXTRAS)
        assert raws(framer.feed_datagram(bytes(damaged) + attitude(1))) == [attitude(1)]
        assert framer.pending == 0

    def test_a_frame_may_span_datagrams(self) -> None:
        framer = Framer(EXTRAS)
        data = b"".join(attitude(seq) for seq in range(10))
        out = []
        for start in range(0, len(data), 17):
            out += raws(framer.feed_datagram(data[start : start + 17]))
        assert out == [attitude(seq) for seq in range(10)]

    def test_a_cut_frame_that_claims_a_part_of_the_next_one_does_not_swallow_it(self) -> None:
        """What is cut off looks like an unknown message once in 256 times: the surer frame that begins in it counts."""
        cut = bytes.fromhex("fd0d00001b0101")
        whole = bytes.fromhex(
            "fd3300001c01010301001c0d0000d22299d59fe6e1353df360e335de5f6efd29583d3abed5db92e9d98d18de18d6d3a4762bb707"
            "02e64fd51a7d2e3201bd5d"
        )
        for feed in (Framer.feed_datagram, Framer.feed):
            framer = Framer(EXTRAS)
            framer.feed(attitude(0))
            assert feed(framer, cut) == []
            assert raws(feed(framer, whole)) == [whole]

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(0, 255)), max_size=20))
    def test_the_short_way_for_whole_frames_counts_what_the_long_way_counts(
        self, plan: list[tuple[int, int, int]]
    ) -> None:
        """Each datagram is a frame, of which some are damaged."""
        short, long = Framer(EXTRAS), Framer(EXTRAS)
        for way, place, flip in plan:
            raw = bytearray([attitude(place), attitude(place, version=1), unknown(place)][way % 3])
            if way >= 3:
                raw[place % len(raw)] ^= flip
            found = raws(short.feed_datagram(bytes(raw)) + short.flush())
            assert found == raws(long.feed(bytes(raw)) + long.flush())
        assert short.counters == long.counters

    def test_a_cut_frame_is_given_up_with_the_next_whole_one(self) -> None:
        framer = Framer(EXTRAS)
        assert framer.feed_datagram(attitude(0)[:20]) == []
        assert raws(framer.feed_datagram(attitude(1))) == [attitude(1)]


class TestSequence:
    """Gaps, repetitions and late frames are told apart, per system and component."""

    @pytest.mark.parametrize(
        ("numbers", "lost", "duplicates", "late"),
        [
            ([1, 2, 3], 0, 0, 0),
            ([1, 2, 5], 2, 0, 0),
            ([254, 255, 0, 1], 0, 0, 0),
            ([250, 3], 8, 0, 0),
            ([1, 1, 2], 0, 1, 0),
            ([1, 3, 2, 4], 0, 0, 1),
            ([200, 201, 0, 1, 2], 54, 0, 0),
            ([100, 101, 50, 51, 52], 0, 0, 1),
        ],
    )
    def test_table(self, numbers: list[int], lost: int, duplicates: int, late: int) -> None:
        framer = Framer(EXTRAS)
        framer.feed(b"".join(attitude(number) for number in numbers))
        counters = framer.counters
        assert (counters.lost, counters.duplicates, counters.late) == (lost, duplicates, late)

    def test_two_systems_do_not_mix(self) -> None:
        framer = Framer(EXTRAS)
        framer.feed(b"".join(attitude(seq, system=1) + attitude(seq + 100, system=2) for seq in range(5)))
        assert framer.counters.lost == 0


def test_signed_frames_pass_whole() -> None:
    raw = signed(5)
    (frame,) = Framer(EXTRAS).feed(raw)
    assert frame.signed
    assert frame.raw == raw
    assert len(raw) == len(frame.payload) + 25


def test_unknown_incompatibility_flags_are_refused() -> None:
    body = bytearray(attitude(0))
    body[2] = 0x02
    checked = bytes(body[:-2]) + crc_with_extra(crc(bytes(body[1:-2])), EXTRAS[30]).to_bytes(2, "little")
    framer = Framer(EXTRAS)
    assert framer.feed(checked + attitude(1)) == framer.feed(b"") + Framer(EXTRAS).feed(attitude(1))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_the_checksum_is_the_same_without_compiled_help(data: bytes) -> None:
    assert crc_in_python(data) == crc(data) == mavlink.x25crc(data).crc


@settings(deadline=None)
@given(st.binary(max_size=255), st.integers(1, 255), st.integers(0, 255), st.sampled_from([1, 2]))
def test_built_frames_are_read_by_pymavlink(payload: bytes, system: int, seq: int, version: int) -> None:
    """DATA64-like payloads of any length; MAVLink 1 needs the message's exact length."""
    full = (payload + bytes(28))[:28]
    raw = build_frame(30, full, crc_extra=39, sysid=system, compid=3, seq=seq, version=version)
    message = mavlink.MAVLink(None).decode(bytearray(raw))
    assert (message.get_srcSystem(), message.get_srcComponent(), message.get_seq()) == (system, 3, seq)
    assert message.get_type() == "ATTITUDE"
    (frame,) = Framer(EXTRAS).feed(raw)
    assert frame.payload.ljust(28, b"\0") == full


@pytest.mark.parametrize("raw", [b"", b"\xfd", b"hello world, no frame", attitude(0)[:-1], attitude(0) + b"x"])
def test_what_is_no_frame_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not one MAVLink frame"):
        Frame.from_raw(raw)
