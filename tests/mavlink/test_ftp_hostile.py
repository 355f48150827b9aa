"""File transfers with a vehicle whose answers are wrong, late, or meant to do harm."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mavlink.ground import Flying, ftp_rig
from petalbus.handlers.mavlink.files.ftp import FtpCorrupt
from petalbus.handlers.mavlink.files.ftp_talk import FtpTimeout
from petalbus.handlers.mavlink.files.ftp_wire import (
    FTP_ID,
    FtpError,
    FtpNak,
    FtpPacket,
    FtpRefused,
    Opcode,
    pack_packet,
)
from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS

ME = (2, 140)
BOTH = pytest.mark.parametrize("name", ["px4", "ardupilot"])
Evil = Callable[[FtpPacket], list[FtpPacket]]


def corrupt(vehicle: Flying, evil: Evil, *, to: tuple[int, int] = ME) -> None:
    """What the server sends goes through ``evil``."""

    def send(packet: FtpPacket, _client: tuple[int, int]) -> None:
        for one in evil(packet):
            vehicle.sim._send_payload(FTP_ID, pack_packet(one, system=to[0], component=to[1]))

    vehicle.server._send = send  # type: ignore[method-assign]


def bad(packet: FtpPacket) -> dict[str, FtpPacket]:
    """Packets that must not be believed, with wrong bytes in them."""
    wrong = packet._replace(data=b"\xee" * max(1, len(packet.data)))
    burst = wrong._replace(opcode=Opcode.ACK, req_opcode=Opcode.BURST_READ_FILE)
    return {
        "number": wrong._replace(seq=(packet.seq + 4321) & 0xFFFF),
        "number before": wrong._replace(seq=(packet.seq - 1) & 0xFFFF),
        "command": wrong._replace(req_opcode=Opcode.RENAME),
        "opcode": wrong._replace(opcode=77),
        "session": burst._replace(session=packet.session + 9),
        "offset": burst._replace(offset=packet.offset + 100),
        "far offset": burst._replace(offset=0xFFFFFFF0),
        "behind the end": burst._replace(seq=(packet.seq + 1000) & 0xFFFF, offset=packet.offset + 239_000),
        "end": packet._replace(seq=(packet.seq + 50) & 0xFFFF, opcode=Opcode.NAK, data=b"\x06", offset=3),
        "no reason": packet._replace(seq=(packet.seq + 60) & 0xFFFF, opcode=Opcode.NAK, data=b""),
    }


@BOTH
@pytest.mark.parametrize("kind", list(bad(FtpPacket(5, Opcode.ACK))))
async def test_what_does_not_belong_is_not_taken(name: str, kind: str) -> None:
    async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
        data = vehicle.put("/a", random.Random(3).randbytes(60_000))

        def evil(packet: FtpPacket) -> list[FtpPacket]:
            return [bad(packet)[kind], packet, bad(packet)[kind]]

        corrupt(vehicle, evil)
        assert await ftp.read("/a") == data
        assert await ftp.list_folder("/")
        assert vehicle.server.sessions == {}


@BOTH
async def test_more_data_than_the_message_has(name: str) -> None:
    """A size field above 239: the packet counts as lost."""
    async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
        data = vehicle.put("/a", random.Random(3).randbytes(30_000))

        def evil(packet: FtpPacket) -> list[FtpPacket]:
            return [packet._replace(size=size) for size in (240, 255)] + [packet]

        corrupt(vehicle, evil)
        assert await ftp.read("/a") == data


async def test_answers_to_others_are_not_ours() -> None:
    async with ftp_rig(times={"silence": 0.5, "close": 0.2}) as (ftp, vehicle, _):
        corrupt(vehicle, lambda packet: [packet], to=(255, 190))
        with pytest.raises(FtpTimeout):
            await ftp.list_folder("/")


async def test_a_burst_of_the_file_before_is_not_taken_for_this_one() -> None:
    """PX4's session is always 0: only the numbers tell a late packet of a cancelled transfer from ours."""
    async with ftp_rig() as (ftp, vehicle, _):
        generator = random.Random(4)
        vehicle.put("/old", generator.randbytes(80_000))
        new = vehicle.put("/new", generator.randbytes(80_000))
        late: list[FtpPacket] = []

        def keep(packet: FtpPacket) -> list[FtpPacket]:
            late.append(packet)
            return [packet] if packet.req_opcode != Opcode.BURST_READ_FILE else []

        corrupt(vehicle, keep)
        task = asyncio.create_task(ftp.read("/old"))
        while len(late) < 100:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        mixed = [packet for packet in late if packet.req_opcode == Opcode.BURST_READ_FILE]

        def mix(packet: FtpPacket) -> list[FtpPacket]:
            return [*mixed[:3], *[mixed.pop() for _ in range(min(3, len(mixed)))], packet]

        corrupt(vehicle, mix)
        assert await ftp.read("/new") == new


