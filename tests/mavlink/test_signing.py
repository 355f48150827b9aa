"""Signing, against pymavlink's own implementation of it, in both directions over real UDP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import Peer
from petalbus.handlers.mavlink.wire.dialect import load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame, build_frame, whole_frames
from petalbus.handlers.mavlink.wire.link import Link
from petalbus.handlers.mavlink.wire.signing import Signer, SigningError, Verdict, signing_key

KEY = signing_key("a secret between us")
OTHER_KEY = signing_key("something else")
EPOCH = 1_420_070_400
NOW = EPOCH + 350_000_000.0
SECOND = 100_000
PATIENCE_S = 20.0


class Sink:
    """Keeps the frames of a link."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def __call__(self, frames: Sequence[Frame], mono_ns: int) -> None:
        self.frames += frames

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.frames) < count:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def signing_link(**settings: Any) -> AsyncIterator[tuple[Link, Sink, Signer]]:
    signer = Signer(settings.pop("key", KEY), **settings)
    sink = Sink()
    async with Link("udpin:127.0.0.1:0", on_frames=sink, signing=signer) as link:
        yield link, sink, signer


def peer_at(link: Link, **settings: Any) -> Peer:
    return Peer(remote=link.transport.local, **settings)  # type: ignore[attr-defined]


def set_up(peer: Peer, key: bytes = KEY, *, link_id: int = 7, behind: float = 0.0) -> Any:
    """What mavutil's setup_signing does; ``behind`` is how many seconds its clock is late."""
    signing = peer.mav.signing
    signing.secret_key = key
    signing.sign_outgoing = True
    signing.link_id = link_id
    signing.timestamp = int((time.time() - EPOCH - behind) * SECOND)
    return signing


def good(peer: Peer) -> list[Any]:
    """What the peer heard and accepted."""
    return [message for message in peer.heard if message.get_type() != "BAD_DATA"]


