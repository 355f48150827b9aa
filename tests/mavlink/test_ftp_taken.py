"""A file session that somebody else takes over in the middle: another ground station, or a vehicle that restarts."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mavlink.ground import BOTH, Flying, ftp_rig
from petalbus.handlers.mavlink.files.ftp import FtpCorrupt
from petalbus.handlers.mavlink.files.ftp_fetch import CHECK_MOST
from petalbus.handlers.mavlink.files.ftp_proof import MOST_SPREAD, Proof
from petalbus.handlers.mavlink.files.ftp_wire import FTP_ID, FtpError, FtpPacket, Opcode, pack_packet, path_bytes
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame

SIZE = 1_000_000
OTHER = Packer(load_dialect(), system=9, component=190)
"""Another ground station."""


def say(vehicle: Flying, opcode: Opcode, data: bytes = b"", *, seq: int) -> None:
    """What the vehicle hears from the other ground station."""
    payload = pack_packet(FtpPacket(seq, opcode, data=data), system=1)
    vehicle.server.receive(Frame.from_raw(OTHER.pack_payload(FTP_ID, payload)))


def take_over(vehicle: Flying) -> None:
    """It resets all sessions, as ground stations do when they connect, and opens a file of its own."""
    say(vehicle, Opcode.RESET_SESSIONS, seq=500)
    say(vehicle, Opcode.OPEN_FILE_RO, path_bytes("/other"), seq=502)


def once(happens: Callable[[], Any], *, after: int) -> Callable[[int, int], Awaitable[None]]:
    happened: list[int] = []

    async def tell(done: int, _total: int) -> None:
        if done > after and not happened:
            happened.append(done)
            happens()

    return tell


@BOTH
@pytest.mark.parametrize(
    ("way", "length"),
    [("taken", "shorter"), ("taken", "longer"), ("reset", "same"), ("taken and restarted", "same")],
)
async def test_a_download_brings_the_right_bytes_or_none(tmp_path: Path, autopilot: Any, way: str, length: str) -> None:
    """Never a file that is made of two."""
    rng = random.Random(5)
    async with ftp_rig(autopilot, times={"silence": 2.5, "close": 0.3}) as (ftp, vehicle, _):
        data = vehicle.put("/mine", rng.randbytes(SIZE))
        vehicle.put("/other", rng.randbytes({"shorter": SIZE // 4, "same": SIZE, "longer": 2 * SIZE}[length]))

        def happens() -> None:
            if way == "reset":
                say(vehicle, Opcode.RESET_SESSIONS, seq=500)
            if way.startswith("taken"):
                take_over(vehicle)
            if way.endswith("restarted"):
                vehicle.sim._reboot()

        local = tmp_path / "file"
        try:
            await ftp.download("/mine", local, tell=once(happens, after=SIZE // 5))
        except FtpError:
            assert not local.exists()
        else:
            assert local.read_bytes() == data
        if autopilot is ARDUPILOT or not way.startswith("taken"):
            assert local.exists(), "there it has sessions for everybody, or may open its file again"
        # when the other has gone, what is there of the first attempt does no harm
        say(vehicle, Opcode.RESET_SESSIONS, seq=600)
        await ftp.download("/mine", local)
        assert local.read_bytes() == data
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def faster(vehicle: Flying) -> None:
    """Bursts leave as fast as they can: large files would take long."""
    vehicle.server._per_tick = 2000


def give_back(vehicle: Flying) -> None:
    """It closes what it has opened."""
    say(vehicle, Opcode.TERMINATE_SESSION, seq=504)


def open_there(vehicle: Flying) -> str | None:
    """The file that PX4's only session has open."""
    session = vehicle.server.sessions.get(0)
    return None if session is None else session.path


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("length", ["shorter", "same", "longer"])
async def test_what_is_read_into_memory_is_right(checksums: bool, length: str) -> None:
    """On PX4 all share one session, whose number stays the same: it is seen, and the file comes anew."""
    rng = random.Random(6)
    size = SIZE // 2
    async with ftp_rig(PX4, times={"silence": 3.0, "close": 0.5}) as (ftp, vehicle, _):
        data = vehicle.put("/mine", rng.randbytes(size))
        vehicle.put("/other", rng.randbytes({"shorter": size // 2, "same": size, "longer": 2 * size}[length]))
        if not checksums:
            vehicle.server.without = frozenset((Opcode.CALC_FILE_CRC32,))
        assert await ftp.read("/mine", tell=once(lambda: take_over(vehicle), after=0)) == data
        assert await ftp.read("/mine", tell=once(lambda: take_over(vehicle), after=7), offset=7) == data[7:]


@pytest.mark.parametrize("back", [False, True], ids=["kept", "given back"])
async def test_a_file_too_large_for_a_checksum_is_right(tmp_path: Path, back: bool) -> None:
    """Pieces of it are compared with the file opened again: nobody computes a checksum for a second in flight."""
    rng = random.Random(7)
    async with ftp_rig(PX4, times={"silence": 3.0, "close": 0.5}) as (ftp, vehicle, _):
        faster(vehicle)
        data = vehicle.put("/mine", rng.randbytes(CHECK_MOST + 70_001))
        vehicle.put("/other", rng.randbytes(len(data)))
        told: list[int] = []

        async def tell(done: int, _total: int) -> None:
            told.append(done)
            if done > 1_000_000 and (len(told) < 2 or max(told[:-1]) <= 1_000_000):
                take_over(vehicle)
            elif back and open_there(vehicle) == "/other":
                give_back(vehicle)

        await ftp.download("/mine", tmp_path / "file", tell=tell)
        assert (tmp_path / "file").read_bytes() == data
        assert Opcode.CALC_FILE_CRC32 not in vehicle.server.done
        assert told != sorted(told), "it came anew"


async def test_who_takes_it_again_and_again_gets_an_error_told() -> None:
    """Bounded, and never wrong bytes."""
    rng = random.Random(8)
    async with ftp_rig(PX4, times={"silence": 3.0, "close": 0.5}) as (ftp, vehicle, _):
        vehicle.server.without = frozenset((Opcode.CALC_FILE_CRC32,))
        vehicle.put("/mine", rng.randbytes(SIZE))
        vehicle.put("/other", rng.randbytes(SIZE))

        async def tell(done: int, _total: int) -> None:
            if 0 < done < SIZE and open_there(vehicle) == "/mine":
                take_over(vehicle)

        with pytest.raises(FtpCorrupt, match="something else uses the vehicle's files"):
            await ftp.read("/mine", tell=tell)
        assert await ftp.read("/mine") == bytes(vehicle.files["/mine"])


async def test_a_log_that_grows_while_it_is_read_is_no_mixture() -> None:
    """Its checksum is another one by then; what came is the beginning of it."""
    rng = random.Random(9)
    async with ftp_rig(PX4) as (ftp, vehicle, _):
        faster(vehicle)
        data = vehicle.put("/log", rng.randbytes(SIZE))
        assert await ftp.read("/log", tell=once(lambda: vehicle.files["/log"].extend(b"more"), after=SIZE // 2)) == data


def test_a_proof_is_bounded_and_has_the_latest() -> None:
    """Of any file: no more pieces than it says, from all over it, and the last ones in time."""
    proof = Proof()
    for offset in range(0, 200 << 20, 1 << 13):
        proof.note(offset, b"x")
    pieces = proof.pieces()
    assert len(pieces) <= MOST_SPREAD + 16
    assert pieces[-16:] == [((200 << 20) - (at << 13), b"x") for at in range(16, 0, -1)]
    places = [offset for offset, _ in pieces]
    assert max(later - earlier for earlier, later in pairwise(places)) <= 2 << 20