async def test_bursts_that_bring_nothing() -> None:
    """Complete at once, without data, forever: then it is read piece by piece."""
    async with ftp_rig() as (ftp, vehicle, _):
        data = vehicle.put("/a", random.Random(3).randbytes(30_000))

        def evil(packet: FtpPacket) -> list[FtpPacket]:
            if packet.req_opcode == Opcode.BURST_READ_FILE:
                return [packet._replace(data=b"", burst_complete=True)]
            return [packet]

        corrupt(vehicle, evil)
        assert await ftp.read("/a") == data


@BOTH
async def test_a_burst_that_says_too_early_that_the_file_ends(name: str) -> None:
    async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
        data = vehicle.put("/a", random.Random(3).randbytes(20_000))

        def evil(packet: FtpPacket) -> list[FtpPacket]:
            if packet.req_opcode == Opcode.BURST_READ_FILE and packet.offset == 239 * 20:
                return [packet._replace(opcode=Opcode.NAK, data=b"\x06")]
            return [packet]

        corrupt(vehicle, evil)
        assert await ftp.read("/a") == data


@BOTH
async def test_no_progress_ends_in_bounded_time(name: str, tmp_path: Path) -> None:
    """It answers all the time, but never with what was asked for."""
    async with ftp_rig(AUTOPILOTS[name], times={"silence": 1.0}) as (ftp, vehicle, _):

        def evil(packet: FtpPacket) -> list[FtpPacket]:
            if packet.req_opcode in (Opcode.BURST_READ_FILE, Opcode.READ_FILE):
                return [packet._replace(opcode=Opcode.ACK, data=b"x", offset=packet.offset + 7, burst_complete=True)]
            return [packet]

        corrupt(vehicle, evil)
        began = time.monotonic()
        with pytest.raises(FtpTimeout, match=r"0 of 1048576 bytes are here"):
            await ftp.download(vehicle.log, tmp_path / "log")
        assert time.monotonic() - began < 20.0
        assert not list(tmp_path.iterdir())


async def test_a_listing_without_an_end() -> None:
    async with ftp_rig() as (ftp, vehicle, _):

        def evil(packet: FtpPacket) -> list[FtpPacket]:
            return [packet._replace(opcode=Opcode.ACK, data=b"S\0" * 119)]

        corrupt(vehicle, evil)
        with pytest.raises(FtpError, match="more than 20000 names"):
            await ftp.list_folder("/")


async def test_refusals_that_nobody_knows() -> None:
    async with ftp_rig() as (ftp, vehicle, _):
        for data, number in ((b"", FtpNak.FAIL), (b"\x63", 99), (b"\x02", FtpNak.FAIL_ERRNO)):
            corrupt(vehicle, lambda packet, data=data: [packet._replace(opcode=Opcode.NAK, data=data)])
            with pytest.raises(FtpRefused) as caught:
                await ftp.remove("/a")
            assert (caught.value.error, caught.value.errno) == (number, None)


async def test_short_checksums_and_sizes() -> None:
    async with ftp_rig() as (ftp, vehicle, _):
        vehicle.put("/a", b"123")
        corrupt(vehicle, lambda packet: [packet._replace(opcode=Opcode.ACK, data=b"\x01")])
        with pytest.raises(FtpError, match="has 1 bytes, not 4"):
            await ftp.crc32("/a")
        assert await ftp.read("/a") == b"", "no size is size 0"


async def test_any_bytes_at_all() -> None:
    """Noise in all answers: no error but ours, and in bounded time."""
    generator = random.Random(11)
    async with ftp_rig(times={"silence": 0.5, "close": 0.2}) as (ftp, vehicle, _):

        def evil(packet: FtpPacket) -> list[FtpPacket]:
            noise = FtpPacket(
                generator.choice((packet.seq, generator.randrange(65536))),
                generator.choice((128, 129, generator.randrange(256))),
                generator.randrange(3),
                generator.choice((packet.offset, generator.randrange(1 << 32))),
                generator.randbytes(generator.randrange(239)),
                None,
                generator.choice((packet.req_opcode, generator.randrange(256))),
                generator.random() < 0.1,
            )
            return [noise]

        corrupt(vehicle, evil)
        began = time.monotonic()
        for _round in range(5):
            for operation in (lambda: ftp.list_folder("/"), lambda: ftp.crc32("/a"), lambda: ftp.remove("/none")):
                try:
                    await operation()
                except FtpError:
                    continue
        assert time.monotonic() - began < 40.0


async def test_an_upload_that_the_vehicle_cut_is_not_good() -> None:
    """It acknowledges everything and keeps a part: its own size must not count as a file that grew."""
    async with ftp_rig() as (client, vehicle, _):
        keep = vehicle.sim.disk.write

        def cut(path: str, offset: int, data: bytes) -> None:
            if offset < 1000:
                keep(path, offset, data[: 1000 - offset])

        vehicle.sim.disk.write = cut  # type: ignore[method-assign]  # a card that is worn out
        with pytest.raises(FtpCorrupt):
            await client.upload(b"x" * 5000, "/fs/microsd/a.bin")