async def settled(link: Link, name: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while link.statistics()["signing"][name] < count:
            await asyncio.sleep(0.01)


async def test_signed_frames_pass_both_ways() -> None:
    async with signing_link() as (link, sink, signer), peer_at(link) as peer:
        theirs = set_up(peer)
        for _ in range(5):
            peer.heartbeat()
        await sink.until(5)
        assert all(frame.signed for frame in sink.frames)
        link.send(link.dialect.message("HEARTBEAT", type=6))
        link.send(link.dialect.message("COMMAND_LONG", target_system=1, command=400), system=1)
        link.send_payload(mavlink.MAVLINK_MSG_ID_PARAM_SET, bytes(23), system=1)
        link.forward(sink.frames[0])
        await peer.until(lambda: len(good(peer)) == 4)
        assert [each.get_type() for each in peer.heard] == ["HEARTBEAT", "COMMAND_LONG", "PARAM_SET", "HEARTBEAT"]
        assert (theirs.goodsig_count, theirs.badsig_count) == (4, 0)
        assert signer.counters.as_dict() == {
            "signed": 4, "good": 5, "exempt": 0, "unsigned": 0, "old": 0, "bad_signature": 0
        }  # fmt: skip


async def test_another_key_is_heard_by_neither_side() -> None:
    async with signing_link(accept_unsigned=True) as (link, sink, _), peer_at(link) as peer, Peer() as plain:
        theirs = set_up(peer, OTHER_KEY)
        peer.heartbeat()
        await settled(link, "bad_signature", 1)
        assert not sink.frames
        assert not link.peers, "and it gets no answer"
        plain.remote = peer.remote
        plain.heartbeat()
        await sink.until(1)
        theirs.sign_outgoing = False
        peer.heartbeat()
        await sink.until(2)
        link.send(link.dialect.message("HEARTBEAT"))
        await peer.until(lambda: peer.heard)
        assert not good(peer)
        assert theirs.badsig_count == 1


async def test_without_a_signature_only_a_radio_is_heard_and_it_moves_no_route() -> None:
    async with signing_link() as (link, sink, _), peer_at(link) as vehicle, peer_at(link) as forger:
        set_up(vehicle)
        vehicle.heartbeat()
        await sink.until(1)
        forger.heartbeat()
        forger.send(mavlink.MAVLink_radio_status_message(200, 190, 100, 30, 30, 0, 0))
        await sink.until(2)
        assert sink.frames[1].msgid == 109
        statistics = link.statistics()["signing"]
        assert (statistics["unsigned"], statistics["exempt"]) == (1, 1)
        assert link.peers == [vehicle.address]
        assert link.send(link.dialect.message("COMMAND_LONG", target_system=1), system=1) == 1
        await vehicle.until(vehicle.commands)
        assert not forger.heard


async def test_unsigned_frames_pass_where_that_is_allowed() -> None:
    async with signing_link(accept_unsigned=True) as (link, sink, _), peer_at(link) as peer:
        peer.heartbeat()
        await sink.until(1)
        assert link.peers == [peer.address]


async def test_a_repeated_frame_is_not_heard_again() -> None:
    async with signing_link() as (link, sink, _), peer_at(link) as peer, peer_at(link) as forger:
        set_up(peer)
        peer.heartbeat()
        await sink.until(1)
        forger.send_bytes(sink.frames[0].raw)
        await settled(link, "old", 1)
        assert len(sink.frames) == 1
        assert link.peers == [peer.address]


async def test_a_vehicle_whose_clock_is_days_behind_learns_the_time_from_us() -> None:
    """Without a time source it goes on from the last flight. It must hear us before we can believe it."""
    async with signing_link() as (link, sink, _), peer_at(link) as peer:
        set_up(peer, behind=2 * 86_400)
        peer.heartbeat()
        await settled(link, "old", 1)
        assert link.send(link.dialect.message("HEARTBEAT")) == 1
        await peer.until(lambda: good(peer))
        peer.heartbeat()
        await sink.until(1)
        assert link.peers == [peer.address]


async def test_we_learn_the_time_from_a_vehicle() -> None:
    async with signing_link(wall_clock=0.0) as (link, sink, signer), peer_at(link) as peer:
        theirs = set_up(peer)
        assert signer.timestamp < PATIENCE_S * SECOND
        peer.heartbeat()
        await sink.until(1)
        link.send(link.dialect.message("HEARTBEAT"))
        await peer.until(lambda: good(peer))
        assert theirs.badsig_count == 0


async def test_every_wire_is_a_stream_of_its_own() -> None:
    signer = Signer(KEY, link_id=200)
    async with Peer() as first, Peer() as second:
        for each in (first, second):
            set_up(each, behind=1.0)
        endpoint = ",".join(f"udpout:127.0.0.1:{each.address[1]}" for each in (first, second))
        async with Link(endpoint, on_frames=Sink(), signing=signer) as link:
            assert link.send(link.dialect.message("HEARTBEAT")) == 2
            for number, each in enumerate((first, second)):
                await each.until(lambda each=each: good(each))  # type: ignore[misc]
                assert good(each)[0].get_link_id() == 200 + number


async def test_a_link_without_a_key_reads_signed_frames_as_before() -> None:
    sink = Sink()
    async with Link("udpin:127.0.0.1:0", on_frames=sink) as link, peer_at(link) as peer:
        set_up(peer)
        peer.heartbeat()
        await sink.until(1)
        assert sink.frames[0].signed
        assert link.statistics()["signing"] is None


async def test_two_links_of_ours_speak_signed() -> None:
    ours, theirs = Sink(), Sink()
    async with Link("tcpin:127.0.0.1:0", on_frames=theirs, signing=Signer(KEY), system=1) as server:
        port = server.transport.local[1]  # type: ignore[attr-defined]
        async with Link(f"tcp:127.0.0.1:{port}", on_frames=ours, signing=Signer(KEY)) as link:
            async with asyncio.timeout(PATIENCE_S):
                while not link.send(link.dialect.message("HEARTBEAT")):
                    await asyncio.sleep(0.01)
            await theirs.until(1)
            assert server.send(server.dialect.message("HEARTBEAT"), system=2) == 1
            await ours.until(1)


def test_mavlink_1_cannot_be_signed() -> None:
    with pytest.raises(ValueError, match="MAVLink 1 cannot be signed"):
        Link("udpin:127.0.0.1:0", on_frames=Sink(), version=1, signing=Signer(KEY))


# Keys


def test_keys_are_hex_digits_or_a_passphrase() -> None:
    assert signing_key("00" * 31 + "fF") == bytes(31) + b"\xff"
    assert signing_key("open sesame") == sha256(b"open sesame").digest()
    assert signing_key("ü") == sha256("ü".encode()).digest()
    assert signing_key("g" * 64) == sha256(b"g" * 64).digest()
    spaced = "00 " * 21 + "0"
    assert len(spaced) == 64
    assert signing_key(spaced) == sha256(spaced.encode()).digest()
    with pytest.raises(SigningError, match="empty"):
        signing_key("")
    with pytest.raises(SigningError, match="32 bytes"):
        Signer(b"short")
    with pytest.raises(SigningError, match="0 to 255"):
        Signer(KEY, link_id=256)


# The rules, one by one


def heartbeat(*, system: int = 1, seq: int = 0) -> bytes:
    extra = load_dialect().crc_extras[0]
    return build_frame(0, bytes(8) + b"\x03", crc_extra=extra, sysid=system, compid=1, seq=seq)


def signed_at(seconds: float, **settings: Any) -> Frame:
    """A frame that was signed this much later than NOW."""
    link_id = settings.pop("link_id", 0)
    return Frame.from_raw(Signer(KEY, link_id=link_id, wall_clock=NOW + seconds).sign(heartbeat(**settings)))


def test_a_new_stream_may_be_a_minute_behind_and_a_known_one_not_at_all() -> None:
    signer = Signer(KEY, wall_clock=NOW)
    assert signer.verify(signed_at(-65)) is Verdict.OLD
    assert signer.verify(signed_at(-50)) is Verdict.GOOD
    assert signer.verify(signed_at(-51)) is Verdict.OLD
    assert signer.verify(signed_at(-55, link_id=1)) is Verdict.GOOD, "another link is another stream"
    assert signer.verify(signed_at(-55, system=2)) is Verdict.GOOD, "and so is another system"
    assert signer.verify(signed_at(100)) is Verdict.GOOD
    assert signer.verify(signed_at(-50, system=3)) is Verdict.OLD, "the clock went ahead with that"


def test_a_forged_frame_changes_nothing() -> None:
    signer = Signer(KEY, wall_clock=NOW)
    raw = bytearray(signed_at(1000).raw)
    raw[-1] ^= 1
    assert signer.verify(Frame.from_raw(bytes(raw))) is Verdict.FORGED
    assert signer.timestamp < (NOW - EPOCH + 100) * SECOND
    assert signer.verify(signed_at(0)) is Verdict.GOOD


def test_timestamps_grow_by_the_clock_and_with_every_frame() -> None:
    signer = Signer(KEY, wall_clock=NOW)
    stamps = [int.from_bytes(signer.sign(heartbeat())[-12:-6], "little") for _ in range(1000)]
    assert stamps == sorted(set(stamps))
    assert abs(stamps[0] - (NOW - EPOCH) * SECOND) < 10 * SECOND
    time.sleep(0.05)
    assert int.from_bytes(signer.sign(heartbeat())[-12:-6], "little") - stamps[-1] >= 0.04 * SECOND


def test_i9_a_step_of_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer(KEY)
    before = signer.timestamp
    for years in (-10, 10):
        monkeypatch.setattr(time, "time", lambda years=years: NOW + years * 365.25 * 86_400)
        assert before <= signer.timestamp < before + 60 * SECOND


def test_time_that_has_run_out_does_not_overflow() -> None:
    signer = Signer(KEY, wall_clock=EPOCH + 2.0**48 / SECOND)
    for _ in range(3):
        assert len(signer.sign(heartbeat())) == len(heartbeat()) + 13


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xfd",
        heartbeat()[:-1],
        heartbeat() + b"\0",
        b"\xfe" + heartbeat()[1:],
        Signer(KEY).sign(heartbeat()),
    ],
    ids=["nothing", "a byte", "too short", "too long", "another version", "signed already"],
)
def test_only_whole_unsigned_frames_are_signed(data: bytes) -> None:
    with pytest.raises(ValueError, match="MAVLink 2 frame"):
        Signer(KEY).sign(data)


