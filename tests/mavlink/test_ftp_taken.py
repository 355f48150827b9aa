"""A file session that somebody else takes over in the middle: another ground station, or a vehicle that restarts."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mavlink.ground import BOTH, Flying, ftp_rig
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


@pytest.mark.xfail(strict=False, reason="what is read into memory is not checked by the vehicle's checksum yet")
async def test_what_is_read_into_memory_is_right_or_an_error() -> None:
    """On PX4 all share one session, whose number stays the same."""
    rng = random.Random(6)
    async with ftp_rig(PX4, times={"silence": 3.0, "close": 0.5}) as (ftp, vehicle, _):
        data = vehicle.put("/mine", rng.randbytes(SIZE))
        vehicle.put("/other", rng.randbytes(SIZE))
        with suppress(FtpError):
            assert await ftp.read("/mine", tell=once(lambda: take_over(vehicle), after=SIZE // 5)) == data