@given(
    payload=st.binary(min_size=1, max_size=253),
    system=st.integers(1, 255),
    component=st.integers(1, 255),
    seq=st.integers(0, 255),
    link_id=st.integers(0, 255),
    channel=st.integers(0, 3),
    key=st.binary(min_size=32, max_size=32),
)
def test_pymavlink_believes_what_we_sign(
    payload: bytes, system: int, component: int, seq: int, link_id: int, channel: int, key: bytes
) -> None:
    extras = load_dialect().crc_extras
    data = build_frame(131, payload, crc_extra=extras[131], sysid=system, compid=component, seq=seq)
    signed = Signer(key, link_id=link_id).sign(data, channel=channel)
    station = mavlink.MAVLink(None)
    station.signing.secret_key = key
    message = station.decode(bytearray(signed))
    assert (message.get_srcSystem(), message.get_srcComponent(), message.get_seq()) == (system, component, seq)
    assert message.get_link_id() == (link_id + channel) % 256
    (frame,) = whole_frames(signed, extras)
    assert Signer(key).verify(frame) is Verdict.GOOD
    assert Signer(OTHER_KEY).verify(frame) is Verdict.FORGED
    damaged = bytearray(signed)
    damaged[-8] ^= 0x40
    assert Signer(key).verify(Frame.from_raw(bytes(damaged))) is Verdict.FORGED


# The memory


def last_of(signer: Signer) -> int:
    return int.from_bytes(signer.sign(heartbeat())[-12:-6], "little")


async def test_timestamps_never_go_back_across_restarts_with_a_clock_that_does(tmp_path: Path) -> None:
    memory = tmp_path / "state" / "signing"
    used = 0
    for restart in range(4):
        signer = Signer(KEY, memory=memory, wall_clock=NOW - restart * 86_400)
        async with signer.kept():
            first = last_of(signer)
            assert first > used
            used = max(last_of(signer) for _ in range(100))
    assert (NOW - EPOCH) * SECOND < used < (NOW - EPOCH + 8 * 60) * SECOND
    assert [each.name for each in memory.parent.iterdir()] == ["signing"]


async def test_they_do_not_go_back_when_the_process_dies(tmp_path: Path) -> None:
    memory = tmp_path / "signing"
    dying = Signer(KEY, memory=memory, wall_clock=NOW)
    async with dying.kept():
        used = last_of(dying)
        async with asyncio.timeout(PATIENCE_S):
            while not memory.exists():
                await asyncio.sleep(0.01)
        kept = memory.read_bytes()
        used = max(used, last_of(dying))
    memory.write_bytes(kept)  # as it was when the power went
    again = Signer(KEY, memory=memory, wall_clock=0.0)
    async with again.kept():
        assert last_of(again) >= int(kept) + 60 * SECOND
        assert last_of(again) > used


async def test_what_a_vehicle_told_is_kept_too(tmp_path: Path) -> None:
    memory = tmp_path / "signing"
    signer = Signer(KEY, memory=memory, wall_clock=NOW)
    async with signer.kept():
        assert signer.verify(signed_at(86_400)) is Verdict.GOOD
    assert int(memory.read_text()) >= (NOW - EPOCH + 86_400) * SECOND


async def test_what_was_not_used_is_not_kept(tmp_path: Path) -> None:
    """Or many quick restarts without anybody there would drive the clock away from the vehicle's."""
    memory = tmp_path / "signing"
    async with Signer(KEY, memory=memory).kept():
        pass
    assert not memory.exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-5", b"9" * 30, b"12 34"])
async def test_a_damaged_memory_is_told_and_replaced(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = tmp_path / "signing"
    memory.write_bytes(content)
    signer = Signer(KEY, memory=memory, wall_clock=NOW)
    async with signer.kept():
        assert last_of(signer) >= (NOW - EPOCH) * SECOND
    assert "no MAVLink signing timestamp" in caplog.text
    assert int(memory.read_text()) >= (NOW - EPOCH) * SECOND


async def test_a_memory_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    signer = Signer(KEY, memory=blocked / "signing", wall_clock=NOW)
    async with signer.kept():
        last_of(signer)
    assert "cannot be kept" in caplog.text


async def test_a_link_keeps_its_signers_memory(tmp_path: Path) -> None:
    memory = tmp_path / "signing"
    async with signing_link(memory=memory) as (link, sink, _), peer_at(link) as peer:
        set_up(peer)
        peer.heartbeat()
        await sink.until(1)
    assert int(memory.read_text()) > (time.time() - EPOCH - 60) * SECOND
